"""What holds a running handler: its time limit, the renewal of its claim, and the end that others put to it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from workqueue.ledger import ClaimLost
from workqueue.tasks.policy import describe

log = logging.getLogger(__name__)

RENEWALS = 3  # in a lease: one that fails or is late does not lose the claim


class CutOff(Exception):
    """The handler was stopped at the end of a drain."""


class Leash:
    """A context around a running handler that can end it: at its time limit, when its claim is lost, by `pull`.

    It renews the claim meanwhile. Leaving it raises TimeoutError at the limit, or what it was pulled with. It does by
    itself what `asyncio.timeout` does, to which a handler that ends in time is no cheaper than one that does not.
    """

    def __init__(self, limit_s: float | None, lease_s: float, renew: Callable[[], Awaitable[bool]]) -> None:
        self._limit_s, self._every_s, self._renew = limit_s, lease_s / RENEWALS, renew
        self._why: Exception | None = None
        self._renewing: asyncio.Task[None] | None = None

    def pull(self, why: Exception) -> None:
        if self._why is None:
            self._why = why
            self._task.cancel()

    def __enter__(self) -> None:
        task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._task, self._cancelled_before, self._began = task, task.cancelling(), self._loop.time()
        self._timer = self._loop.call_later(min(self._every_s, self._limit_s or self._every_s), self._tighten)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
        if self._why is None:
            return
        if self._task.uncancel() > self._cancelled_before:
            return  # somebody else cancels the task too
        # A handler may answer a time limit with a result, or an error of its own; a claim that is lost is lost.
        if kind is asyncio.CancelledError or not isinstance(self._why, TimeoutError):
            raise self._why

    def _tighten(self) -> None:
        """Set the time limit, and start to renew. Most handlers have ended before, and cost one timer, not two."""
        if self._limit_s is not None:
            late = TimeoutError(f"it took longer than its limit of {self._limit_s:g} s")
            self._timer = self._loop.call_at(self._began + self._limit_s, self.pull, late)
        if self._limit_s is None or self._limit_s > self._every_s:
            self._renewing = asyncio.ensure_future(self._keep_renewing())

    async def _keep_renewing(self) -> None:
        while True:
            try:
                if not await self._renew():
                    return self.pull(ClaimLost())
            except Exception as error:  # noqa: BLE001  # whatever it is, the next try may succeed before the lease ends
                log.warning("a claim could not be renewed: %s", describe(error))
            await asyncio.sleep(self._every_s)
