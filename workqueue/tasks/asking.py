"""Questions to the ledger, asked until it answers: no task runs, and none is settled, without it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from workqueue.ledger import LedgerBusy
from workqueue.tasks.pending import Pending

log = logging.getLogger(__name__)

RETRY_S = 0.005  # between two tries at a busy ledger, doubling up to the cap
RETRY_CAP_S = 1.0
SILENT_S = 1.0  # a lock of another process's transaction is not worth a line; a wait of this length is
STUCK_S = 5.0  # of a transaction that has a row; one of a handler's takes less
AGAIN_S = 60.0  # between two lines about the same wait
UNTOLD = "no answer"  # not yet: a lock is waited for for a second before that is said

A = TypeVar("A")


class Asking:
    """For one worker. It says when one has waited for the ledger for a while, and when all that waited have their
    answers. `open` are those that have none yet.

    Nearly all questions are answered in microseconds, so none has a timer of its own: while any is open, it is looked
    now and then how long the oldest has waited. That others are answered tells nothing of it: a role may be allowed to
    complete a task and not to claim one.
    """

    def __init__(self, worker: str) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self.open = Pending()
        self._met: dict[object, LedgerBusy] = {}  # what the latest try of each of these met
        self._looking: asyncio.TimerHandle | None = None
        self._told_s: float | None = None
        self._told = UNTOLD

    def silent_s(self) -> float:
        """How long the ledger has owed an answer; 0 where it owes none. For any thread."""
        return self.open.oldest_s(but=self._locked())

    def late(self) -> int:
        """How many have waited for long for their row. For any thread."""
        return len(self._late())

    def stuck(self) -> str:
        """The same, and why; empty for none. For any thread."""
        late = self._late()
        return f"{len(late)} can't be recorded: {late[0]}" if late else ""

    def _late(self) -> list[LedgerBusy]:
        return [why for mine, why in self._locked().items() if self.open.age_s(mine) > STUCK_S]

    def _locked(self) -> dict[object, LedgerBusy]:
        """Those that wait for a row which somebody has locked."""
        return {mine: met for mine, met in list(self._met.items()) if met.of_task}

    async def __call__(self, call: Callable[[], Coroutine[Any, Any, A]], until: Callable[[], bool] | None = None) -> A:
        """What the ledger answers, however long that takes. Raises LedgerBusy only where `until` is true meanwhile."""
        mine = self.open.begin()
        if self._looking is None:
            self._looking = self._loop.call_later(SILENT_S / 2, self._look)
        try:
            try:
                answer = await call()
            except LedgerBusy as error:
                answer = await self._again(mine, call, until, error)
        finally:
            self.open.end(mine)
            self._met.pop(mine, None)
        if self._told_s is not None and self.open.oldest_s() < SILENT_S:
            self._told_s = None
            log.warning("%s  the ledger answers again", self._worker)
        return answer

    async def _again(
        self,
        mine: object,
        call: Callable[[], Coroutine[Any, Any, A]],
        until: Callable[[], bool] | None,
        busy: LedgerBusy,
    ) -> A:
        delay_s = RETRY_S
        while True:
            self._met[mine] = busy
            if until is not None and until():
                raise busy
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_CAP_S)
            try:
                return await call()
            except LedgerBusy as error:
                busy = error

    def _look(self) -> None:
        now_s, cause = self._loop.time(), str(self._met.get(self.open.oldest(), UNTOLD))
        if self.open.oldest_s() >= SILENT_S and (
            self._told_s is None or now_s - self._told_s > AGAIN_S or self._told == UNTOLD != cause
        ):
            self._told_s, self._told = now_s, cause
            log.warning("%s  waits for the ledger: %s", self._worker, cause)
        self._looking = self._loop.call_later(SILENT_S / 2, self._look) if self.open else None
