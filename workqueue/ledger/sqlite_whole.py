"""All of a SQLite ledger, see `Whole`."""

import fcntl
import os
import sqlite3
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from workqueue.errors import LedgerUnreachable
from workqueue.ledger.board import SqlBoard
from workqueue.ledger.clock import boot
from workqueue.ledger.sqlite_file import BOARD, NOW, identity_of, words
from workqueue.ledger.sqlite_guard import SHARED_BYTES
from workqueue.ledger.sqlite_holders import left_s, lives
from workqueue.ledger.whole import Row, Statements, Whole

WAIT_S = 10.0  # for another process's transaction
LOCK = "hhqqi"  # struct flock: type, whence, start, length, pid

BOLT = "CREATE TRIGGER workqueue_moved_{} BEFORE {} ON task BEGIN SELECT RAISE(ABORT, '{{}}'); END"
CHANGES = ("insert", "update", "delete")
PAST = "max(fence + min(fence, 1), ?3)"  # that of no claim which was made here
KNOWN = f"""
state = ?2, fence = {PAST}, crashes = ?4, worker = ?5, attempts = ?6, result = ?7, error = ?8, finished_at = ?9,
kind = ?10, digest = ?11, alone = ?12, created_at = CAST(?13 AS INTEGER), claimed_at = CAST(?14 AS INTEGER),
last_error = ?15, story = ?16, checkpoint = ?17, cancel = ?18, holder = '', ends_at = NULL
"""
# A claim that was copied is over: nobody is there to renew it, and the next claim notices.
LEASE = f"iif(?2 = 'running', min(?19, {NOW}), ?19)"
SQL = Statements(
    now=f"SELECT {NOW}",
    meta="SELECT key, value FROM workqueue_meta",
    say="INSERT OR REPLACE INTO workqueue_meta VALUES (?, ?)",
    unsay="DELETE FROM workqueue_meta WHERE key = ?",
    bolt=tuple(BOLT.format(change, change.upper()) for change in CHANGES),
    unbolt=tuple(f"DROP TRIGGER IF EXISTS workqueue_moved_{change}" for change in CHANGES),
    count="SELECT count(*) FROM task",
    rows="""
        SELECT id, state, fence, crashes, worker, attempts, result, error, finished_at, kind, digest, alone, created_at,
            claimed_at, last_error, story, checkpoint, cancel, lease_until,
            iif(state = 'waiting' AND next_at = lease_until, next_at, NULL)
        FROM task WHERE id > ? ORDER BY id LIMIT ?
    """,
    insert=f"""
        INSERT OR IGNORE INTO task
            (id, state, fence, crashes, holder, worker, attempts, result, error, finished_at, kind, digest, alone,
            created_at, claimed_at, last_error, story, checkpoint, cancel, lease_until, next_at)
        VALUES (?1, ?2, ?3, ?4, '', ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, CAST(?13 AS INTEGER), CAST(?14 AS INTEGER), ?15,
            ?16, ?17, ?18, {LEASE}, ?20)
    """,
    replace=f"""
        UPDATE task SET {KNOWN}, lease_until = {LEASE}, next_at = ?20
        WHERE id = ?1 AND state = 'waiting'
            AND (fence = 0 OR (?2 = 'done' AND (digest = ?11 OR digest IS NULL OR ?11 IS NULL)))
    """,
    used="""
        SELECT EXISTS (
            SELECT 1 FROM task WHERE claimed_at > ? OR finished_at > ? OR (fence > 0 AND created_at > ?)
        )
    """,
    notes="SELECT at, who, what, why, told FROM workqueue_audit ORDER BY at, rowid",
    put_note="""
        INSERT INTO workqueue_audit SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS (
            SELECT 1 FROM workqueue_audit WHERE at = ? AND who = ? AND what = ? AND why = ? AND told = ?
        )
    """,
    put_pause="INSERT OR IGNORE INTO workqueue_pause VALUES (?, ?, ?, ?)",
)
CLAIMS = "SELECT worker, holder, lease_until, ends_at FROM task WHERE state = 'running'"


class SqliteWhole(Whole):
    """Of the file at `path`, which a `SqliteLedger` has made."""

    def __init__(self, path: str) -> None:
        super().__init__(SQL)
        self._path = os.path.abspath(path)
        self.place = f"sqlite:{self._path}"
        self._db = self._connect()
        self.board = SqlBoard(BOARD, self.run)
        try:
            self.identity = identity_of(self._path, self._execute("PRAGMA application_id").fetchone()[0])
        except BaseException:
            self._db.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(self._path, timeout=WAIT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerUnreachable(self.place, words(self._path, error)) from error

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise LedgerUnreachable(self.place, words(self._path, error)) from error

    async def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[Any]]:
        cursor = self._execute(statement, values)
        return cursor.rowcount, cursor.fetchall()

    async def many(self, statement: str, rows: Sequence[Row]) -> int:
        try:
            return self._db.executemany(statement, rows).rowcount
        except sqlite3.Error as error:
            raise LedgerUnreachable(self.place, words(self._path, error)) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.rollback()

    alone = transaction

    async def held(self) -> list[str]:
        _, claims = await self.run(CLAIMS)
        folder, here = Path(f"{self._path}.holders"), f"{boot()}-"
        alive = {holder for _, holder, *_ in claims if lives(folder / holder)}
        return sorted(
            {worker for worker, holder, *lease in claims if holder in alive and left_s(here, holder, *lease) > 0}
        )

    async def others(self) -> list[str]:
        """By a lock on what each has locked: none of this process may be in its way."""
        if not hasattr(fcntl, "F_OFD_GETLK"):
            return []
        self._db.close()
        file = os.open(self._path, os.O_RDWR)
        try:
            asked = struct.pack(LOCK, fcntl.F_WRLCK, os.SEEK_SET, *SHARED_BYTES, 0)
            kind, *_, pid = struct.unpack(LOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
        finally:
            os.close(file)
            self._db = self._connect()
        if kind == fcntl.F_UNLCK:
            return []
        return [f"process {pid}" if pid > 0 else "another process"]

    async def seal(self, closed: bool) -> None:
        """Who connects anew is stopped by the bolt."""

    def start(self, after: bytes) -> bytes:
        return after

    async def close(self) -> None:
        self._db.close()
