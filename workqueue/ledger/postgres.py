"""The ledger in a PostgreSQL database: workers on any number of machines. Leases are measured by its clock alone.

Each statement is its own transaction. Claims and completions, which are most of what is asked, go together in
statements for many tasks (`postgres_batch`).
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

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
)
from workqueue.ledger.board import Lock, SqlBoard
from workqueue.ledger.postgres_batch import Batch
from workqueue.ledger.postgres_block import Blocks
from workqueue.ledger.postgres_pool import Locked, Pool
from workqueue.ledger.postgres_schema import BOARD, IDENTITY, closed, migrate
from workqueue.ledger.postgres_server import ANSWER_S, Server, answering
from workqueue.ledger.postgres_session import PREPARE_AFTER
from workqueue.ledger.postgres_sql import (
    ADOPT,
    BURY,
    CANCEL,
    CANCEL_ENDED,
    CANCEL_UNKNOWN,
    CLAIM,
    CLAIM_MANY,
    COMPLETE,
    COMPLETE_MANY,
    ENTRY,
    ERASE,
    IS_DONE,
    LOCKS_OF_ROW,
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
    TELL,
    TO_CANCEL,
)
from workqueue.ledger.texts import text_of

A = TypeVar("A")

AT_MOST_NAMED = 3  # where a row is locked by several
LOCK_S = 1.0
# A host that died inside a task's completion holds the row until the server misses that host: no statement waits for
# that. A prepared statement may keep the plan that was best for an empty table, which is to read all of it. Pruning has
# to, and PostgreSQL would think that compiling it pays. A statement that waits for one lock after the other ends before
# it is given up: else it would claim a task for nobody, at last.
FOR_STATEMENTS = f"""
SET lock_timeout = '{LOCK_S}s'; SET statement_timeout = '{0.9 * ANSWER_S}s'; SET enable_seqscan = off; SET jit = off
"""


class PostgresLedger:
    """See `Ledger`. Its tables are created if they do not exist."""

    keeps_requests = True
    identity: int

    def __init__(self, url: str) -> None:
        self._server = Server(url)
        self.place = self._server.place
        self._pool, self._blocks = Pool(self._connect_for_statements, self._server.words), Blocks(self._connect)
        self._claims = Batch(self._pool, CLAIM, CLAIM_MANY)
        self._completions = Batch(self._pool, COMPLETE, COMPLETE_MANY)
        self.board = SqlBoard(BOARD, partial(self._pool.execute, is_urgent=False))

    async def set_up(self) -> "PostgresLedger":
        """Raises LedgerUnreachable, LedgerClosed."""
        try:
            async with await self._server.connect() as connection, answering(connection):
                self.identity = await migrate(connection, self.place)
        except (psycopg.Error, OSError) as error:
            raise LedgerUnreachable(self.place, self._server.words(error)) from error
        return self

    async def check(self) -> None:
        """The claim of no task: it needs the same rights and the same lock."""
        await self._pool.execute(CLAIM_MANY, ([],) * CLAIM.count("%s"), is_urgent=False)

    async def claim(
        self, task_id: UUID, worker: str, lease_s: float, *, kind: str, digest: bytes, alone: bool,
        request: UUID | None = None, adopts: UUID | None = None,
    ) -> Claimed | Taken | Finished | Conflict:  # fmt: skip
        claim = (task_id, text_of(worker), float(lease_s), text_of(kind), digest or None, alone, request)
        if adopts is not None:
            await self._change(task_id, ADOPT, (request, task_id, adopts))
        while True:
            try:
                claimed = await self._claims.ask(task_id, claim)
            except Locked:
                await self.check()  # where all of the table is locked, nobody has the task
                return Taken(LOCK_S)
            if claimed is not None:
                return Claimed.read(*claimed[1:])
            for state, fence, left_s, waits, known, attempts, cancel, made in await self._rows(SEEK, (task_id,)):
                if known is not None and digest and known != digest:
                    return Conflict()
                if state in ("done", "dead", "cancelled"):
                    return Finished(state, fence)
                if cancel is not None and (state == "waiting" or left_s <= 0):
                    await self._change(task_id, CANCEL_ENDED, (task_id, fence))
                elif state == "running" or (waits and left_s > 0) or (made is not None and made == request):
                    return Taken(max(0.0, left_s), attempts, state != "running")
            # It was pruned, or released, in between.

    async def renew(self, task_id: UUID, fence: int, lease_s: float, *, alone: bool | None = None) -> bool:
        try:
            if alone is None:
                return await self._change(task_id, RENEW, (lease_s, task_id, fence))
            return await self._change(task_id, RENEW_ALONE, (lease_s, alone, task_id, fence))
        except Locked:  # by the task's own completion, most likely; while it is, nobody can take the claim
            return True

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        with self._server.busy(), closing(self._server.connect_blocking()) as connection:
            return connection.execute(RENEW, (lease_s, task_id, fence)).rowcount == 1

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        complete = self._completions.ask(task_id, (attempts, result, task_id, fence))
        if await self._of(task_id, complete) is not None:
            return True
        return bool(await self._rows(IS_DONE, (task_id, fence)))  # before, and the answer was lost

    @asynccontextmanager
    async def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AsyncIterator[Transaction]:
        async with self._blocks.begin(COMPLETE, (attempts, result, task_id, fence)) as transaction:
            yield transaction

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str, *, failed: str = "") -> bool:
        return await self._change(task_id, BURY, (attempts, text_of(error), text_of(failed), task_id, fence))

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
            return await self._change(task_id, RELEASE, (*said, task_id, fence))
        return await self._change(task_id, RELEASE_UNTIL, (*said, next_s, next_s, task_id, fence))

    async def revive(self, task_id: UUID, fence: int, *, told: str = "") -> bool:
        return await self._change(task_id, REVIVE, (text_of(told), task_id, fence))

    async def tell(self, task_id: UUID, fence: int, said: str, told: str) -> bool:
        return await self._change(task_id, TELL, (text_of(said), text_of(told), task_id, fence, text_of(said)))

    async def save(self, task_id: UUID, fence: int, checkpoint: str) -> bool:
        return await self._change(task_id, SAVE, (text_of(checkpoint), task_id, fence))

    async def cancel(self, task_id: UUID, told: str) -> Cancelling:
        asked = {"id": task_id, "told": f"{CANCELLED}: {text_of(told)}"}
        while True:
            changed = await self._rows(CANCEL, asked)
            if changed == [("dead",)] or (not changed and await self._change(task_id, CANCEL_UNKNOWN, asked)):
                return "cancelled"
            for state, fence, left_s, *_ in await self._rows(SEEK, (task_id,)):
                if state in ("done", "dead", "cancelled"):
                    return cast(Cancelling, state)
                if left_s <= 0:
                    await self._change(task_id, CANCEL_ENDED, (task_id, fence))  # nobody is there to end it
                elif changed:
                    return "asked"
            # It was pruned, or revived, in between.

    async def to_cancel(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        return dict((await self._pool.execute(TO_CANCEL, (list(ids),), is_urgent=False))[1])

    async def record(self, sent: Sequence[Sent]) -> None:
        # In order, so that two who record the same tasks never wait for each other in a circle.
        ids, kinds, digests = zip(*sorted(sent), strict=True)
        await self._pool.execute(RECORD, (list(ids), [text_of(kind) for kind in kinds], list(digests)))

    async def entry(self, task_id: UUID) -> Entry | None:
        rows = await self._rows(ENTRY, (task_id,))
        return Entry(*rows[0]) if rows else None

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        return [Outcome(*row) for row in await self._rows(OUTCOMES, (list(ids),))]

    async def forget(self, task_id: UUID) -> bool:
        return await self._change(task_id, ERASE, (task_id,))

    async def prune(self, older_than_s: float) -> int:
        return (await self._pool.execute(PRUNE, (older_than_s,)))[0]

    async def close(self) -> None:
        await self._blocks.close()
        await self._pool.close()

    async def _rows(self, statement: str, values: Any) -> list[tuple[Any, ...]]:
        return (await self._pool.execute(statement, values))[1]

    async def _change(self, task_id: UUID, statement: str, values: Any) -> bool:
        return (await self._of(task_id, self._pool.ask(statement, values)))[0] == 1

    async def _of(self, task_id: UUID, asked: Awaitable[A]) -> A:
        """Raises Locked with who has the task's row, as far as that can be told."""
        try:
            return await asked
        except Locked as error:
            found: list[Lock] = []
            with suppress(LedgerBusy):
                _, rows = await self._pool.execute(LOCKS_OF_ROW, (task_id,), is_urgent=False)
                found = [Lock(*row) for row in rows] or await self.board.locks()
            by = " or ".join(lock.words for lock in found[:AT_MOST_NAMED])
            raise Locked(f"the row of task {task_id} is locked{f' by {by}' if by else ''}") from error

    async def _connect_for_statements(self) -> AsyncConnection:
        connection = await self._connect()
        if connection.prepare_threshold is not None:  # through PgBouncer, a setting may reach another session
            try:
                async with answering(connection):
                    await connection.execute(FOR_STATEMENTS)
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
