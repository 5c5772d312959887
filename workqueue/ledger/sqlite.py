"""The ledger in a SQLite file: any number of processes on one machine.

Statements run on the event loop's own thread: one takes some 10 microseconds, a hop to a thread several times that.
A process that dies without a word is noticed at once, not at the end of its lease: while it lives it holds a lock on
a file of its own beside the database, and the kernel drops the lock with the process. One that is merely frozen
keeps its lock, and its claims, until their leases end.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from workqueue.children import forget, keep_from_children
from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Claimed, ClaimLost, Crash, Finished, LedgerBusy, Outcome, Taken

BUSY_S = 0.05  # a statement waits so long for another process's transaction before it is LedgerBusy
LOOK_AGAIN_S = 20e-6  # between two tries: a transaction takes about as long; SQLite itself would wait 1 ms, then more
SET_UP_S = 10.0
PAGE_BYTES = 1024  # each change writes its whole page, of rows of some 200 bytes: 4096 takes a third longer
LOG_BYTES = 8_000_000  # of write-ahead log, before it is copied back
LOOK_EVERY = 500  # statements, at the length of the log
AT_ONCE = 500  # tasks in a statement: SQLite allows 999 parameters where it was built with the old limit

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    id BLOB PRIMARY KEY, state TEXT NOT NULL, fence INTEGER NOT NULL, crashes TEXT NOT NULL DEFAULT '',
    holder TEXT NOT NULL, worker TEXT NOT NULL, lease_until REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, result TEXT, error TEXT, finished_at REAL
) WITHOUT ROWID;
"""
NEW = "INSERT OR IGNORE INTO task (id, state, fence, holder, worker, lease_until) VALUES (?, 'running', 1, ?, ?, ?)"
AGAIN = """
UPDATE task SET state = 'running', fence = fence + 1,
    crashes = crashes || iif(state = 'running', strftime('%Y-%m-%dT%H:%M:%SZ') || ' ' || worker || char(10), ''),
    holder = ?2, worker = ?3, lease_until = ?4
WHERE id = ?1 AND (state = 'waiting' OR (state = 'running' AND (lease_until < ?5 OR holder = ?6)))
RETURNING fence, crashes
"""
CHANGE = "UPDATE task SET {} WHERE id = ? AND fence = ? AND state = 'running'"
COMPLETE = CHANGE.format("state = 'done', attempts = ?, result = ?, finished_at = ?")
BURY = CHANGE.format("state = 'dead', attempts = ?, error = ?, finished_at = ?")
RENEW, RELEASE = CHANGE.format("lease_until = ?"), CHANGE.format("state = 'waiting'")
OUTCOMES = """
SELECT id, state, worker, attempts, result, error, finished_at FROM task WHERE finished_at IS NOT NULL AND id IN ({})
"""
STRETCH_END = f"SELECT max(id) FROM (SELECT id FROM task WHERE id > ? ORDER BY id LIMIT {AT_ONCE})"
FORGET = "DELETE FROM task WHERE id > ? AND id <= ? AND coalesce(finished_at, lease_until) < ?"


