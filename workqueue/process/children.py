"""Keeps what is this process's own out of the children that it forks: a worker's handler may, and a server that sends.

A forked child inherits everything. With the signal wake-up descriptor, a SIGTERM for the child looks like one for the
worker; a lock that the child holds too outlives the worker; and so does a connection, which the broker then believes
to be alive. And it goes on where its parent is: back from the handler it would settle the task, in the event loop it
would be a second worker; there it ends. Children that run another program (subprocess) are not concerned: descriptors
close on exec.
"""

import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

forked = False
"""Whether this process is a child that was forked from a worker: it must settle nothing, and `end`."""

_private: dict[
    int, tuple[int, int]
] = {}  # by descriptor: the file it led to, should the number be somebody else's by now
_loop_thread = 0
_mask = threading.local()
_installed: set[str] = set()


def keep_from_children(descriptor: int) -> None:
    """Children forked from now on have /dev/null in its place, for as long as the number leads to the same file."""
    if "descriptors" not in _installed:
        _installed.add("descriptors")
        os.register_at_fork(after_in_child=_drop_private)
    _private[descriptor] = _file(descriptor)


def forget(descriptor: int) -> None:
    """The descriptor is about to be closed."""
    _private.pop(descriptor, None)


def install() -> None:
    """Have every child that is forked after this get the default handlers of signals; for a worker, whose own would
    settle its parent's tasks. Calling it again changes nothing."""
    if "signals" not in _installed:
        _installed.add("signals")
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def end(error: BaseException | None) -> NoReturn:
    """End a child that came back from the handler that forked it, or let an error out, as an interpreter would."""
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code
        if code is not None and not isinstance(code, int):
            with suppress(BaseException):
                print(code, file=sys.stderr)
    elif error is not None:
        with suppress(BaseException):
            traceback.print_exception(error)
        code = 1
    os._exit((code & 0xFF) if isinstance(code, int) else int(code is not None))


def keep_from_loop(thread: int) -> None:
    """Have a child that is forked by a coroutine, in this thread (0: in none), end before it is back in the event loop:
    it would go on there as a second copy of the worker, and do what other handlers are about to do."""
    global _loop_thread
    _loop_thread = thread


def _end_with_this_step(in_loop: bool) -> None:
    """When the coroutine of the task that forked awaits something, or the call of an executor's thread is over: that is
    when its frame is left. A child that multiprocessing forks never is back, and is not made slower."""
    from inspect import CO_COROUTINE  # loaded by asyncio, long ago

    step: FrameType | None = None
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # the only way to see them
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if module == "multiprocessing.popen_fork":
            return
        is_call = module == "concurrent.futures.thread" and frame.f_code.co_name == "run"
        if frame.f_code.co_flags & CO_COROUTINE if in_loop else is_call:
            step = frame
        frame = frame.f_back

    def left(frame: FrameType, event: str, _: object) -> None:
        if frame is step and event == "return":
            end(None)

    if step is not None:
        sys.setprofile(left)


def _before() -> None:
    # A pool that ends at once signals children which have hardly begun: the signal must wait for `_after_in_child`.
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _after_in_child() -> None:
    global forked
    forked = True
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)
    _end_with_this_step(_loop_thread == threading.get_ident())


def _drop_private() -> None:
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, file in _private.items():
        with suppress(OSError):
            if _file(descriptor) == file:  # not closed: an object of the parent's would close the number's next file
                os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
    _private.clear()


def _file(descriptor: int) -> tuple[int, int]:
    told = os.fstat(descriptor)
    return told.st_dev, told.st_ino
