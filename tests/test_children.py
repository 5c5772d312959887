"""What a forked child gets of the worker's own: neither its signals nor its descriptors."""

import fcntl
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable

import pytest

from workqueue.process import children


def in_child(look: Callable[[], bool]) -> bool:
    """What this is in a forked child."""
    child = os.fork()
    if not child:
        code = 2
        try:
            code = 0 if look() else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1), code
    return code == 0


@pytest.fixture(autouse=True)
def guarded() -> None:
    children.install()


def test_a_child_has_the_default_handlers_and_does_not_wake_the_parent() -> None:
    here, there = socket.socketpair()
    there.setblocking(False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wakes = signal.set_wakeup_fd(there.fileno())
    try:

        def look() -> bool:
            defaults = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
            unblocked = not signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return defaults == [signal.SIG_DFL] * 2 and signal.set_wakeup_fd(-1) == -1 and unblocked

        assert in_child(look)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGTERM, before)
        here.close()
        there.close()


def _lock_soon(descriptor: int) -> None:
    """Take the lock; a child that was just forked may not have run its first instruction yet."""
    until_s = time.monotonic() + 20
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)


def test_a_lock_that_is_kept_from_children_ends_with_its_holder() -> None:
    with tempfile.NamedTemporaryFile() as file:
        lock = os.open(file.name, os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        children.keep_from_children(lock)
        hold, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.read(hold, 1)
            os._exit(0)
        try:
            children.forget(lock)
            os.close(lock)
            with open(file.name) as again:
                _lock_soon(again.fileno())
        finally:
            os.close(go)
            os.waitpid(child, 0)
            os.close(hold)


def test_a_number_that_leads_to_another_file_by_now_is_left_to_it() -> None:
    first, other = os.open(os.devnull, os.O_RDONLY), os.open("/proc/self/status", os.O_RDONLY)
    children.keep_from_children(first)
    os.dup2(other, first)  # as if it was closed and its number came back
    try:
        assert in_child(lambda: bool(os.pread(first, 1, 0)))
    finally:
        children.forget(first)
        os.close(first)
        os.close(other)


def test_a_child_knows_that_it_is_one_and_the_parent_that_it_is_not() -> None:
    assert in_child(lambda: children.forked)
    assert not children.forked
