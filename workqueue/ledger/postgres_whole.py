"""All of a PostgreSQL ledger, see `Whole`."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from workqueue.errors import LedgerUnreachable
from workqueue.ledger.board import SqlBoard
from workqueue.ledger.postgres_schema import BOARD, DOOR
from workqueue.ledger.postgres_server import Server
from workqueue.ledger.texts import text_of
from workqueue.ledger.whole import Row, Statements, Whole

LAST = 2**128 - 1
LOCK_S = 5.0  # for those who change tasks to end: the completions of handlers, most likely

TYPES = {
    "id": "uuid", "state": "text", "fence": "bigint", "crashes": "text", "worker": "text", "attempts": "integer",
    "result": "text", "error": "text", "finished_at": "float8", "kind": "text", "digest": "bytea", "alone": "bigint",
    "created_at": "float8", "claimed_at": "float8", "last_error": "text", "story": "text", "checkpoint": "text",
    "cancel": "text", "lease_until": "float8", "next_at": "float8",
}  # fmt: skip
assert tuple(TYPES) == Row._fields
READ: dict[str, Callable[[Any], Any]] = {"uuid": lambda id: UUID(bytes=id), "text": text_of, "float8": float}
TAKEN = {
    # A claim that was copied is over: nobody is there to renew it, and the next claim notices.
    "lease_until": """
        CASE WHEN new.state = 'running' THEN least(to_timestamp(new.lease_until), clock_timestamp())
        ELSE to_timestamp(new.lease_until) END
    """,
    **{name: f"to_timestamp(new.{name})" for name in ("finished_at", "created_at", "claimed_at", "next_at")},
}
NEW = {name: TAKEN.get(name, f"new.{name}") for name in TYPES}
GIVEN = f"unnest({', '.join(f'%s::{kind}[]' for kind in TYPES.values())}) AS new ({', '.join(TYPES)})"
PAST = "greatest(task.fence + least(task.fence, 1), new.fence)"  # that of no claim which was made here
KNOWN = {name: new for name, new in NEW.items() if name != "id"} | {"fence": PAST}


def epoch(column: str) -> str:
    return f"extract(epoch FROM {column})::float8"


SQL = Statements(
    now=f"SELECT {epoch('clock_timestamp()')}",
    meta=DOOR,
    say="INSERT INTO workqueue_meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    unsay="DELETE FROM workqueue_meta WHERE key = %s",
    bolt=(
        """
        CREATE FUNCTION workqueue_moved() RETURNS trigger LANGUAGE plpgsql AS
        $moved$ BEGIN RAISE EXCEPTION USING MESSAGE = '{}'; END $moved$
        """,
        """
        CREATE TRIGGER workqueue_moved BEFORE INSERT OR UPDATE OR DELETE ON workqueue_task
        FOR EACH STATEMENT EXECUTE PROCEDURE workqueue_moved()
        """,
    ),
    unbolt=(
        "DROP TRIGGER IF EXISTS workqueue_moved ON workqueue_task",
        "DROP FUNCTION IF EXISTS workqueue_moved()",
    ),
    count="SELECT count(*) FROM workqueue_task",
    rows=f"""
        SELECT uuid_send(id), state, fence, crashes, worker, attempts, result, error, {epoch("finished_at")}, kind,
            digest, alone, {epoch("created_at")}, {epoch("claimed_at")}, last_error, story, checkpoint, cancel,
            {epoch("lease_until")}, CASE WHEN state = 'waiting' AND next_at = lease_until THEN {epoch("next_at")} END
        FROM workqueue_task WHERE id >= %s ORDER BY id LIMIT %s
    """,
    insert=f"""
        INSERT INTO workqueue_task ({", ".join(TYPES)}) SELECT {", ".join(NEW.values())} FROM {GIVEN}
        ON CONFLICT (id) DO NOTHING
    """,
    replace=f"""
        UPDATE workqueue_task AS task SET {", ".join(f"{name} = {new}" for name, new in KNOWN.items())} FROM {GIVEN}
        WHERE task.id = new.id AND task.state = 'waiting' AND (task.fence = 0 OR (
            new.state = 'done' AND (task.digest = new.digest OR task.digest IS NULL OR new.digest IS NULL)
        ))
    """,
    used="""
        SELECT EXISTS (
            SELECT 1 FROM workqueue_task WHERE claimed_at > to_timestamp(%s) OR finished_at > to_timestamp(%s)
            OR (fence > 0 AND created_at > to_timestamp(%s))
        )
    """,
    notes=f"SELECT {epoch('at')}, who, what, why, told FROM workqueue_audit ORDER BY at",
    put_note="""
        INSERT INTO workqueue_audit SELECT to_timestamp(%s), %s, %s, %s, %s WHERE NOT EXISTS (
            SELECT 1 FROM workqueue_audit
            WHERE at = to_timestamp(%s) AND who = %s AND what = %s AND why = %s AND told = %s
        )
    """,
    put_pause="INSERT INTO workqueue_pause VALUES (%s, to_timestamp(%s), %s, %s) ON CONFLICT (queue) DO NOTHING",
)
CLAIMS = """
SELECT DISTINCT worker FROM workqueue_task WHERE state = 'running' AND lease_until > clock_timestamp() ORDER BY worker
"""
OTHERS = """
SELECT DISTINCT coalesce(host(client_addr), 'this host') FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name') ORDER BY 1
"""
# Who connects anew compares it with the one that it has opened.
SEAL = "UPDATE workqueue_meta SET value = ({}abs(value::bigint))::text WHERE key = 'identity'"


class PostgresWhole(Whole):
    """Of the database of this URL, in which a `PostgresLedger` has made its tables."""

    _connection: AsyncConnection

    def __init__(self, url: str) -> None:
        super().__init__(SQL)
        self._server = Server(url)
        self.place, self.board = self._server.place, SqlBoard(BOARD, self.run)

    async def open(self) -> Self:
        self._connection = await _connect(self._server)
        try:
            _, ((identity,),) = await self.run("SELECT value FROM workqueue_meta WHERE key = 'identity'")
        except BaseException:
            await self.close()
            raise
        self.identity = abs(int(identity))
        return self

    async def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[Any]]:
        try:
            cursor = await self._connection.execute(statement, values or None)
            return cursor.rowcount, [] if cursor.description is None else await cursor.fetchall()
        except (psycopg.Error, OSError) as error:
            raise LedgerUnreachable(self.place, self._server.words(error)) from error

    async def many(self, statement: str, rows: Sequence[Row]) -> int:
        columns = zip(*rows, strict=True)
        given = [
            [None if value is None else READ[kind](value) for value in column] if kind in READ else list(column)
            for kind, column in zip(TYPES.values(), columns, strict=True)
        ]
        return (await self.run(statement, given))[0]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        await self.run("BEGIN")
        try:
            yield
        except BaseException:
            await self.run("ROLLBACK")
            raise
        await self.run("COMMIT")

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self.transaction():
            await self.run(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
            await self.run("LOCK TABLE workqueue_task IN SHARE ROW EXCLUSIVE MODE")
            yield

    async def held(self) -> list[str]:
        return [worker for (worker,) in (await self.run(CLAIMS))[1]]

    async def others(self) -> list[str]:
        return [f"a connection from {host}" for (host,) in (await self.run(OTHERS))[1]]

    async def seal(self, closed: bool) -> None:
        await self.run(SEAL.format("-" if closed else ""))

    def start(self, after: bytes) -> UUID:
        return UUID(int=min(int.from_bytes(after) + 1, LAST)) if after else UUID(int=0)

    async def close(self) -> None:
        await self._connection.close()


async def exists(url: str) -> bool:
    """Whether the database of this URL has a ledger. Raises LedgerUnreachable."""
    server = Server(url)
    async with await _connect(server) as connection:
        found = await (await connection.execute("SELECT to_regclass('workqueue_task') IS NOT NULL")).fetchone()
    return found == (True,)


async def _connect(server: Server) -> AsyncConnection:
    try:
        return await server.connect()
    except (psycopg.Error, OSError) as error:
        raise LedgerUnreachable(server.place, server.words(error)) from error
