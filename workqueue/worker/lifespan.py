"""What all handlers of a worker share, such as a connection pool: opened before the first task, closed at the end."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from typing import Any

from workqueue.errors import LifespanFailed, WorkQueueError

log = logging.getLogger(__name__)

CLOSE_S = 4.0


class Lifespan:
    """Enters and leaves a context manager in one task of its own, as cancel scopes and task groups in it ask for.

    `value` is what it gave, and `context` the one that it runs in: what it sets there is for the handlers, too. `fatal`
    is told if it ends while it is needed: a background task in it has failed.
    """

    def __init__(
        self, make: Callable[[], AbstractAsyncContextManager[Any]] | None, fatal: Callable[[BaseException], None]
    ) -> None:
        self._make, self._fatal = make, fatal
        self.value: Any = None
        self.context = copy_context()
        self._entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> bool:
        """True, once it is entered. Raises LifespanFailed, or the WorkQueueError that it raised."""
        if self._make is not None:
            try:
                manager = self._make()
            except Exception as error:
                raise _failure(error) from error
            if not isinstance(manager, AbstractAsyncContextManager):
                raise LifespanFailed(
                    f"what it makes is of type {type(manager).__name__}, and no asynchronous context manager; "
                    f"give a function of the settings with one yield, under contextlib.asynccontextmanager"
                )
            self._running = asyncio.get_running_loop().create_task(self._run(manager), context=self.context)
            self.value = await asyncio.shield(self._entered)
        return True

    async def close(self) -> None:
        """Leave it. One that is just being entered is cancelled; one that does not end in time is left to itself."""
        if self._running is None:
            return
        self._over.set()
        if not self._entered.done():
            self._entered.cancel()
            self._running.cancel()
        _, late = await asyncio.wait([self._running], timeout=CLOSE_S)
        if late:
            log.warning("the lifespan does not end within %g s; the worker ends without it", CLOSE_S)

    async def _run(self, manager: AbstractAsyncContextManager[Any]) -> None:
        error: BaseException | None = None
        try:
            async with manager as value:
                if not self._entered.done():
                    self._entered.set_result(value)
                await self._over.wait()
        except (Exception, asyncio.CancelledError, SystemExit) as raised:  # noqa: BLE001  # somebody else's code
            error = raised
        if not self._entered.done():
            self._entered.set_exception(_failure(error))
        elif not self._over.is_set():
            self._fatal(_failure(error))
        elif error is not None and not self._entered.cancelled():
            log.warning("the lifespan failed when it was left", exc_info=error)


def _failure(error: BaseException | None) -> WorkQueueError:
    """What to end with; a failure that is not of our own kind is shown with its traceback."""
    if isinstance(error, WorkQueueError):
        return error
    if error is None:
        return LifespanFailed("it ended by itself")
    log.error("the lifespan failed", exc_info=error)
    return LifespanFailed(f"{type(error).__name__}: {error}; see the traceback above")
