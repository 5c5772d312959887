"""The file of a SQLite ledger: made, migrated, and watched, so that it stays the same one while the process lives."""

import errno
import fcntl
import os
import secrets
import sqlite3
import time
from hashlib import blake2b
from pathlib import Path

from workqueue.errors import LedgerClosed, LedgerLost, LedgerUnreachable
from workqueue.ledger import SCHEMA_VERSION, LedgerBusy
from workqueue.ledger.board import Statements
from workqueue.ledger.clock import LastLook, boot, steady_s
from workqueue.ledger.door import CLOSED, Door
from workqueue.ledger.sqlite_guard import Guard, guard_of, inode
from workqueue.ledger.sqlite_sql import SHOWN

SET_UP_S = 10.0
PAGE_BYTES = 1024  # each change writes its whole page, of rows of some 250 bytes: 4096 takes a third longer

# By minor version. The first is the one that had no number.
MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS task (
    id BLOB PRIMARY KEY, state TEXT NOT NULL, fence INTEGER NOT NULL, crashes TEXT NOT NULL DEFAULT '',
    holder TEXT NOT NULL, worker TEXT NOT NULL, lease_until REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, result TEXT, error TEXT, finished_at REAL
) WITHOUT ROWID
""",
    """
ALTER TABLE task ADD COLUMN kind TEXT;
ALTER TABLE task ADD COLUMN digest BLOB;
ALTER TABLE task ADD COLUMN alone INTEGER; -- the fence of the claim, if its task was alone in the process
ALTER TABLE task ADD COLUMN ends_at REAL; -- `lease_until` by the steady clock of the boot that the holder names
ALTER TABLE task ADD COLUMN next_at REAL; -- not claimed before, while it equals `lease_until`
ALTER TABLE task ADD COLUMN created_at INTEGER;
ALTER TABLE task ADD COLUMN claimed_at INTEGER; -- if it was claimed again: its latest claim
ALTER TABLE task ADD COLUMN last_error TEXT
""",
    """
