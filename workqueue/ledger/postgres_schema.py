"""The tables of a PostgreSQL ledger: made, or changed from an earlier version's, by whoever starts first."""

import secrets

from psycopg import AsyncConnection, errors

from workqueue.errors import LedgerClosed
from workqueue.ledger import SCHEMA_VERSION
from workqueue.ledger.board import Statements
from workqueue.ledger.door import CLOSED, Door
from workqueue.ledger.postgres_sql import LOCKS, SHOWN

SET_UP_LOCK = 0x776F726B  # "work": two processes that create the same table at once collide

# By minor version. The first is the one that had no number.
MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS workqueue_task (
    id uuid PRIMARY KEY, state text NOT NULL, fence bigint NOT NULL, crashes text NOT NULL DEFAULT '',
    worker text NOT NULL, lease_until timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0, result text, error text, finished_at timestamptz
)
""",
    """
ALTER TABLE workqueue_task
    ADD COLUMN kind text, ADD COLUMN digest bytea,
    ADD COLUMN alone bigint, -- the fence of the claim, if its task was alone in the process
    ADD COLUMN next_at timestamptz, -- not to be claimed before; counts while it equals lease_until
    ADD COLUMN created_at timestamptz,
    ADD COLUMN claimed_at timestamptz, -- if it was claimed again: its latest claim
    ADD COLUMN last_error text
""",
    """
ALTER TABLE workqueue_task
    ADD COLUMN story text, -- the attempts that failed, a line for each
    ADD COLUMN checkpoint text, -- what an attempt left for the next one
    ADD COLUMN cancel text; -- that it is to be cancelled. It is once that is its error
CREATE TABLE IF NOT EXISTS workqueue_pause (
    queue text PRIMARY KEY, at timestamptz NOT NULL, who text NOT NULL, why text NOT NULL
);
CREATE TABLE IF NOT EXISTS workqueue_worker (
    id uuid PRIMARY KEY, name text NOT NULL, seen_at timestamptz NOT NULL, told text NOT NULL
);
CREATE TABLE IF NOT EXISTS workqueue_audit (
    at timestamptz NOT NULL, who text NOT NULL, what text NOT NULL, why text NOT NULL, told text NOT NULL
)
""",
    """
ALTER TABLE workqueue_task
    ADD COLUMN request uuid, -- of the latest claim
    ADD COLUMN requested bigint -- the fence of that claim: a worker of the version before leaves both as they are
