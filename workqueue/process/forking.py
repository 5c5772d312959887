"""A process that forks while the thread of an event loop is at work: the thread comes to rest first.

A child has of its parent's threads only the one that forked. What another one held at that moment, it holds in the
child for ever: a mutex of SQLite's or the lock of a module that is just imported, for which the child
would wait without end (https://docs.python.org/3/library/os.html#os.fork).
"""

import asyncio
import concurrent.futures.thread  # noqa: F401  # it holds a lock while its process forks: taken after ours, see `_before`
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet

REST_S = 5.0  # for the threads to come to rest, after which the process forks all the same
LOOK_S = 0.01
FORK_S = 10.0  # for which a thread rests at most: a fork takes some milliseconds


class LoopThread(Protocol):
    """An event loop in a thread of its own."""

    @property
    def thread(self) -> threading.Thread: ...

    def ask_to_rest(self, rest: Callable[[], None]) -> bool:
        """Have its thread call this between two of its steps. False where there is none, or that is the calling one."""


class LoopHere:
    """The event loop of the thread that makes this, as a LoopThread: for as long as somebody keeps it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self.thread = loop, threading.current_thread()
        begin_work(self)

    def ask_to_rest(self, rest: Callable[[], None]) -> bool:
        if threading.current_thread() is self.thread:
            return False
        try:
            self._loop.call_soon_threadsafe(rest)
        except RuntimeError:  # it is closed
            return False
        return True


class Rest:
    """One fork: the threads that rest for it."""

    def __init__(self) -> None:
        self._resting, self._over = SimpleQueue[threading.Thread](), threading.Event()

    def begin(self) -> None:
        asked = {one.thread for one in list(_at_work) if one.ask_to_rest(self._rest)}
        until_s = time.monotonic() + REST_S
        while asked - _in_line and time.monotonic() < until_s:
            with suppress(Empty):
                asked.discard(self._resting.get(timeout=LOOK_S))

    def end(self) -> None:
        self._over.set()

    def _rest(self) -> None:
        self._resting.put(threading.current_thread())
        self._over.wait(FORK_S)


_at_work: WeakSet[LoopThread] = WeakSet()
_in_line = set[threading.Thread]()
"""Those that are about to fork, and wait until another one has: they rest, too."""
_forking = threading.local()
making = threading.RLock()
"""Held by a thread that makes a client, and so may import modules."""


def begin_work(thread: LoopThread) -> None:
    """From now on this one rests while the process forks. It is forgotten with its last reference."""
    with making:
        _at_work.add(thread)


def _before() -> None:
    """The first of all that is done before a fork, as what was registered last: who waits for another one's lock
    instead is in no line, and does not rest."""
    _in_line.add(threading.current_thread())
    making.acquire()
    _in_line.discard(threading.current_thread())
    _forking.rest = Rest()
    _forking.rest.begin()


def _in_parent() -> None:
    _forking.rest.end()
    making.release()


def _in_child() -> None:
    making.release()
    _in_line.clear()
    _at_work.clear()  # they are at work in the parent


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