ALTER TABLE task ADD COLUMN story TEXT; -- the attempts that failed, a line for each
ALTER TABLE task ADD COLUMN checkpoint TEXT; -- what an attempt left for the next one
ALTER TABLE task ADD COLUMN cancel TEXT; -- that it is to be cancelled. It is once that is its error
CREATE TABLE IF NOT EXISTS workqueue_pause (
    queue TEXT PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS workqueue_worker (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, seen_at REAL NOT NULL, told TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS workqueue_audit (
    at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, why TEXT NOT NULL, told TEXT NOT NULL
)
""",
    "",  # only PostgreSQL loses answers
)
NOW = "(julianday('now') - 2440587.5) * 86400.0"  # Unix time; unixepoch has whole seconds only
BOARD = Statements(
    put=f"INSERT OR REPLACE INTO workqueue_worker VALUES (?, ?, {NOW}, ?)",
    remove="DELETE FROM workqueue_worker WHERE id = ?",
    seen=f"""
        SELECT id, name, max(0.0, {NOW} - seen_at) AS seen_s, told FROM workqueue_worker
        WHERE seen_s < ? ORDER BY name
    """,
    forget=f"DELETE FROM workqueue_worker WHERE seen_at < {NOW} - ?",
    pause=f"INSERT OR IGNORE INTO workqueue_pause VALUES (?, {NOW}, ?, ?)",
    resume="DELETE FROM workqueue_pause WHERE queue = ?",
    pauses="SELECT queue, at, who, why FROM workqueue_pause ORDER BY queue",
    note=f"INSERT INTO workqueue_audit VALUES ({NOW}, ?, ?, ?, ?)",
    notes="SELECT at, who, what, why, told FROM workqueue_audit ORDER BY at DESC, rowid DESC LIMIT ?",
    # The word before the colon of an error that may be 100 kB long.
    deaths=f"""
        SELECT coalesce(kind, ''), substr(substr(error, 1, 16), 1, max(0, instr(substr(error, 1, 16), ': ') - 1)),
            count(*), sum(finished_at > {NOW} - 3600), max(finished_at)
        FROM task WHERE state = 'dead' AND error IS NOT cancel GROUP BY 1, 2
    """,
    overdue=f"""
        SELECT coalesce(kind, ''), count(*), min(lease_until), min(hex(id))
        FROM task WHERE {SHOWN} = 'waiting' AND lease_until < {NOW} - ? GROUP BY 1
    """,
    tasks=f"""
        SELECT hex(id), kind, attempts, iif(at < {NOW}, at, NULL), worker,
            iif(shown = 'waiting' AND next_at = lease_until AND next_at > {NOW}, next_at, NULL),
            substr(said, 1, instr(said || char(10), char(10)) - 1)
        FROM (
            SELECT *, coalesce(error, cancel) AS said, coalesce(
                finished_at, iif(shown = 'running', coalesce(claimed_at, created_at), NULL), lease_until
            ) AS at
            FROM (SELECT *, {SHOWN} AS shown FROM task)
        )
        WHERE shown = ? AND coalesce(kind, '') = coalesce(?, kind, '') AND {NOW} - at > ? ORDER BY at, id LIMIT ?
    """,
    locks="SELECT 0 WHERE 0",  # it has no rows' locks, and no way to tell who has the file's
)

META = "CREATE TABLE IF NOT EXISTS workqueue_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"

MAGIC = b"SQLite format 3\0"
IDENTITY_AT = 68  # the application id, https://www.sqlite.org/fileformat.html
FILES = ("", "-wal", "-shm")
PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
"""Errors that may be gone at the next try."""


class SqliteFile:
    """The database at `path`, which is created if it does not exist, readable for its owner only."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        guard: Guard | None = None
        opened: sqlite3.Connection | None = None
        try:
            Path(self.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.holders.mkdir(mode=0o700, exist_ok=True)
            # Two processes that switch to WAL mode at once are both told that the other one has it locked.
            with open(self.holders / "set-up", "w") as one_at_a_time:
                fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
                _keep_log(self.path)
                self._guard = guard = guard_of(self.path)
                self.db = opened = self.connect(SET_UP_S)
                self._set_up(self.db)
                guard.lock(f"{self.path}-shm")
                self._known: dict[str, tuple[int, int]] = {}
                for suffix in FILES:
                    self.watch(f"{self.path}{suffix}")
        except (OSError, sqlite3.Error, LedgerClosed) as error:
            if guard is not None:
                with guard.leaving():
                    if opened is not None:
                        opened.close()
            if isinstance(error, LedgerClosed):
                raise
            raise LedgerUnreachable(f"sqlite:{path}", words(path, error)) from error

    @property
    def identity(self) -> int:
        return identity_of(self.path, self._number)

    @property
    def holders(self) -> Path:
        return Path(f"{self.path}.holders")

    def connect(self, timeout_s: float) -> sqlite3.Connection:
        """A connection for any thread, one at a time."""
        db = sqlite3.connect(self.path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        # In WAL mode a commit survives the death of the process; only a power cut can take back the last ones,
        # whose tasks then are done but forgotten (https://www.sqlite.org/pragma.html#pragma_synchronous).
        try:
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
        except sqlite3.Error:  # such as of a file that is no database
            db.close()
            raise
        return db

    def watch(self, path: str) -> None:
        self._known[path] = inode(path)

    def look(self) -> None:
        """Raises LedgerLost if what lies at the paths is not what was opened."""
        try:
            for path, known in self._known.items():
                if inode(path) != known:
                    raise LedgerLost(self.path, f"{path} was replaced")
            head = self._guard.read(IDENTITY_AT + 4)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LedgerLost(self.path, f"{error.filename} was deleted") from error
        except OSError as error:
            raise LedgerBusy(words(self.path, error)) from error
        written = int.from_bytes(head[IDENTITY_AT:], "big")
        if not head.startswith(MAGIC) or written not in (0, self._number):  # 0: it is in the log still
            raise LedgerLost(self.path, "it was overwritten")

    @staticmethod
    def now() -> LastLook:
        return LastLook(time.time(), boot(), steady_s())

    def meaning(self, error: sqlite3.Error) -> LedgerBusy | LedgerLost:
        """What can pass is LedgerBusy; what can't (malformed, not a database, no such table) LedgerLost."""
        try:
            self.look()
        except (LedgerBusy, LedgerLost) as seen:
            return seen
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_TRIGGER:  # that of a ledger which was moved
            return LedgerLost(self.path, *str(error).rsplit("; ", 1))
        if error.sqlite_errorcode & 0xFF in PASSING and error.sqlite_errorcode != sqlite3.SQLITE_READONLY_DBMOVED:
            return LedgerBusy(words(self.path, error))
        return LedgerLost(self.path, str(error))

    def close(self) -> None:
        with self._guard.leaving():
            self.db.close()

    def _set_up(self, db: sqlite3.Connection) -> None:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        db.execute(META)
        found = db.execute("SELECT value FROM workqueue_meta WHERE key = 'schema_version'").fetchone()
        major, minor = map(int, found[0].split(".")) if found else (SCHEMA_VERSION[0], -1)
        if major == CLOSED and (why := Door.read(dict(db.execute("SELECT key, value FROM workqueue_meta"))).why):
            raise LedgerClosed(self.path, why)
        if major != SCHEMA_VERSION[0]:
            raise sqlite3.DatabaseError(f"its schema is of version {major}, and this program's of {SCHEMA_VERSION[0]}")
        for statements in MIGRATIONS[minor + 1 :]:
            for statement in filter(None, statements.split(";")):
                db.execute(statement)
        if minor < SCHEMA_VERSION[1]:
            version = f"{SCHEMA_VERSION[0]}.{SCHEMA_VERSION[1]}"
            db.execute("INSERT OR REPLACE INTO workqueue_meta VALUES ('schema_version', ?)", (version,))
        (self._number,) = db.execute("PRAGMA application_id").fetchone()
        if self._number < 2:
            self._number = 2 + secrets.randbelow(2**31 - 2)
            db.execute(f"PRAGMA application_id = {self._number}")
        db.execute("INSERT OR IGNORE INTO workqueue_meta VALUES ('clock', ?)", (str(self.now()),))
        db.execute("COMMIT")
        db.execute("PRAGMA busy_timeout = 0")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def words(path: str, error: sqlite3.Error | OSError) -> str:
    """What went wrong with the database at the path, in one line."""
    if isinstance(error, OSError):
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:  # one of the library's own, such as of a connection that is closed, has no code
        is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return f"the disk of {path} {LedgerUnreachable.DISK_FULL}: {error}" if is_full else str(error)


def identity_of(path: str, number: int) -> int:
    """A copy of the file is another ledger from then on: its number is the same, its place on the disk is not."""
    place = f"{number} {inode(path)}".encode()
    return 2 + int.from_bytes(blake2b(place, digest_size=8).digest(), "big") % (2**31 - 2)


def _keep_log(path: str) -> None:
    """Raises FileNotFoundError where just the log of a database is there: SQLite would throw it away as it makes a new
    one (https://www.sqlite.org/fileformat.html#walformat), and with it what was committed last."""
    log = f"{path}-wal"
    if _size(log) and not _size(path):
        raise FileNotFoundError(f"it is gone, and its log {log} is not: put it back beside that, or move the log away")


def is_there(path: str) -> bool:
    """Whether a database lies at the path. Raises LedgerUnreachable where just its log does, or it can't be told."""
    try:
        _keep_log(path)
        return _size(path) > 0
    except OSError as error:
        raise LedgerUnreachable(f"sqlite:{path}", words(path, error)) from error


def _size(path: str) -> int:
    """0 where there is no such file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
