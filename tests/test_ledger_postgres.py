"""The ledger in a PostgreSQL database: servers that fall silent, restart, are read-only, or stand behind PgBouncer."""

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from workqueue.dev.postgres import Postgres
from workqueue.errors import LedgerLost, LedgerUnreachable
from workqueue.ledger import Claimed, Finished, LedgerBusy, Taken, postgres_server
from workqueue.ledger.postgres import PostgresLedger
from workqueue.testing import until
from workqueue.testing.proxy import Proxy

LONG_S = 3600.0
ASKED: dict[str, Any] = {"kind": "simulate", "digest": b"one", "alone": False}


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as server:
        for statement in statements:
            done = server.execute(statement)
        return done.fetchall() if done.description else []


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def url(postgres: Postgres) -> str:
    """A database of this test's own."""
    name = f"d{uuid4().hex}"
    run(postgres.url, f"CREATE DATABASE {name}")
    return postgres.url.removesuffix("postgres") + name


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[PostgresLedger]:
    opened = await PostgresLedger(url).set_up()
    yield opened
    await opened.close()


async def claimed(ledger: PostgresLedger, task_id: UUID, lease_s: float = LONG_S, **said: Any) -> Claimed:
    claim = await ledger.claim(task_id, "w", lease_s, **{**ASKED, **said})
    assert isinstance(claim, Claimed), claim
    return claim


def end_sessions(url: str) -> None:
    run(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
             " AND pid <> pg_backend_pid()")  # fmt: skip


# --- a server that does not answer ------------------------------------------------------------------------------------


async def test_a_server_that_falls_silent_is_busy_within_a_bound_for_all_who_ask_and_back_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.5)
    async with Proxy(port_of(url)) as proxy:
        ledger = await PostgresLedger(url.replace(f":{port_of(url)}/", f":{proxy.port}/")).set_up()
        task_id = uuid4()
        fence = (await claimed(ledger, task_id)).fence
        proxy.stall()
        for _ in range(2):  # the first loses its connection, the second finds none
            began = time.monotonic()
            answers = await asyncio.gather(
                *(ledger.renew(task_id, fence, LONG_S) for _ in range(50)), return_exceptions=True
            )
            assert all(isinstance(answer, LedgerBusy) for answer in answers), answers
            assert time.monotonic() - began < 8
        proxy.resume()
        began = time.monotonic()
        while True:
            try:
                assert await ledger.renew(task_id, fence, LONG_S)
                break
            except LedgerBusy:
                assert time.monotonic() - began < 5
        await ledger.close()


async def test_a_wait_for_a_silent_server_can_be_cancelled_and_blocks_nobody(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "ANSWER_S", 0.5)
    async with Proxy(port_of(url)) as proxy:
        ledger = await PostgresLedger(url.replace(f":{port_of(url)}/", f":{proxy.port}/")).set_up()
        task_id = uuid4()
        fence = (await claimed(ledger, task_id)).fence
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ledger.renew(task_id, fence, LONG_S)
        await ledger.close()
        assert time.monotonic() - began < 10


async def test_the_client_and_the_server_look_after_their_connections(ledger: PostgresLedger, url: str) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    (session,) = ledger._pool._sessions
    assert session.prepares
    with socket.socket(fileno=os.dup(session._socket)) as wire:
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if sys.platform == "linux":
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
    async with ledger.completion(task_id, claim.fence, 1, None) as db:  # the server, while it holds the task's row
        for name, value in (("tcp_keepalives_idle", "10"), ("tcp_user_timeout", "25000")):
            assert (await db.execute(f"SHOW {name}")).rows == [(value,)]
    own = await PostgresLedger(f"{url}?tcp_user_timeout=7000&application_name=mine").set_up()
    await claimed(own, uuid4())
    assert ("mine",) in run(url, "SELECT application_name FROM pg_stat_activity")
    await own.close()