class SqliteLedger:
    """See `Ledger`. `path` is created with its folder if it does not exist."""

    def __init__(self, path: str) -> None:
        self._path, self._asked = path, 0
        self._lock: int | None = None
        try:
            self._holders = Path(f"{path}.holders")
            self._holders.mkdir(parents=True, exist_ok=True)
            # Two processes that switch to WAL mode at once are both told that the other one has it locked.
            with open(self._holders / "set-up", "w") as one_at_a_time:
                fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
                self._db = self._open(path)
        except (OSError, sqlite3.Error) as error:
            raise LedgerUnreachable(f"sqlite:{path}", str(error)) from error
        self._holder = ""

    def _open(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=SET_UP_S, isolation_level=None)
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        # In WAL mode a commit survives the death of the process; only a power cut can take back the last ones,
        # whose tasks then are done but forgotten (https://www.sqlite.org/pragma.html#pragma_synchronous).
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(SCHEMA)
        db.execute("PRAGMA busy_timeout = 0")
        return db

    async def claim(self, task_id: UUID, worker: str, lease_s: float) -> Claimed | Taken | Finished:
        if self._lock is None:
            self._hold()
        dead = ""
        while True:
            now = time.time()
            claim = (task_id.bytes, self._holder, worker, now + lease_s)
            if self._change(NEW, claim):
                return Claimed(fence=1, crashes=())
            _, claimed = self._execute(AGAIN, (*claim, now, dead))
            for fence, crashes in claimed:
                return Claimed(fence, Crash.read(crashes))
            _, found = self._execute("SELECT state, holder, lease_until FROM task WHERE id = ?", (task_id.bytes,))
            if not found:
                continue  # pruned in between
            state, holder, until = found[0]
            if state in ("done", "dead"):
                return Finished(state)
            if dead == holder or self._alive(holder):
                return Taken(max(0.0, until - time.time()))
            dead = holder

    async def renew(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        return self._change(RENEW, (time.time() + lease_s, task_id.bytes, fence))

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        with closing(sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)) as db:
            return db.execute(RENEW, (time.time() + lease_s, task_id.bytes, fence)).rowcount == 1

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        return self._change(COMPLETE, (attempts, result, time.time(), task_id.bytes, fence))

    @asynccontextmanager
    async def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AsyncIterator[sqlite3.Connection]:
        # A connection of its own: the block may wait, and what others do meanwhile is not part of its transaction.
        with closing(sqlite3.connect(self._path, timeout=SET_UP_S, isolation_level=None)) as db:
            db.execute("PRAGMA wal_autocheckpoint = 0")  # see `_checkpoint`
            db.execute("BEGIN IMMEDIATE")
            # First: a claim that was lost must not begin an effect.
            if db.execute(COMPLETE, (attempts, result, time.time(), task_id.bytes, fence)).rowcount != 1:
                raise ClaimLost
            yield db
            db.execute("COMMIT")

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str) -> bool:
        return self._change(BURY, (attempts, error, time.time(), task_id.bytes, fence))

    async def release(self, task_id: UUID, fence: int) -> bool:
        return self._change(RELEASE, (task_id.bytes, fence))

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        found: list[Outcome] = []
        for start in range(0, len(ids), AT_ONCE):
            some = [task_id.bytes for task_id in ids[start : start + AT_ONCE]]
            _, rows = self._execute(OUTCOMES.format(", ".join("?" * len(some))), some)
            found += [Outcome(UUID(bytes=row[0]), *row[1:]) for row in rows]
        return found

    async def prune(self, older_than_s: float) -> int:
        # No index by age: every completion would pay for it. Some tasks at a time: nobody waits long for the others.
        before, last, forgotten = time.time() - older_than_s, b"", 0
        while True:
            _, ((end,),) = self._execute(STRETCH_END, (last,))
            if end is None:
                return forgotten
            forgotten += self._execute(FORGET, (last, end, before))[0]
            last = end
            await asyncio.sleep(0)

    async def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            with suppress(FileNotFoundError):
                (self._holders / self._holder).unlink()
            forget(self._lock)
            os.close(self._lock)
            self._lock = None

    def _execute(self, statement: str, values: Sequence[Any]) -> tuple[int, list[Any]]:
        """How many rows it changed, and those that it gave."""
        self._asked += 1
        if self._asked % LOOK_EVERY == 0:
            self._checkpoint()
        deadline_s = 0.0
        while True:
            try:
                cursor = self._db.execute(statement, values)
                return cursor.rowcount, cursor.fetchall()
            except sqlite3.OperationalError as error:  # locked, disk full, file gone
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + BUSY_S
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or now_s > deadline_s:
                    raise LedgerBusy(str(error)) from error
            time.sleep(LOOK_AGAIN_S)

    def _checkpoint(self) -> None:
        """Copy a long log back into the file, and start it anew.

        SQLite would do the first after every change, with two syncs of the disk, for as long as some other process is
        just reading and so keeps it from doing the second: with three busy workers, nearly always.
        """
        with suppress(OSError, sqlite3.OperationalError):  # the next look will do
            if os.stat(f"{self._path}-wal").st_size > LOG_BYTES:
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # stops nobody, and leaves little for the next
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _change(self, change: str, values: Sequence[Any]) -> bool:
        return self._execute(change, values)[0] == 1

    def _hold(self) -> None:
        """Take this process's lock, once; a producer, which claims nothing, has none."""
        holder = uuid4().hex
        try:
            self._holders.mkdir(exist_ok=True)
            lock = os.open(self._holders / holder, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise LedgerBusy(str(error)) from error
        keep_from_children(lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._holder, self._lock = holder, lock

    def _alive(self, holder: str) -> bool:
        try:
            lock = os.open(self._holders / holder, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        with suppress(FileNotFoundError):
            (self._holders / holder).unlink()
        return False
