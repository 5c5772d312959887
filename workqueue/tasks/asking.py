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
    """For one worker. It says when the ledger does not answer for a while, and when it does again."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._asked = 0
        self._since: dict[int, float] = {}  # the questions that wait for an answer, the oldest first
        self._looking: asyncio.TimerHandle | None = None
        self._told_s, self._cause = 0.0, "no answer"

    async def __call__(self, call: Callable[[], Coroutine[Any, Any, A]], until: Callable[[], bool] | None = None) -> A:
        """What the ledger answers, however long that takes. Raises LedgerBusy only where `until` is true meanwhile."""
        self._asked += 1
        question, delay_s = self._asked, RETRY_S
        self._since[question] = self._loop.time()
        if self._looking is None:
            self._looking = self._loop.call_later(SILENT_S, self._look)
        try:
            while True:
                try:
                    return await call()
                except LedgerBusy as error:
                    self._cause = str(error)
                    if until is not None and until():
                        raise
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_CAP_S)
        finally:
            del self._since[question]

    def _look(self) -> None:
        """Not a timer for each question: most are answered in microseconds."""
        now_s = self._loop.time()
        oldest_s = next(iter(self._since.values()), now_s)
        self._looking = self._loop.call_later(SILENT_S, self._look) if self._since or self._told_s else None
        if now_s - oldest_s < SILENT_S:
            if self._told_s:
                log.warning("%s  the ledger answers again", self._worker)
                self._told_s, self._cause = 0.0, "no answer"
        elif not self._told_s or now_s - self._told_s > AGAIN_S:
            self._told_s = now_s
            log.warning("%s  waits for the ledger: %s", self._worker, self._cause)