async def test_the_first_block_after_a_restart_of_the_server_succeeds(ledger: PostgresLedger, url: str) -> None:
    for _ in range(2):
        task_id = uuid4()
        claim = await claimed(ledger, task_id)
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("CREATE TABLE IF NOT EXISTS effect (n integer)")
        end_sessions(url)
        with pytest.raises(LedgerBusy):
            await ledger.renew(task_id, claim.fence, LONG_S)


@pytest.mark.parametrize("caught", [psycopg.Error, ZeroDivisionError], ids=["goes on", "raises"])
async def test_a_block_whose_session_ends_is_no_error_of_the_handlers_and_leaves_nothing(
    ledger: PostgresLedger, url: str, caught: type[Exception]
) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with pytest.raises(LedgerBusy, match="lost in a completion"):  # noqa: PT012  # at whichever statement it is noticed
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("CREATE TABLE effect (n integer)")
            end_sessions(url)
            with suppress(caught):
                await db.execute("INSERT INTO effect VALUES (1)")
    assert run(url, "SELECT to_regclass('effect')") == [(None,)]
    async with ledger.completion(task_id, claim.fence, 1, None):
        pass


async def test_a_statement_that_ends_the_transaction_of_a_block_is_said(ledger: PostgresLedger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with pytest.raises(RuntimeError, match="one of its statements has ended it"):
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("SELECT 1; COMMIT")


async def test_four_blocks_are_open_at_once_and_the_fifth_waits(ledger: PostgresLedger) -> None:
    ids, inside, most = [uuid4() for _ in range(9)], 0, 0
    claims = [await claimed(ledger, task_id) for task_id in ids]

    async def block(task_id: UUID, fence: int) -> None:
        nonlocal inside, most
        async with ledger.completion(task_id, fence, 1, None):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.1)
            inside -= 1

    await asyncio.gather(*(block(task_id, claim.fence) for task_id, claim in zip(ids, claims, strict=True)))
    assert most == 4
    assert len(await ledger.outcomes(ids)) == 9


async def test_a_row_that_a_dead_hosts_transaction_still_holds_is_taken_and_stops_no_worker(
    ledger: PostgresLedger, url: str
) -> None:
    """The server misses that host after a while, by its own keepalives; other tasks need not wait for that."""
    task_id, other, new = uuid4(), uuid4(), uuid4()
    claim = await claimed(ledger, task_id)
    with psycopg.connect(url) as silent:
        silent.execute("UPDATE workqueue_task SET state = 'done' WHERE id = %s", (task_id,))
        silent.execute(
            "INSERT INTO workqueue_task (id, state, fence, worker, lease_until) VALUES (%s, 'running', 1, 'w', now())",
            (new,),
        )
        began = time.monotonic()
        assert await ledger.claim(task_id, "w2", LONG_S, **ASKED) == Taken(1.0)
        assert await ledger.claim(new, "w2", LONG_S, **ASKED) == Taken(1.0)
        assert 1.8 < time.monotonic() - began < 4
        assert await ledger.renew(task_id, claim.fence, LONG_S)  # nobody can take it meanwhile
        assert (await claimed(ledger, other)).fence == 1
        silent.rollback()
    assert isinstance(await ledger.claim(task_id, "w2", LONG_S, **ASKED), Taken)
    assert await ledger.complete(task_id, claim.fence, 1, None)


# --- a server that refuses --------------------------------------------------------------------------------------------


