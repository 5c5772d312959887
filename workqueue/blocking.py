"""A plain (not async) handler in a thread of its own, so that heartbeats, claims and signals go on meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

R = TypeVar("R")


async def in_thread(call: Callable[[], R]) -> R:
    """What `call` returns or raises. A daemon thread: one that never ends does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # None only where R allows it

    def work() -> None:
        try:
            said = (call(), None)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
            said = (None, error)  # type: ignore[assignment]
        loop.call_soon_threadsafe(settle, *said)

    threading.Thread(target=copy_context().run, args=(work,), name="handler", daemon=True).start()
    return await outcome
