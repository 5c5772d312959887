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
from functools import partial
from types import FrameType
from typing import Generic, ParamSpec, TypeVar

from workqueue import delivery
from workqueue.process import children

P = ParamSpec("P")
R = TypeVar("R")

POLL_S = 0.05
LOCKING = frozenset({"acquire", "release", "_acquireLock", "_releaseLock", "__enter__", "__exit__"})
"""Functions that take a lock or give it back. An exception at the end of the one, or at the beginning of the other,
leaves it taken for good: that of `logging`, and the event loop's next line waits for ever."""
LOCKS_S = 1.0  # longer than this, a thread that hangs waits for a lock

log = logging.getLogger(__name__)

_at_work: dict[threading.Thread, object] = {}
"""With the delivery for which each was started: that is inherited by all the tasks that a handler makes."""


class Interrupted(BaseException):
    """Raised in the thread, wherever it is, when nobody waits for its result any more."""


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `call` of these arguments returns or raises, from a thread.

    Cancelled (a time limit, a drain), it interrupts the thread at its next Python instruction, or once it has the lock
    that it is just taking, and waits for its end: until then the work is still being done, and nobody else may begin
    it. Code that blocks outside Python is not interrupted before it returns. Each further cancellation interrupts the
    thread again, should it have gone on. One that comes when the call is over, and the event loop has only not seen it
    yet, is too late: what was done is told.
    """
    work = _Work(partial(call, *args, **kwargs))
    work.begin()
    try:
        await asyncio.shield(work.ended)
    except asyncio.CancelledError as cancelled:
        if work.is_over:
            return work.result()
        while work.goes_on():  # it may be interrupted just before it tells its outcome
            await work.interrupt()
            await work.wait_out()
        work.forget()
        raise cancelled from work.error  # its traceback tells where the thread was
    return work.result()


class _Work(Generic[R]):
    """A call in a thread of its own. `is_over`: it has come to its end, and `error` is what it raised. All but
    `in_own_thread` is for the event loop's."""

    def __init__(self, call: Callable[[], R]) -> None:
        self._call, self._loop, self._pid = call, asyncio.get_running_loop(), os.getpid()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        # Not the future's own result and exception: it takes no StopIteration, and is cancelled by CancelledError.
        self._returned: R | None = None
        self.error: BaseException | None = None
        self.is_over = False
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="handler", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def forget(self) -> None:
        _at_work.pop(self._thread, None)

    def _run(self) -> None:
        with suppress(Interrupted):  # that came before the call, or after it
            _at_work[self._thread] = delivery.current.get(None)
            self.in_own_thread()

    def in_own_thread(self) -> None:
        try:
            self._returned = self._call()
        except BaseException as raised:  # noqa: BLE001  # whatever it is, it is the caller's
            self.error = raised
        if os.getpid() != self._pid:  # the handler forked, and this is the child that came back from it
            children.end(self.error)
        self.is_over = True
        self.forget()
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            log.warning("a handler's thread ended after its worker, and its result is lost")

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def goes_on(self) -> bool:
        return not self.ended.done() and self._thread.is_alive()

    async def interrupt(self) -> None:
        with suppress(asyncio.CancelledError):
            for _ in range(round(LOCKS_S / POLL_S)):
                if not self._locks():
                    break
                await asyncio.wait([self.ended], timeout=POLL_S)
        ident = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Interrupted))

    def _locks(self) -> bool:
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001  # the only way to see it
        return frame is not None and frame.f_code.co_name in LOCKING

    async def wait_out(self) -> None:
        """Returns when the thread has ended, or the waiting was cancelled."""
        with suppress(asyncio.CancelledError):
            while self.goes_on():
                await asyncio.wait([self.ended], timeout=POLL_S)

    def result(self) -> R:
        """What the call returned or raised, once."""
        error, self.error = self.error, None  # its traceback refers to its frames, and those to this: a cycle
        if error is None:
            return self._returned  # type: ignore[return-value]  # None only where R allows it
        try:
            raise error
        finally:
            del error


def frames_of(whose: object) -> list[FrameType]:
    """Where the threads are that were started for this delivery."""
    now = sys._current_frames()  # noqa: SLF001  # the only way to see them
    idents = [thread.ident for thread, of in list(_at_work.items()) if of is whose]
    return [now[ident] for ident in idents if ident in now]
