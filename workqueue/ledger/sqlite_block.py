"""Transactions of handlers on a SQLite ledger: one at a time, in a thread, so that the event loop goes on meanwhile."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from workqueue.ledger import ClaimLost, LedgerBusy, Rows, Transaction
from workqueue.ledger.sqlite_file import PASSING, SqliteFile
from workqueue.ledger.transaction import Values

R = TypeVar("R")

BEGIN_S = 60.0  # how long a block waits for the transactions of other processes; its claim is renewed meanwhile
BEGIN_AGAIN_S = 0.005
SILENT_S = 1.0
BLOCK_S = 5.0  # how long a statement waits for a block of its own process

log = logging.getLogger(__name__)


class Blocks:
    """`open` ends with the block that is being carried out; None if there is none."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._db: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="completion")
        self.open: asyncio.Future[None] | None = None
        self._waiting = 0
        self._failure: sqlite3.Error | None = None  # of the open block, by the ledger

    async def ended(self) -> None:
        """Wait until the open block has ended: nobody else can write before. Raises LedgerBusy if that takes long."""
        block = self.open
        if block is None:
            return
        self._waiting += 1
        try:
            await asyncio.wait([block], timeout=BLOCK_S)
        finally:
            self._waiting -= 1
        if not block.done():
            raise LedgerBusy("a completion of this process takes long")

    @asynccontextmanager
    async def begin(self, change: str, values: Sequence[Any]) -> AsyncIterator[Transaction]:
        """A transaction that begins with this change. Raises ClaimLost if it changes nothing, and LedgerBusy, also
        where the disk was full for a statement of the block or its commit: that is no failure of the handler's."""
        async with self._turn:
            if self._waiting:
                await asyncio.sleep(BEGIN_AGAIN_S)  # first those who waited for the block before
            db = await self._begin()
            self.open, self._failure = asyncio.get_running_loop().create_future(), None
            try:
                # First: a claim that was lost must not begin an effect.
                try:
                    changed = await self._run(db, change, values)
                except sqlite3.Error as error:
                    raise self._file.meaning(error) from error
                if changed.rowcount != 1:
                    raise ClaimLost
                with Transaction(lambda statement, given: self._run(db, statement, given)) as transaction:
                    yield transaction
                await self._in_thread(lambda: self._noted(lambda: _commit(db)))
            except Exception as error:
                if self._failure is not None:  # whatever came of that in the block
                    raise self._file.meaning(self._failure) from error
                raise
            finally:
                try:
                    await self._in_thread(db.rollback)  # does nothing after the commit
                except sqlite3.Error:
                    db.close()  # which rolls back too
                    self._db = None
                finally:
                    self.open.set_result(None)
                    self.open = None

    async def close(self) -> None:
        self._thread.shutdown(wait=False)
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _begin(self) -> sqlite3.Connection:
        """The connection, with a transaction in which nobody else can write."""
        began_s, told = time.monotonic(), False
        while True:
            try:
                if self._db is None:
                    self._file.look()
                    self._db = self._file.connect(0.0)
                self._db.execute("BEGIN IMMEDIATE")
                return self._db
            except sqlite3.Error as error:
                meaning, waited_s = self._file.meaning(error), time.monotonic() - began_s
                if waited_s > BEGIN_S or not isinstance(meaning, LedgerBusy):
                    raise meaning from error
                if waited_s > SILENT_S and not told:
                    log.warning("a completion waits for the ledger: %s", meaning)
                    told = True
            await asyncio.sleep(BEGIN_AGAIN_S)

    async def _run(self, db: sqlite3.Connection, statement: str, values: Values) -> Rows:
        def execute() -> Rows:
            _check(db)
            cursor = db.execute(statement, values)
            return Rows(cursor.fetchall(), cursor.rowcount)

        return await self._in_thread(lambda: self._noted(execute))

    def _noted(self, call: Callable[[], R]) -> R:
        """What fails by the ledger, and not by the statement, is kept for the end of the block."""
        try:
            return call()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
                self._failure = error
            raise

    async def _in_thread(self, call: Callable[[], R]) -> R:
        running = asyncio.get_running_loop().run_in_executor(self._thread, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                if self._db is not None:
                    self._db.interrupt()  # ends a statement at once, and a commit not
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running], timeout=0.1)
            running.exception()
            raise


def _commit(db: sqlite3.Connection) -> None:
    _check(db)
    db.commit()


def _check(db: sqlite3.Connection) -> None:
    """Raises OperationalError where a statement that failed has ended the transaction: a full disk does, INSERT OR
    ROLLBACK, RAISE(ROLLBACK) in a trigger. What followed would be committed by itself."""
    if not db.in_transaction:
        raise sqlite3.OperationalError("a statement of the completion failed, and nothing of it can be committed")
