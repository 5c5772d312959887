"""The ledger in a PostgreSQL database: workers on any number of machines. Leases are measured by its clock alone.

Each statement is its own transaction. A connection that fails is dropped, and the next statement makes a new one: a
statement that got no answer may have been carried out, and all of them may be repeated.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, errors

from workqueue.errors import LedgerLost, LedgerUnreachable
from workqueue.ledger import (
    CANCELLED,
    Cancelling,
    Claimed,
    Conflict,
    Entry,
    Finished,
    LedgerBusy,
    Outcome,
    Sent,
    Taken,
    Transaction,
    postgres_server,
)
from workqueue.ledger.board import SqlBoard
from workqueue.ledger.postgres_block import Blocks
from workqueue.ledger.postgres_schema import BOARD, IDENTITY, closed, migrate
from workqueue.ledger.postgres_server import Server, answering, cut
from workqueue.ledger.postgres_sql import (
    BURY,
    CANCEL,
    CANCEL_ENDED,
    CANCEL_UNKNOWN,
    CLAIM,
    COMPLETE,
    ENTRY,
    ERASE,
    OUTCOMES,
    PRUNE,
    RECORD,
    RELEASE,
    RELEASE_UNTIL,
    RENEW,
    RENEW_ALONE,
    REVIVE,
    SAVE,
    SEEK,
    TO_CANCEL,
)
from workqueue.ledger.texts import text_of

# Executions after which a statement is prepared. Only where the server itself answers: PgBouncer, which shows a process
# number of its own, may give the next statement to another session, where the same name means another statement.
PREPARE_AFTER = 5


LOCK_S = 1.0


class Locked(LedgerBusy):
    """Another transaction has the row, and does not end."""


class PostgresLedger:
    """See `Ledger`. Its tables are created if they do not exist."""

    identity: int

    def __init__(self, url: str) -> None:
        self._server = Server(url)
        self.place = self._server.place
        self._connection: AsyncConnection | None = None
        self._blocks = Blocks(self._connect)
        self._lock, self.board = asyncio.Lock(), SqlBoard(BOARD, self._run)
        self._failed_s, self._failure = 0.0, ""

    async def set_up(self) -> "PostgresLedger":
        """Raises LedgerUnreachable, LedgerClosed."""
        try:
            async with await self._server.connect() as connection, answering(connection):
                self.identity = await migrate(connection, self.place)
        except (psycopg.Error, OSError) as error:
            raise LedgerUnreachable(self.place, self._server.words(error)) from error
        return self

    async def claim(
        self, task_id: UUID, worker: str, lease_s: float, *, kind: str, digest: bytes, alone: bool
    ) -> Claimed | Taken | Finished | Conflict:
        claim = {
            "id": task_id, "worker": text_of(worker), "lease": lease_s, "kind": text_of(kind),
            "digest": digest or None, "alone": alone,
        }  # fmt: skip
        while True:
            try:
                rows = await self._rows(CLAIM, claim)
            except Locked:
                return Taken(LOCK_S)
            for row in rows:
                return Claimed.read(*row)
            for state, fence, left_s, waits, known, attempts, cancel in await self._rows(SEEK, (task_id,)):
                if known is not None and digest and known != digest:
                    return Conflict()
                if state in ("done", "dead", "cancelled"):
                    return Finished(state, fence)
                if cancel is not None and (state == "waiting" or left_s <= 0):
                    await self._change(CANCEL_ENDED, (task_id, fence))
                elif state == "running" or (waits and left_s > 0):
                    return Taken(max(0.0, left_s), attempts)
            # It was pruned, or released, in between.

    async def renew(self, task_id: UUID, fence: int, lease_s: float, *, alone: bool | None = None) -> bool:
        try:
            if alone is None:
                return await self._change(RENEW, (lease_s, task_id, fence))
            return await self._change(RENEW_ALONE, (lease_s, alone, task_id, fence))
        except Locked:  # by the task's own completion, most likely; while it is, nobody can take the claim
            return True

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        with self._server.busy(), closing(self._server.connect_blocking()) as connection:
            return connection.execute(RENEW, (lease_s, task_id, fence)).rowcount == 1

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        return await self._change(COMPLETE, (attempts, result, task_id, fence))

    @asynccontextmanager
    async def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AsyncIterator[Transaction]:
        async with self._blocks.begin(COMPLETE, (attempts, result, task_id, fence)) as transaction:
            yield transaction

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str, *, failed: str = "") -> bool:
        return await self._change(BURY, (attempts, text_of(error), text_of(failed), task_id, fence))

    async def release(
        self,
        task_id: UUID,
        fence: int,
        *,
        attempts: int | None = None,
        error: str | None = None,
        failed: str = "",
        next_s: float = 0.0,
    ) -> bool:
        said = (attempts, None if error is None else text_of(error), text_of(failed))
        if next_s <= 0:
            return await self._change(RELEASE, (*said, task_id, fence))
        return await self._change(RELEASE_UNTIL, (*said, next_s, next_s, task_id, fence))

    async def revive(self, task_id: UUID, fence: int, *, told: str = "") -> bool:
        return await self._change(REVIVE, (text_of(told), task_id, fence))

    async def save(self, task_id: UUID, fence: int, checkpoint: str) -> bool:
        return await self._change(SAVE, (text_of(checkpoint), task_id, fence))

    async def cancel(self, task_id: UUID, told: str) -> Cancelling:
        asked = {"id": task_id, "told": f"{CANCELLED}: {text_of(told)}"}
        while True:
            for (state,) in await self._rows(CANCEL, asked):
                return "cancelled" if state == "dead" else "asked"
            if await self._change(CANCEL_UNKNOWN, asked):
                return "cancelled"
            for state, *_ in await self._rows(SEEK, (task_id,)):
                if state in ("done", "dead", "cancelled"):
                    return cast(Cancelling, state)
            # It was pruned, or revived, in between.

    async def to_cancel(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        return dict(await self._rows(TO_CANCEL, (list(ids),)))

    async def record(self, sent: Sequence[Sent]) -> None:
        # In order, so that two who record the same tasks never wait for each other in a circle.
        ids, kinds, digests = zip(*sorted(sent), strict=True)
        await self._execute(RECORD, (list(ids), [text_of(kind) for kind in kinds], list(digests)))

    async def entry(self, task_id: UUID) -> Entry | None:
        rows = await self._rows(ENTRY, (task_id,))
        return Entry(*rows[0]) if rows else None

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        return [Outcome(*row) for row in await self._rows(OUTCOMES, (list(ids),))]

    async def forget(self, task_id: UUID) -> bool:
        return await self._change(ERASE, (task_id,))

    async def prune(self, older_than_s: float) -> int:
        return (await self._execute(PRUNE, (older_than_s,))).rowcount

    async def close(self) -> None:
        await self._blocks.close()
        await self._drop()

    async def _rows(self, statement: str, values: Any) -> list[tuple[Any, ...]]:
        return await (await self._execute(statement, values)).fetchall()

    async def _run(self, statement: str, values: Sequence[Any]) -> tuple[int, list[Any]]:
        cursor = await self._execute(statement, values)
        return cursor.rowcount, [] if cursor.description is None else await cursor.fetchall()

    async def _change(self, statement: str, values: Any) -> bool:
        return (await self._execute(statement, values)).rowcount == 1

    async def _execute(self, statement: str, values: Any) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        asked_s = time.monotonic()
        await self._turn()
        try:
            if self._failed_s > asked_s:  # while this statement waited for its turn: it would find the same
                raise LedgerBusy(self._failure)
            connection = self._connection = self._connection or await self._connect_impatient()
            timer = asyncio.get_running_loop().call_later(postgres_server.ANSWER_S, cut, connection)
            try:
                return await connection.execute(statement, values)
            finally:
                timer.cancel()
        except errors.LockNotAvailable as error:
            raise Locked(self._server.words(error)) from error
        except (psycopg.Error, OSError) as error:
            self._failed_s, self._failure = time.monotonic(), self._server.words(error)
            await self._drop()
            raise LedgerBusy(self._failure) from error
        finally:
            self._lock.release()

    async def _turn(self) -> None:
        if not self._lock.locked():
            await self._lock.acquire()
            return
        try:
            async with asyncio.timeout(postgres_server.ANSWER_S):
                await self._lock.acquire()
        except TimeoutError:
            raise LedgerBusy(f"no answer for {postgres_server.ANSWER_S:g} s, to others either") from None

    async def _connect_impatient(self) -> AsyncConnection:
        """One on which no statement waits for long for a lock: the transaction of a host that died inside its
        completion holds its row until the server misses that host."""
        connection = await self._connect()
        if connection.prepare_threshold is not None:  # through PgBouncer, a setting may reach another session
            try:
                async with answering(connection):
                    await connection.execute(f"SET lock_timeout = '{LOCK_S}s'")
            except BaseException:
                await connection.close()
                raise
        return connection

    async def _connect(self) -> AsyncConnection:
        """Raises LedgerLost if another ledger is there now."""
        connection = await self._server.connect()
        try:
            async with answering(connection):
                found = await (await connection.execute(IDENTITY)).fetchone()
                if found is not None and int(found[0]) == -self.identity and (why := await closed(connection)):
                    raise LedgerLost(self.place, *f"it {why}".rsplit("; ", 1))
        except BaseException:
            await connection.close()
            raise
        identity, backend_pid = found or (None, None)
        if identity is not None and int(identity) != self.identity:
            await connection.close()
            raise LedgerLost(self.place, "another one was put in its place")
        if backend_pid == connection.info.backend_pid:
            connection.prepare_threshold = PREPARE_AFTER
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
