"""The ledger in a PostgreSQL database: workers on any number of machines. Leases are measured by its clock alone.

Each statement is its own transaction. A connection that fails is dropped, and the next statement makes a new one: a
statement that got no answer may have been carried out, and all of them may be repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Claimed, ClaimLost, Crash, Finished, LedgerBusy, Outcome, Taken
from workqueue.settings import hide_password

CONNECT_S = 5
STATEMENT_MS = 10_000  # a server that takes longer is out of reach; the worker stops taking tasks until it is back

SCHEMA = """
CREATE TABLE IF NOT EXISTS workqueue_task (
    id uuid PRIMARY KEY, state text NOT NULL, fence bigint NOT NULL, crashes text NOT NULL DEFAULT '',
    worker text NOT NULL, lease_until timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0, result text, error text, finished_at timestamptz
);
"""
SET_UP_LOCK = 0x776F726B  # "work": two processes that create the same table at once collide
CLAIM = """
INSERT INTO workqueue_task AS task (id, state, fence, worker, lease_until)
VALUES (%(id)s, 'running', 1, %(worker)s, clock_timestamp() + %(lease)s * interval '1 second')
ON CONFLICT (id) DO UPDATE SET state = 'running', fence = task.fence + 1,
    crashes = task.crashes || CASE WHEN task.state = 'running' THEN
        to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' ' || task.worker || chr(10)
        ELSE '' END,
    worker = excluded.worker, lease_until = excluded.lease_until
WHERE task.state = 'waiting' OR (task.state = 'running' AND task.lease_until < clock_timestamp())
RETURNING fence, crashes
"""
COMPLETE = "state = 'done', attempts = %s, result = %s, finished_at = clock_timestamp()"
LOOK = "SELECT state, extract(epoch FROM lease_until - clock_timestamp())::float8 FROM workqueue_task WHERE id = %s"
OUTCOMES = """
SELECT id, state, worker, attempts, result, error, extract(epoch FROM finished_at)::float8
FROM workqueue_task WHERE finished_at IS NOT NULL AND id = ANY(%s)
"""


class PostgresLedger:
    """See `Ledger`. Its table is created if it does not exist."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connections: dict[str, AsyncConnection] = {}
        self._lock, self._completing = asyncio.Lock(), asyncio.Lock()

    async def set_up(self) -> "PostgresLedger":
        try:
            async with await self._connect() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (SET_UP_LOCK,))
                await connection.execute(SCHEMA)
        except psycopg.Error as error:
            raise LedgerUnreachable(hide_password(self._url), " ".join(str(error).split())) from error
        return self

    async def claim(self, task_id: UUID, worker: str, lease_s: float) -> Claimed | Taken | Finished:
        while True:
            row = await self._one(CLAIM, {"id": task_id, "worker": worker, "lease": lease_s})
            if row is not None:
                return Claimed(fence=row[0], crashes=Crash.read(row[1]))
            row = await self._one(LOOK, (task_id,))
            if row is None or (row[0] == "waiting"):
                continue  # it was pruned, or released, in between
            return Finished(row[0]) if row[0] != "running" else Taken(max(0.0, row[1]))

    async def renew(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        change = "lease_until = clock_timestamp() + %s * interval '1 second'"
        return await self._change(change, (lease_s,), task_id, fence)

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        async def renew() -> bool:
            other = PostgresLedger(self._url)
            try:
                return await other.renew(task_id, fence, lease_s)
            finally:
                await other.close()

        return asyncio.run(renew())

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        return await self._change(COMPLETE, (attempts, result), task_id, fence)

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str) -> bool:
        change = "state = 'dead', attempts = %s, error = %s, finished_at = clock_timestamp()"
        return await self._change(change, (attempts, error), task_id, fence)

    async def release(self, task_id: UUID, fence: int) -> bool:
        return await self._change("state = 'waiting'", (), task_id, fence)

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        async with self._answering() as connection:
            return [Outcome(*row) for row in await (await connection.execute(OUTCOMES, (list(ids),))).fetchall()]

    @asynccontextmanager
    async def completion(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> AsyncIterator[Any]:
        async with self._completing:
            connection = await self._connection("completing")
            try:
                async with connection.transaction():
                    # First, and with its lock: a claim that was lost must not begin an effect.
                    if not await self._changed(connection, COMPLETE, (attempts, result), task_id, fence):
                        raise ClaimLost
                    yield connection
            except psycopg.OperationalError:
                await self._drop("completing")
                raise

    async def prune(self, older_than_s: float) -> int:
        async with self._answering() as connection:
            cursor = await connection.execute(
                "DELETE FROM workqueue_task WHERE coalesce(finished_at, lease_until)"
                " < clock_timestamp() - %s * interval '1 second'",
                (older_than_s,),
            )
            return cursor.rowcount

    async def close(self) -> None:
        for name in list(self._connections):
            await self._drop(name)

    async def _one(self, statement: str, values: Any) -> tuple[Any, ...] | None:
        async with self._answering() as connection:
            return await (await connection.execute(statement, values)).fetchone()

    async def _change(self, change: str, values: tuple[Any, ...], task_id: UUID, fence: int) -> bool:
        async with self._answering() as connection:
            return await self._changed(connection, change, values, task_id, fence)

    async def _changed(
        self, connection: AsyncConnection, change: str, values: tuple[Any, ...], task_id: UUID, fence: int
    ) -> bool:
        statement = f"UPDATE workqueue_task SET {change} WHERE id = %s AND fence = %s AND state = 'running'"
        return (await connection.execute(statement, (*values, task_id, fence))).rowcount == 1

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[AsyncConnection]:
        async with self._lock:
            try:
                yield await self._connection("statements")
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:  # gone, restarting, too slow, locked
                await self._drop("statements")
                raise LedgerBusy(" ".join(str(error).split())) from error

    async def _connection(self, name: str) -> AsyncConnection:
        if name not in self._connections:
            self._connections[name] = await self._connect()
        return self._connections[name]

    async def _connect(self) -> AsyncConnection:
        options = f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}"
        return await AsyncConnection.connect(
            self._url, autocommit=True, connect_timeout=CONNECT_S, options=options, application_name="workqueue"
        )

    async def _drop(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()