async def test_a_server_that_is_read_only_is_busy_with_words_and_then_used_again(
    ledger: PostgresLedger, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    task_id, name = uuid4(), url.rpartition("/")[2]
    claim = await claimed(ledger, task_id)
    run(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    end_sessions(url)
    with pytest.raises(LedgerBusy):
        await ledger.renew(task_id, claim.fence, LONG_S)
    with pytest.raises(LedgerBusy, match="the server is read-only"):
        await ledger.renew(task_id, claim.fence, LONG_S)
    with caplog.at_level(logging.WARNING):
        waiting = asyncio.ensure_future(complete_in_a_block(ledger, task_id, claim.fence))
        await until(lambda: "waits for the ledger" in caplog.text, "it says what it waits for")
        assert not waiting.done()
        run(url, "SET default_transaction_read_only = off",
            f"ALTER DATABASE {name} SET default_transaction_read_only = off")  # fmt: skip
        await waiting
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("done", 1)


async def complete_in_a_block(ledger: PostgresLedger, task_id: UUID, fence: int) -> None:
    async with ledger.completion(task_id, fence, 1, None):
        pass


async def test_a_table_that_was_dropped_is_busy_with_words_and_one_that_is_made_anew_is_another_ledger(
    ledger: PostgresLedger, url: str
) -> None:
    await claimed(ledger, uuid4())
    run(url, "DROP TABLE workqueue_task, workqueue_meta")
    for _ in range(2):
        with pytest.raises(LedgerBusy, match="its table is gone"):
            await ledger.claim(uuid4(), "w", LONG_S, **ASKED)
    other = await PostgresLedger(url).set_up()
    assert other.identity != ledger.identity
    with pytest.raises(LedgerLost, match="another one"):
        await ledger.claim(uuid4(), "w", LONG_S, **ASKED)
    await other.close()


async def test_a_database_that_was_dropped_or_takes_no_connection_is_busy(ledger: PostgresLedger, url: str) -> None:
    task_id, name, server = uuid4(), url.rpartition("/")[2], url.rpartition("/")[0] + "/postgres"
    fence = (await claimed(ledger, task_id)).fence
    run(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # fmt: skip
    for _ in range(2):
        with pytest.raises(LedgerBusy):
            await ledger.renew(task_id, fence, LONG_S)
    run(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert await ledger.renew(task_id, fence, LONG_S)
    run(server, f"DROP DATABASE {name} WITH (FORCE)")
    for _ in range(2):
        with pytest.raises(LedgerBusy):
            await ledger.renew(task_id, fence, LONG_S)
    with pytest.raises(LedgerUnreachable, match="does not exist"):
        await PostgresLedger(url).set_up()


@pytest.fixture
def role(url: str) -> Iterator[str]:
    """The URL of a role that may use what exists, and create nothing."""
    name = f"r{uuid4().hex}"
    run(url, f"CREATE ROLE {name} LOGIN PASSWORD 'secret-word'", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield f"postgresql://{name}:secret-word@{url.rpartition('@')[2]}"
    run(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def test_a_role_that_may_create_nothing_can_use_the_tables_that_exist(url: str, role: str) -> None:
    with pytest.raises(LedgerUnreachable, match="lacks a privilege") as caught:
        await PostgresLedger(role).set_up()
    assert "secret-word" not in str(caught.value)
    owners = await PostgresLedger(url).set_up()
    name = role.partition("//")[2].partition(":")[0]
    run(url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON workqueue_task TO {name}")
    theirs, task_id = await PostgresLedger(role).set_up(), uuid4()
    assert theirs.identity == owners.identity
    assert await theirs.complete(task_id, (await claimed(theirs, task_id)).fence, 1, None)
    run(url, f"REVOKE UPDATE ON workqueue_task FROM {name}")
    with pytest.raises(LedgerBusy, match="lacks a privilege"):
        await theirs.renew(task_id, 1, LONG_S)
    await owners.close()
    await theirs.close()


@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE"])
async def test_each_right_that_a_claim_needs_is_missed_before_there_is_a_task(url: str, role: str, right: str) -> None:
    await (await PostgresLedger(url).set_up()).close()
    name = role.partition("//")[2].partition(":")[0]
    run(url, f"GRANT SELECT, INSERT, UPDATE ON workqueue_task TO {name}")
    theirs = await PostgresLedger(role).set_up()
    await theirs.check()
    run(url, f"REVOKE {right} ON workqueue_task FROM {name}")
    with pytest.raises(LedgerBusy, match="lacks a privilege"):
        await theirs.check()
    run(url, f"GRANT {right} ON workqueue_task TO {name}")
    await theirs.check()
    await theirs.close()


async def test_a_table_that_somebody_has_locked_is_busy_and_no_task_is_taken_to_be_another_workers(
    ledger: PostgresLedger, url: str
) -> None:
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE workqueue_task IN ACCESS EXCLUSIVE MODE")
        for call in (ledger.check, lambda: ledger.claim(uuid4(), "w", LONG_S, **ASKED)):
            with pytest.raises(LedgerBusy, match="lock timeout"):
                await call()
        other.rollback()
    await ledger.check()
    await claimed(ledger, uuid4())


async def test_options_of_the_url_are_kept(url: str) -> None:
    run(url, "CREATE SCHEMA elsewhere")
    ledger = await PostgresLedger(f"{url}?options=-csearch_path%3Delsewhere").set_up()
    await claimed(ledger, uuid4())
    assert run(url, "SELECT count(*) FROM elsewhere.workqueue_task") == [(1,)]
    assert run(url, "SELECT to_regclass('public.workqueue_task')") == [(None,)]
    await ledger.close()


@pytest.mark.parametrize("place", [
    "postgresql://user:secret%ZZword@host/database",
    "postgresql://user@host/database?password=secret%ZZword",
    "postgresql://user:secret word@host:port/database?sslmode=secret",
    "postgresql://user:secretword@127.0.0.1:1/database",
    "postgresql://user@127.0.0.1:1/database?password=secretword",
    "postgresql://user:secretword@127.0.0.1:1/database?sslmode=nothing",
])  # fmt: skip
async def test_no_error_of_a_url_holds_its_password(place: str) -> None:
    with pytest.raises(LedgerUnreachable) as caught:
        await PostgresLedger(place).set_up()
    said = str(caught.value).replace("sslmode=secret", "")
    assert "secret" not in said
    assert "\n" not in said


# --- versions ---------------------------------------------------------------------------------------------------------

OLD_SCHEMA = """
CREATE TABLE IF NOT EXISTS workqueue_task (
    id uuid PRIMARY KEY, state text NOT NULL, fence bigint NOT NULL, crashes text NOT NULL DEFAULT '',
    worker text NOT NULL, lease_until timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0, result text, error text, finished_at timestamptz
);
"""
OLD_CLAIM = """
INSERT INTO workqueue_task AS task (id, state, fence, worker, lease_until)
VALUES ('{id}', 'running', 1, 'old', clock_timestamp() + {lease_s} * interval '1 second')
ON CONFLICT (id) DO UPDATE SET state = 'running', fence = task.fence + 1,
    crashes = task.crashes || CASE WHEN task.state = 'running' THEN
        to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' ' || task.worker || chr(10)
        ELSE '' END,
    worker = excluded.worker, lease_until = excluded.lease_until
WHERE task.state = 'waiting' OR (task.state = 'running' AND task.lease_until < clock_timestamp())
RETURNING fence
"""


async def test_a_table_of_the_version_before_is_changed_in_place_and_its_workers_go_on_beside(url: str) -> None:
    held, task_id = uuid4(), uuid4()
    run(url, OLD_SCHEMA, OLD_CLAIM.format(id=held, lease_s=60))
    opened = [await PostgresLedger(url).set_up() for _ in range(3)]
    new = opened[0]
    assert isinstance(await new.claim(held, "new", LONG_S, **ASKED), Taken)
    first = await claimed(new, task_id, alone=True)
    assert run(url, OLD_CLAIM.format(id=task_id, lease_s=60)) == []
    assert await new.release(task_id, first.fence, attempts=1, error="no", next_s=LONG_S)
    assert run(url, OLD_CLAIM.format(id=task_id, lease_s=60)) == [(2,)]
    run(url, f"UPDATE workqueue_task SET state = 'waiting' WHERE id = '{task_id}'")
    second = await claimed(new, task_id, -1.0, alone=True)
    assert run(url, OLD_CLAIM.format(id=task_id, lease_s=-1)) == [(second.fence + 1,)]
    third = await claimed(new, task_id)
    assert [(crash.worker, crash.alone) for crash in third.crashes or ()] == [("w", False), ("old", False)]
    assert third.attempts == 1
    for ledger in opened:
        await ledger.close()


async def test_processes_that_make_the_tables_at_once_make_one_ledger(url: str) -> None:
    opened = await asyncio.gather(*(PostgresLedger(url).set_up() for _ in range(8)))
    assert len({ledger.identity for ledger in opened}) == 1
    for ledger in opened:
        await ledger.close()


async def test_a_ledger_of_a_later_major_version_is_refused_and_of_a_later_minor_one_used(
    ledger: PostgresLedger, url: str
) -> None:
    run(url, "UPDATE workqueue_meta SET value = '1.9' WHERE key = 'schema_version'")
    await (await PostgresLedger(url).set_up()).close()
    run(url, "UPDATE workqueue_meta SET value = '2.0' WHERE key = 'schema_version'")
    with pytest.raises(LedgerUnreachable, match="its schema is of version 2"):
        await PostgresLedger(url).set_up()


# --- PgBouncer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bouncer(url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a PgBouncer in transaction mode before the database."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("no pgbouncer is installed; on Debian: apt-get install pgbouncer")
    user, password = url.partition("//")[2].partition("@")[0].split(":")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "users").write_text(f'"{user}" "{password}"\n')
    (tmp_path / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={port_of(url)}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {tmp_path / 'users'}\n"
        f"pool_mode = transaction\ndefault_pool_size = 3\n"
    )
    as_other = {"user": "nobody"} if os.geteuid() == 0 else {}
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if os.geteuid() == 0 and folder != Path("/tmp"):
            folder.chmod(0o755)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, str(tmp_path / "ini")], stdout=log, stderr=log, **as_other)  # type: ignore[call-overload]
    through = url.replace(f":{port_of(url)}/", f":{port}/")
    try:
        for _ in range(200):
            try:
                run(through, "SELECT 1")
                break
            except psycopg.OperationalError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
        yield through
    finally:
        process.kill()
        process.wait()


async def test_a_ledger_behind_pgbouncer_in_transaction_mode_does_all_that_one_before_it_does(
    bouncer: str, url: str
) -> None:
    opened = [await PostgresLedger(bouncer).set_up() for _ in range(3)]
    ids = [uuid4() for _ in range(60)]

    async def work(ledger: PostgresLedger, mine: list[UUID]) -> None:
        for number, task_id in enumerate(mine):
            claim = await claimed(ledger, task_id)
            assert await ledger.renew(task_id, claim.fence, LONG_S)
            if number % 2:
                assert await ledger.complete(task_id, claim.fence, 1, None)
                continue
            async with ledger.completion(task_id, claim.fence, 1, None) as db:
                await db.execute("CREATE TABLE IF NOT EXISTS effect (id uuid)")
                await db.execute("INSERT INTO effect VALUES (%s)", (task_id,))

    await opened[0].prune(LONG_S)
    run(url, "CREATE TABLE effect (id uuid)")
    await asyncio.gather(*(work(ledger, ids[place::3]) for place, ledger in enumerate(opened)))
    assert len(await opened[0].outcomes(ids)) == 60
    assert run(url, "SELECT count(*) FROM effect") == [(30,)]
    with psycopg.connect(bouncer, autocommit=True, prepare_threshold=None) as other:  # nothing of ours is left behind
        for _ in range(5):
            assert other.execute("SHOW tcp_user_timeout").fetchone() != ("25000",)
    for ledger in opened:
        assert ledger._pool._sessions
        for session in ledger._pool._sessions:
            assert not session.prepares  # a prepared one belongs to a session of the server, and these change
        await ledger.close()
