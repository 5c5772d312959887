"""Questions to the ledger, asked until it answers: no task runs, and none is settled, without it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from workqueue.ledger import LedgerBusy

log = logging.getLogger(__name__)

RETRY_S = 0.005  # between two tries at a busy ledger, doubling up to the cap
RETRY_CAP_S = 1.0
SILENT_S = 1.0  # a lock of another process's transaction is not worth a line; a wait of this length is
AGAIN_S = 60.0  # between two lines about the same wait

A = TypeVar("A")


class Asking:
    """For one worker. It says when the ledger does not answer for a while, and when it does again.

    Nearly all questions are answered in microseconds, so none has a timer of its own: while any is open, it is looked
    now and then whether answers come.
    """

    def __init__(self, worker: str) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._open = self._answered = self._seen = 0
        self._looking: asyncio.TimerHandle | None = None
        self._silent_since_s: float | None = None
        self._told_s: float | None = None
        self._cause = "no answer"

    async def __call__(self, call: Callable[[], Coroutine[Any, Any, A]], until: Callable[[], bool] | None = None) -> A:
        """What the ledger answers, however long that takes. Raises LedgerBusy only where `until` is true meanwhile."""
        self._open += 1
        if self._looking is None:
            self._looking = self._loop.call_later(SILENT_S / 2, self._look)
        try:
            try:
                answer = await call()
            except LedgerBusy as error:
                answer = await self._again(call, until, error)
        finally:
            self._open -= 1
        self._answered += 1
        return answer

    async def _again(
        self, call: Callable[[], Coroutine[Any, Any, A]], until: Callable[[], bool] | None, busy: LedgerBusy
    ) -> A:
        delay_s = RETRY_S
        while True:
            self._cause = str(busy)
            if until is not None and until():
                raise busy
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_CAP_S)
            try:
                return await call()
            except LedgerBusy as error:
                busy = error

    def _look(self) -> None:
        now_s, answers = self._loop.time(), self._answered != self._seen
        self._seen, self._looking = self._answered, None
        if answers or not self._open:
            if self._told_s is not None and answers:
                log.warning("%s  the ledger answers again", self._worker)
            self._silent_since_s = self._told_s = None
            self._cause = "no answer"
        elif self._silent_since_s is None:
            self._silent_since_s = now_s - SILENT_S / 2
        silent = self._silent_since_s is not None and now_s - self._silent_since_s >= SILENT_S
        if silent and (self._told_s is None or now_s - self._told_s > AGAIN_S):
            self._told_s = now_s
            log.warning("%s  waits for the ledger: %s", self._worker, self._cause)
        if self._open:
            self._looking = self._loop.call_later(SILENT_S / 2, self._look)
