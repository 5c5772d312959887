"""Many who wait for tasks to finish, and one poll of the ledger for all of them."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from workqueue.ledger import Ledger, LedgerBusy, Outcome
from workqueue.patience import Patience

log = logging.getLogger(__name__)

CLOSED = "the client was closed"  # what a cancellation says, too, by which SyncClient cuts a call off
LOOK_AT = 2000  # tasks: of the oldest, and of the others; some milliseconds in all
FIRST_S = 0.01  # between two polls while something happens: a quick task is done in less
LAST_S = 0.2  # and while nothing does
SHARE = 10.0  # of the time that a poll takes, until the next one: so waiting costs a tenth
MOST_S = 1.0  # of that: a ledger that was slow, or silent, is quick again
BUSY_S = 5.0  # without an answer, until it is said


class Turns:
    """Which tasks of many to ask about: the oldest, which are the next to finish most often, and of the others one
    stretch after the other."""

    def __init__(self, look_at: int | None = None) -> None:
        self._look_at = self._start = look_at or LOOK_AT

    def next(self, pending: Mapping[UUID, object]) -> list[UUID]:
        # Each list is made in one go, by no step of Python: tasks may be added in another thread.
        oldest, others = (list(islice(pending, at, at + self._look_at)) for at in (0, self._start))
        self._start = self._start + self._look_at if others else self._look_at
        return oldest + others


@dataclass(slots=True)
class Waited:
    """A task that is waited for, by so many."""

    outcome: asyncio.Future[Outcome]
    waiters: int = 0


class Waiting:
    """Waits for tasks through a ledger: any number of them take one poll at a time, on the ledger's one connection."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: dict[UUID, Waited] = {}
        self._polling: asyncio.Task[None] | None = None
        self._turns, self._interval_s, self._called = Turns(), FIRST_S, asyncio.Event()

    async def outcome(self, task_id: UUID, within_s: float | None) -> Outcome:
        """Return once the task is done or dead. Raises TimeoutError, LedgerLost."""
        waited = self._pending.get(task_id)
        if waited is None:
            waited = self._pending[task_id] = Waited(asyncio.get_running_loop().create_future())
        waited.waiters += 1
        self._interval_s = FIRST_S
        self._called.set()
        if self._polling is None or self._polling.done():  # somebody may cancel all tasks of a loop, and go on
            self._polling = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(waited.outcome)
        finally:
            waited.waiters -= 1
            if not waited.waiters and self._pending.get(task_id) is waited:
                del self._pending[task_id]

    async def close(self) -> None:
        """Whoever waits still is told so by a RuntimeError."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
        self._fail(RuntimeError(CLOSED))

    async def _poll(self) -> None:
        patience = Patience(BUSY_S)
        try:
            while self._pending:
                began_s, took_s = time.monotonic(), 0.0
                try:
                    for outcome in await self._ledger.outcomes(self._turns.next(self._pending)):
                        self._tell(outcome)
                    patience, took_s = Patience(BUSY_S), time.monotonic() - began_s
                except LedgerBusy as error:  # it is asked again
                    if patience.due():
                        log.warning("the ledger %s does not answer: %s", self._ledger.place, error)
                await self._pause(min(MOST_S, SHARE * took_s))
            self._polling = None
        except Exception as error:  # noqa: BLE001  # whoever waits is told
            self._polling = None
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        waiting, self._pending = self._pending, {}
        for waited in waiting.values():
            waited.outcome.set_exception(error)

    def _tell(self, outcome: Outcome) -> None:
        waited = self._pending.pop(outcome.id, None)
        if waited is not None:
            waited.outcome.set_result(outcome)
            self._interval_s = FIRST_S

    async def _pause(self, at_least_s: float) -> None:
        """Wait until the next poll is due: soon, where something has happened, and at once for those who are new."""
        await asyncio.sleep(at_least_s)
        self._called.clear()
        try:
            async with asyncio.timeout(self._interval_s):
                await self._called.wait()
        except TimeoutError:
            self._interval_s = min(LAST_S, 1.5 * self._interval_s)
