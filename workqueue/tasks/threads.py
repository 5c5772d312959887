"""Blocking code in a thread of its own, so that heartbeats, claims and signals go on meanwhile."""

import asyncio
import ctypes
import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

POLL_S = 0.05

log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """Raised in the thread, wherever it is, when nobody waits for its result any more."""


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `call` of these arguments returns or raises, from a thread.

    Cancelled (a time limit, a drain), it interrupts the thread at its next Python instruction and waits for its end:
    until then the work is still being done, and nobody else may begin it. Code that blocks outside Python is not
    interrupted before it returns. Cancelled once more, it leaves the thread alone, which ends with the process.
    """
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
        result, error = None, None
        try:
            result = call(*args, **kwargs)
        except BaseException as raised:  # noqa: BLE001  # whatever it is, it is the caller's
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            log.warning("a handler's thread ended after its worker, and its result is lost")

    thread = threading.Thread(target=copy_context().run, args=(work,), name="handler", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        if not outcome.done():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupted))
            while not outcome.done() and thread.is_alive():  # it may be interrupted just before it tells its outcome
                await asyncio.wait([outcome], timeout=POLL_S)
        if outcome.done():
            outcome.exception()  # it is known now, and of no use to anybody
        raise
