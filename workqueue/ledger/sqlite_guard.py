"""What this process has open of a SQLite ledger beside SQLite itself: once, however many have the ledger open in it.

SQLite keeps its locks as POSIX locks, and a process loses all that it has on a file as soon as anything in it closes a
descriptor of that file (https://www.sqlite.org/howtocorrupt.html, 2.2): those of a transaction that another client of
the process has under way, too. So ours are closed when nobody in the process has the ledger open any more. SQLite does
the same with its own.

A handler that reads the file and closes it still costs us the locks. Another process that closes the database then
believes to be the last, and deletes the log under us. So a guard also holds shared locks on the same bytes that belong
to its descriptors, and that nobody drops: with them nobody else is ever the last.
"""

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain

from workqueue.process.children import forget, keep_from_children

Inode = tuple[int, int]

SHARED_BYTES = (0x40000002, 510)  # of the database: a shared lock there says that somebody has it open
ALIVE_BYTE = (128, 1)  # of the -shm file: a shared lock there says that its content is in use

_guards: dict[Inode, "Guard"] = {}
_lock = threading.RLock()


class Guard:
    """For the database of this inode; `guard_of` gives it. Who has got it leaves it once."""

    def __init__(self, inode: Inode) -> None:
        self._inode, self.users = inode, 0
        self._opened: dict[Inode, list[int]] = {}

    def keep(self, found: Inode, descriptor: int) -> None:
        self._opened.setdefault(found, []).append(descriptor)
        keep_from_children(descriptor)

    def lock(self, shm: str) -> None:
        """Once the database is open, and so its -shm file is there. Raises OSError."""
        with _lock:
            found = inode(shm)
            if found not in self._opened:
                descriptor = os.open(shm, os.O_RDWR)
                found = _inode(os.fstat(descriptor))
                self.keep(found, descriptor)
            _set_lock(self._opened[self._inode][0], fcntl.F_RDLCK, *SHARED_BYTES)
            _set_lock(self._opened[found][0], fcntl.F_RDLCK, *ALIVE_BYTE)

    def read(self, length: int) -> bytes:
        """The head of the database. Raises OSError."""
        return os.pread(self._opened[self._inode][0], length, 0)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """For the length of the block, in which the database is closed, nobody else opens it. Who is the last drops the
        locks before: SQLite, too, looks whether it is the last, and puts the files in order then."""
        with _lock:
            self.users -= 1
            is_last = not self.users
            if is_last:
                for descriptor in chain.from_iterable(self._opened.values()):
                    with suppress(OSError):
                        _set_lock(descriptor, fcntl.F_UNLCK, 0, 0)
            try:
                yield
            finally:
                if is_last:
                    if _guards.get(self._inode) is self:  # in a forked child, the parent's is not
                        del _guards[self._inode]
                    for descriptor in chain.from_iterable(self._opened.values()):
                        forget(descriptor)
                        os.close(descriptor)
                    self._opened.clear()


def guard_of(path: str) -> Guard:
    """That of the database at this path, which is created if it does not exist, readable for its owner only. Raises
    OSError."""
    with _lock:
        guard = _known(path) or _made(path)
        guard.users += 1
        return guard


def _known(path: str) -> Guard | None:
    try:
        return _guards.get(inode(path))
    except FileNotFoundError:
        return None


def _made(path: str) -> Guard:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    found = _inode(os.fstat(descriptor))
    guard = _guards.setdefault(found, Guard(found))  # it may be known by now: to close this again is what we must not
    guard.keep(found, descriptor)
    return guard


def inode(path: str) -> Inode:
    """Raises OSError."""
    return _inode(os.stat(path))


def _inode(told: os.stat_result) -> Inode:
    return told.st_dev, told.st_ino


def _set_lock(descriptor: int, kind: int, start: int, length: int) -> None:
    """A lock that belongs to the open file, not to the process."""
    if hasattr(fcntl, "F_OFD_SETLK"):  # Linux
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0))


def _forget_all() -> None:
    """In a child: what was the parent's stays with it."""
    global _lock
    _lock = threading.RLock()
    _guards.clear()


os.register_at_fork(after_in_child=_forget_all)