""",
)
BOARD = Statements(
    put="""
        INSERT INTO workqueue_worker VALUES (%s::uuid, %s, clock_timestamp(), %s)
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, seen_at = excluded.seen_at, told = excluded.told
    """,
    remove="DELETE FROM workqueue_worker WHERE id = %s::uuid",
    seen="""
        SELECT id::text, name, extract(epoch FROM clock_timestamp() - seen_at)::float8, told FROM workqueue_worker
        WHERE seen_at > clock_timestamp() - %s * interval '1 second' ORDER BY name
    """,
    forget="DELETE FROM workqueue_worker WHERE seen_at < clock_timestamp() - %s * interval '1 second'",
    pause="INSERT INTO workqueue_pause VALUES (%s, clock_timestamp(), %s, %s) ON CONFLICT (queue) DO NOTHING",
    resume="DELETE FROM workqueue_pause WHERE queue = %s",
    pauses="SELECT queue, extract(epoch FROM at)::float8, who, why FROM workqueue_pause ORDER BY queue",
    note="INSERT INTO workqueue_audit VALUES (clock_timestamp(), %s, %s, %s, %s)",
    notes="""
        SELECT extract(epoch FROM at)::float8, who, what, why, told FROM workqueue_audit ORDER BY at DESC LIMIT %s
    """,
    deaths="""
        SELECT coalesce(kind, ''), split_part(left(error, 16), ': ', 1), count(*),
            count(*) FILTER (WHERE finished_at > clock_timestamp() - interval '1 hour'),
            extract(epoch FROM max(finished_at))::float8
        FROM workqueue_task WHERE state = 'dead' AND error IS DISTINCT FROM cancel GROUP BY 1, 2
    """,
    overdue=f"""
        SELECT coalesce(kind, ''), count(*), extract(epoch FROM min(lease_until))::float8, min(id::text)
        FROM workqueue_task
        WHERE {SHOWN} = 'waiting' AND lease_until < clock_timestamp() - %s * interval '1 second' GROUP BY 1
    """,
    tasks=f"""
        SELECT id::text, kind, attempts, CASE WHEN at < clock_timestamp() THEN extract(epoch FROM at)::float8 END,
            worker, CASE WHEN shown = 'waiting' AND next_at = lease_until AND next_at > clock_timestamp()
                THEN extract(epoch FROM next_at)::float8 END,
            split_part(coalesce(error, cancel), chr(10), 1)
        FROM (
            SELECT *, coalesce(finished_at, CASE WHEN shown = 'running' THEN coalesce(claimed_at, created_at) END,
                lease_until) AS at
            FROM (SELECT *, {SHOWN} AS shown FROM workqueue_task) AS known
        ) AS dated
        WHERE shown = %s AND coalesce(kind, '') = coalesce(%s, kind, '')
            AND extract(epoch FROM clock_timestamp() - at)::float8 > %s
        ORDER BY at, id LIMIT %s
    """,
    locks=LOCKS,
)

META = """
CREATE TABLE IF NOT EXISTS workqueue_meta (key text PRIMARY KEY, value text NOT NULL);
GRANT SELECT ON workqueue_meta TO PUBLIC
"""
# By a look into the table of tables; to_regclass may still know the answer of before the lock.
KNOWN = "SELECT 1 FROM pg_class WHERE relname = 'workqueue_meta' AND pg_table_is_visible(oid)"
VERSION = "SELECT value FROM workqueue_meta WHERE key = 'schema_version'"
IDENTITY = "SELECT value, pg_backend_pid() FROM workqueue_meta WHERE key = 'identity'"
DOOR = "SELECT key, value FROM workqueue_meta"
SAY = "INSERT INTO workqueue_meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


async def migrate(connection: AsyncConnection, place: str) -> int:
    """See that the tables are of this version. The ledger's identity.

    A role that may not create tables can use those that exist. Raises psycopg.Error, LedgerClosed.
    """
    if why := await closed(connection):
        raise LedgerClosed(place, why)
    if await _minor(connection) < SCHEMA_VERSION[1]:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (SET_UP_LOCK,))
            minor = await _minor(connection)  # another one may have been faster
            for statements in MIGRATIONS[minor + 1 :]:
                await connection.execute(statements)
            if minor < SCHEMA_VERSION[1]:
                await connection.execute(META)
                await connection.execute(SAY, ("schema_version", f"{SCHEMA_VERSION[0]}.{SCHEMA_VERSION[1]}"))
            if await (await connection.execute(IDENTITY)).fetchone() is None:
                await connection.execute(SAY, ("identity", str(2 + secrets.randbelow(2**31 - 2))))
    found = await (await connection.execute(IDENTITY)).fetchone()
    assert found is not None
    return int(found[0])


async def closed(connection: AsyncConnection) -> str | None:
    """Why the ledger may not be opened."""
    if await (await connection.execute(KNOWN)).fetchone() is None:
        return None
    meta: dict[str, str] = dict(await (await connection.execute(DOOR)).fetchall())
    return Door.read(meta).why if meta.get("schema_version", "").startswith(f"{CLOSED}.") else None


async def _minor(connection: AsyncConnection) -> int:
    """The minor version of the tables; -1 where they have none, or do not exist."""
    if await (await connection.execute(KNOWN)).fetchone() is None:
        return -1
    found = await (await connection.execute(VERSION)).fetchone()
    if found is None:
        return -1
    major, minor = map(int, found[0].split("."))
    if major != SCHEMA_VERSION[0]:
        raise errors.FeatureNotSupported(f"its schema is of version {major}, this program's of {SCHEMA_VERSION[0]}")
    return minor
