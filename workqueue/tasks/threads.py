"""Blocking code in a thread of its own, so that heartbeats, claims and signals go on meanwhile."""

import asyncio
import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from types import FrameType
from typing import ParamSpec, TypeVar

from workqueue import delivery
from workqueue.process import children

P = ParamSpec("P")
R = TypeVar("R")

POLL_S = 0.05

log = logging.getLogger(__name__)

_at_work: dict[threading.Thread, object] = {}
"""With the delivery for which each was started: that is inherited by all the tasks that a handler makes."""


class Interrupted(BaseException):
    """Raised in the thread, wherever it is, when nobody waits for its result any more."""


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `call` of these arguments returns or raises, from a thread.

    Cancelled (a time limit, a drain), it interrupts the thread at its next Python instruction and waits for its end:
    until then the work is still being done, and nobody else may begin it. Code that blocks outside Python is not
    interrupted before it returns. Each further cancellation interrupts the thread again, should it have gone on.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    # Not the future's own result and exception: a future takes no StopIteration, and is cancelled by CancelledError.
    outcome: list[tuple[R | None, BaseException | None]] = []

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def in_own_thread() -> None:
        try:
            outcome.append((call(*args, **kwargs), None))
        except BaseException as raised:  # noqa: BLE001  # whatever it is, it is the caller's
            outcome.append((None, raised))
        if children.forked:  # the handler forked, and this is the child that came back from it
            os._exit(0)
        _at_work.pop(thread, None)
        try:
            loop.call_soon_threadsafe(end)
        except RuntimeError:
            log.warning("a handler's thread ended after its worker, and its result is lost")

    def work() -> None:
        with suppress(Interrupted):  # that came after the call
            in_own_thread()

    thread = threading.Thread(target=copy_context().run, args=(work,), name="handler", daemon=True)
    _at_work[thread] = delivery.current.get(None)
    thread.start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError as cancelled:
        while not ended.done() and thread.is_alive():  # it may be interrupted just before it tells its outcome
            _interrupt(thread)
            await _wait_out(ended, thread)
        _at_work.pop(thread, None)
        raise cancelled from (outcome[0][1] if outcome else None)  # its traceback tells where the thread was
    result, error = outcome.pop()
    if error is None:
        return result  # type: ignore[return-value]  # None only where R allows it
    try:
        raise error
    finally:
        del error  # its traceback refers to this frame: a cycle


async def _wait_out(ended: "asyncio.Future[None]", thread: threading.Thread) -> None:
    """Returns when the thread has ended, or the waiting was cancelled."""
    try:
        while not ended.done() and thread.is_alive():
            await asyncio.wait([ended], timeout=POLL_S)
    except asyncio.CancelledError:
        return


def _interrupt(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupted))


def frames_of(whose: object) -> list[FrameType]:
    """Where the threads are that were started for this delivery."""
    now = sys._current_frames()  # noqa: SLF001  # the only way to see them
    idents = [thread.ident for thread, of in list(_at_work.items()) if of is whose]
    return [now[ident] for ident in idents if ident in now]
