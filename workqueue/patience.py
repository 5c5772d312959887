"""When to say that something is waited for."""

import time

SAY_AFTER_S = (10.0, 30.0, 60.0)
"""Then every minute."""


class Patience:
    """When to say that something is waited for: after `first_s`, and then at growing intervals."""

    def __init__(self, first_s: float = 0.0) -> None:
        self._began, self._due, self._said = time.monotonic(), first_s, 0

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self._began

    def due(self) -> bool:
        if self.waited_s < self._due:
            return False
        self._due = self.waited_s + SAY_AFTER_S[min(self._said, len(SAY_AFTER_S) - 1)]
        self._said += 1
        return True
