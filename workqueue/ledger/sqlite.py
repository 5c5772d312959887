"""The ledger in a SQLite file: any number of processes on one machine.

Statements run on the event loop's own thread: one takes some 10 microseconds, a hop to a thread several times that.
A process that dies without a word is noticed at once, not at the end of its lease: while it lives it holds a lock on
a file of its own beside the database, and the kernel drops the lock with the process. One that is merely frozen
keeps its lock, and its claims, until their leases end. Leases are measured by a clock that nobody sets; the wall
clock's times beside them are for people, for pruning, and for workers of the version before, which know no other.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, cast
from uuid import UUID, uuid4

from workqueue.ledger import (
    CANCELLED,
    FIRST,
    Cancelling,
    Claimed,
    Conflict,
    Entry,
    Finished,
    Outcome,
    Sent,
    Taken,
    Transaction,
)
from workqueue.ledger.board import SqlBoard
from workqueue.ledger.clock import DOUBT_S, JUMP_S, SHORTEST_JUMP_S, LastLook, steady_s
from workqueue.ledger.sqlite_block import Blocks
from workqueue.ledger.sqlite_file import BOARD, SqliteFile
from workqueue.ledger.sqlite_holders import Holders
from workqueue.ledger.sqlite_sql import (
    AGAIN,
    AT_ONCE,
    BURY,
    CANCEL,
    CANCEL_ENDED,
    CANCEL_UNKNOWN,
    CHECK,
    COMPLETE,
    ENTRY,
    ERASE,
    FORGET,
    IS_DONE,
    NEW,
    OUTCOMES,
    RECORD,
    RELEASE,
    RELEASE_UNTIL,
    RENEW,
    RENEW_ALONE,
    REVIVE,
    SAVE,
    SEEK,
    SENT,
    STRETCH_END,
    TELL,
    TO_CANCEL,
)
from workqueue.ledger.texts import text_of

BLOCKING_S = 5.0  # the same where nothing else goes on
BUSY_S = 0.05  # a statement waits so long for another process's transaction before it is LedgerBusy
SPIN_S = 0.002  # of these without letting others on the event loop act: nearly every transaction is over by then
LOOK_AGAIN_S = 20e-6  # between two tries: a transaction takes about as long; SQLite itself would wait 1 ms, then more
LOG_BYTES = 8_000_000  # of write-ahead log, before it is copied back
LOOK_EVERY_S = 0.1  # at the file, and at the length of the log: it takes some 10 microseconds
SENT_AT_ONCE = 300

log = logging.getLogger(__name__)


class SqliteLedger:
    """See `Ledger`. `path` is created with its folder if it does not exist."""

    keeps_requests = False  # no answer is lost

    def __init__(self, path: str) -> None:
        self._file = SqliteFile(path)
        self._db, self.identity, self.place = self._file.db, self._file.identity, self._file.path
        self._blocks, self.board = Blocks(self._file), SqlBoard(BOARD, self._execute)
        self._look_at_s = 0.0
        self._holders, self._holder = Holders(self._file), ""
        self._boot = self._holders.boot

    async def check(self) -> None:
        await self._execute(CHECK, (str(uuid4()),))

    async def claim(
        self, task_id: UUID, worker: str, lease_s: float, *, kind: str, digest: bytes, alone: bool,
        request: UUID | None = None, adopts: UUID | None = None,
    ) -> Claimed | Taken | Finished | Conflict:  # fmt: skip
        if not self._holder:
            self._holder = self._holders.hold()
        dead = ""
        while True:
            now, steady = time.time(), steady_s()
            claim = (
                task_id.bytes, self._holder, worker, now + lease_s, steady + lease_s, kind, digest or None, alone, now
            )  # fmt: skip
            if (await self._execute(NEW, claim))[0]:
                return FIRST
            for row in (await self._execute(AGAIN, (*claim, dead, steady, self._boot)))[1]:
                return Claimed.read(*row)
            for row in (await self._execute(SEEK, (task_id.bytes,)))[1]:
                state, fence, holder, lease_until, ends_at, next_at, known, attempts, cancel = row
                if known is not None and digest and known != digest:
                    return Conflict()
                if state in ("done", "dead", "cancelled"):
                    return Finished(state, fence)
                left_s = self._holders.left_s(holder, lease_until, ends_at)
                gone = state == "running" and not self._holders.alive(holder)
                if cancel is not None and (state == "waiting" or gone or left_s <= 0):
                    await self._execute(CANCEL_ENDED, (now, task_id.bytes, fence))
                elif gone and dead != holder:
                    dead = holder
                elif state == "running" or (next_at == lease_until and left_s > 0):
                    return Taken(max(0.0, left_s), attempts, state != "running")
            # It was pruned, or released, in between; or its holder is dead.

    async def renew(self, task_id: UUID, fence: int, lease_s: float, *, alone: bool | None = None) -> bool:
        ends = (time.time() + lease_s, steady_s() + lease_s)
        if alone is None:
            return await self._change(RENEW, (*ends, task_id.bytes, fence))
        return await self._change(RENEW_ALONE, (*ends, alone, task_id.bytes, fence))

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        try:
            self._file.look()
            with closing(self._file.connect(BLOCKING_S)) as db:
                ends = (time.time() + lease_s, steady_s() + lease_s)
                return db.execute(RENEW, (*ends, task_id.bytes, fence)).rowcount == 1
        except sqlite3.Error as error:
            raise self._file.meaning(error) from error

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        done = (result, attempts, time.time(), task_id.bytes, fence)
        return await self._change(COMPLETE, done) or bool((await self._execute(IS_DONE, done[-2:]))[1])

    @asynccontextmanager
    async def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AsyncIterator[Transaction]:
        complete = (COMPLETE, (result, attempts, time.time(), task_id.bytes, fence))
        async with self._blocks.begin(*complete) as transaction:
            yield transaction

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str, *, failed: str = "") -> bool:
        said = (text_of(error), text_of(failed))
        return await self._change(BURY, (*said, attempts, time.time(), task_id.bytes, fence))

    async def release(
        self, task_id: UUID, fence: int, *, attempts: int | None = None, error: str | None = None, failed: str = "",
        next_s: float = 0.0,
    ) -> bool:  # fmt: skip
        said = (attempts, None if error is None else text_of(error), text_of(failed))
        if next_s <= 0:
            return await self._change(RELEASE, (*said, task_id.bytes, fence))
        next_at = time.time() + next_s
        ends = (next_at, next_at, steady_s() + next_s)
        return await self._change(RELEASE_UNTIL, (*said, *ends, task_id.bytes, fence))

    async def revive(self, task_id: UUID, fence: int, *, told: str = "") -> bool:
        return await self._change(REVIVE, (text_of(told), time.time(), task_id.bytes, fence))

    async def tell(self, task_id: UUID, fence: int, said: str, told: str) -> bool:
        return await self._change(TELL, (text_of(said), text_of(told), task_id.bytes, fence))

    async def save(self, task_id: UUID, fence: int, checkpoint: str) -> bool:
        return await self._change(SAVE, (text_of(checkpoint), task_id.bytes, fence))

    async def cancel(self, task_id: UUID, told: str) -> Cancelling:
        told = f"{CANCELLED}: {text_of(told)}"
        while True:
            asked = (task_id.bytes, told, now := time.time())
            changed = (await self._execute(CANCEL, asked))[1]
            if changed == [("dead",)] or (not changed and (await self._execute(CANCEL_UNKNOWN, asked))[0]):
                return "cancelled"
            for state, fence, *claim in (await self._execute(SEEK, (task_id.bytes,)))[1]:
                if state in ("done", "dead", "cancelled"):
                    return cast(Cancelling, state)
                holder, lease_until, ends_at = claim[:3]
                if not self._holders.held(holder, lease_until, ends_at):
                    await self._execute(CANCEL_ENDED, (now, task_id.bytes, fence))  # nobody is there to end it
                elif changed:
                    return "asked"
            # It was pruned, or revived, in between.

    async def to_cancel(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        found: dict[UUID, str] = {}
        for start in range(0, len(ids), AT_ONCE):
            some = [task_id.bytes for task_id in ids[start : start + AT_ONCE]]
            _, rows = await self._execute(TO_CANCEL.format(", ".join("?" * len(some))), some)
            found |= {UUID(bytes=task_id): told for task_id, told in rows}
        return found

    async def record(self, sent: Sequence[Sent]) -> None:
        for start in range(0, len(sent), SENT_AT_ONCE):
            some = sent[start : start + SENT_AT_ONCE]
            values = (value for task in some for value in (task.id.bytes, task.kind, task.digest))
            await self._execute(RECORD.format(", ".join([SENT] * len(some))), (time.time(), *values))

    async def entry(self, task_id: UUID) -> Entry | None:
        for row in (await self._execute(ENTRY, (task_id.bytes,)))[1]:
            state, kind, digest, worker, holder, lease_until, ends_at, *rest = row
            held = state == "running" and self._holders.held(holder, lease_until, ends_at)
            return Entry(task_id, state, kind, digest, worker, held, *rest)
        return None

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        found: list[Outcome] = []
        for start in range(0, len(ids), AT_ONCE):
            some = [task_id.bytes for task_id in ids[start : start + AT_ONCE]]
            _, rows = await self._execute(OUTCOMES.format(", ".join("?" * len(some))), some)
            found += [Outcome(UUID(bytes=row[0]), *row[1:]) for row in rows]
        return found

    async def forget(self, task_id: UUID) -> bool:
        await self._execute("PRAGMA secure_delete = ON", ())  # its bytes do not stay in the file
        return await self._change(ERASE, (task_id.bytes,))

    async def prune(self, older_than_s: float) -> int:
        if not await self._clock_is_right(older_than_s):
            return 0
        # No index by age: every completion would pay for it. Some tasks at a time: nobody waits long for the others.
        before, last, forgotten = time.time() - older_than_s, b"", 0
        while True:
            _, ((end,),) = await self._execute(STRETCH_END, (last,))
            if end is None:
                return forgotten
            forgotten += (await self._execute(FORGET, (last, end, before)))[0]
            last = end
            await asyncio.sleep(0)

    async def _clock_is_right(self, older_than_s: float) -> bool:
        """Not if it is much further ahead than time has passed: what it calls old may have been finished just now."""
        _, ((text,),) = await self._execute("SELECT value FROM workqueue_meta WHERE key = 'clock'", ())
        jump_s = max(SHORTEST_JUMP_S, min(JUMP_S, older_than_s / 4))
        now = self._file.now()
        seen = LastLook.read(text).next(now.wall_s, now.boot, now.steady_s, jump_s)
        await self._execute("UPDATE workqueue_meta SET value = ? WHERE key = 'clock'", (str(seen),))
        if seen.doubted_at_s is not None:
            ahead_s = now.wall_s - seen.wall_s - (now.steady_s - seen.steady_s)
            log.warning(
                "the clock went ahead by %.0f s; %s forgets nothing until it has stayed so for %.0f s",
                ahead_s, self.place, DOUBT_S,
            )  # fmt: skip
        return seen.doubted_at_s is None

    async def close(self) -> None:
        await self._blocks.close()
        self._file.close()
        self._holders.close()
        self._holder = ""

    async def _change(self, change: str, values: Sequence[Any]) -> bool:
        return (await self._execute(change, values))[0] == 1

    async def _execute(self, statement: str, values: Sequence[Any]) -> tuple[int, list[Any]]:
        """How many rows it changed, and those that it gave."""
        if self._blocks.open is not None and not statement.lstrip().startswith("SELECT"):
            await self._blocks.ended()
        now_s = steady_s()
        if now_s > self._look_at_s:
            self._file.look()
            self._checkpoint()
            self._look_at_s = now_s + LOOK_EVERY_S
        again = int(SPIN_S / LOOK_AGAIN_S)
        while True:
            try:
                cursor = self._db.execute(statement, values)
                return cursor.rowcount, cursor.fetchall()
            except sqlite3.Error as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or steady_s() - now_s > BUSY_S:
                    raise self._file.meaning(error) from error
            again -= 1
            if again > 0:
                time.sleep(LOOK_AGAIN_S)  # noqa: ASYNC251  # a turn of the event loop takes longer
            else:
                await asyncio.sleep(SPIN_S)

    def _checkpoint(self) -> None:
        """Copy a long log back into the file, and start it anew.

        SQLite would do the first after every change, with two syncs of the disk, for as long as some other process is
        just reading and so keeps it from doing the second: with three busy workers, nearly always.
        """
        with suppress(OSError, sqlite3.OperationalError):  # the next look will do
            if os.stat(f"{self.place}-wal").st_size > LOG_BYTES:
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # stops nobody, and leaves little for the next
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
