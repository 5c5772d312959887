"""What is under way, and since when: for whoever tells of what takes long."""

import time
from collections.abc import Container


class Pending:
    """Each `begin` is followed by an `end` with what it gave. The others are for any thread: values are copied in one
    step."""

    def __init__(self) -> None:
        self._since: dict[object, float] = {}

    def begin(self) -> object:
        mine = object()
        self._since[mine] = time.monotonic()
        return mine

    def end(self, mine: object) -> None:
        del self._since[mine]

    def __len__(self) -> int:
        return len(self._since)

    def ages_s(self) -> list[float]:
        """The oldest first."""
        now_s = time.monotonic()
        return [now_s - since for since in list(self._since.values())]

    def oldest_s(self, but: Container[object] = ()) -> float:
        """0 for none."""
        now_s = time.monotonic()
        return next((now_s - since for mine, since in list(self._since.items()) if mine not in but), 0.0)

    def oldest(self) -> object | None:
        return next(iter(list(self._since)), None)

    def age_s(self, mine: object) -> float:
        """0 for one that has ended."""
        return time.monotonic() - self._since.get(mine, time.monotonic())
