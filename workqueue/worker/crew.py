"""The guards of all that a worker does, as one."""

import asyncio
from collections.abc import Collection
from itertools import chain
from typing import Any

from workqueue.tasks.events import Stopped
from workqueue.tasks.processor import Guard
from workqueue.tasks.scope import Scope


class Crew:
    """The guards of all that this worker does, as one."""

    def __init__(self, guards: Collection[Guard[Any]]) -> None:
        self._guards = guards

    def running(self) -> list[Scope]:
        """For any thread: a set is copied in one step."""
        return [scope for guard in self._guards for scope in list(guard.execution.running)]

    @property
    def in_hand(self) -> int:
        return sum(guard.in_hand for guard in self._guards)

    def drain(self) -> None:
        for guard in self._guards:
            guard.drain()

    def end(self) -> None:
        for guard in self._guards:
            guard.end()

    async def idle(self, within_s: float) -> bool:
        """Wait until nothing is in hand. False: something still was after this time."""
        return all(await asyncio.gather(*(guard.idle(within_s) for guard in self._guards)))

    def unrecorded(self) -> list[str]:
        return sorted(chain.from_iterable(guard.execution.unrecorded for guard in self._guards))

    def account(self, name: str, more: int = 0) -> Stopped:
        """What became of the messages; `more` are on their way back."""
        finished = sum(guard.settling.finished for guard in self._guards)
        return Stopped(name, finished, sum(guard.settling.handed_back for guard in self._guards) + more)
