"""Who holds claims in a SQLite ledger: each process by a file that it keeps locked for as long as it lives."""

import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from workqueue.ledger import LedgerBusy
from workqueue.ledger.clock import boot, steady_s
from workqueue.ledger.sqlite_file import SqliteFile, words
from workqueue.process.children import forget, keep_from_children


def lives(holder: Path) -> bool:
    """Whether a process has this file locked. One that nobody has is removed."""
    try:
        lock = os.open(holder, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # another user's: it can't be asked, and has until its lease ends
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    with suppress(FileNotFoundError):
        holder.unlink()
    return False


def left_s(this_boot: str, holder: str, lease_until: float, ends_at: float | None) -> float:
    """Of a lease: by the steady clock, where its holder is of this boot and of a version that writes it."""
    if holder.startswith(this_boot) and ends_at is not None:
        return ends_at - steady_s()
    return lease_until - time.time()


class Holders:
    """The holders beside a ledger's file. A holder's name begins with the boot it lived in."""

    def __init__(self, file: SqliteFile) -> None:
        self._file, self.boot = file, f"{boot()}-"
        self._own, self._lock = "", -1
        file.db.create_function("held", 3, self.held)

    def hold(self) -> str:
        """Be one from now on; the name. A producer, which claims nothing, is none. Raises LedgerBusy."""
        holder = f"{self.boot}{secrets.token_hex(6)}"
        try:
            self._file.holders.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self._file.holders / holder, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise LedgerBusy(words(self._file.path, error)) from error
        keep_from_children(lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._own, self._lock = holder, lock
        self._file.watch(str(self._file.holders / holder))
        return holder

    def alive(self, holder: str) -> bool:
        return holder == self._own or lives(self._file.holders / holder)

    def left_s(self, holder: str, lease_until: float, ends_at: float | None) -> float:
        return left_s(self.boot, holder, lease_until, ends_at)

    def held(self, holder: str, lease_until: float, ends_at: float | None) -> bool:
        """Whether a claim is alive."""
        return self.left_s(holder, lease_until, ends_at) > 0 and self.alive(holder)

    def close(self) -> None:
        """Hold nothing any more."""
        if self._own:
            with suppress(OSError):
                (self._file.holders / self._own).unlink()
            forget(self._lock)
            os.close(self._lock)
            self._own = ""
