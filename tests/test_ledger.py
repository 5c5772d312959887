"""What a ledger promises, on every store: claims, fences, leases, and effects in its own transactions."""

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from workqueue.ledger import (
    Claimed,
    ClaimLost,
    Conflict,
    Crash,
    Finished,
    Ledger,
    LedgerBusy,
    Sent,
    Taken,
    open_ledger,
)  # fmt: skip
from workqueue.ledger.none import NoLedger
from workqueue.settings import Settings

LONG_S = 3600.0
NOW_S = -1.0  # a lease that has ended when it begins
ASKED: dict[str, Any] = {"kind": "simulate", "digest": b"one", "alone": False}


@dataclass
class Store:
    """A store of this test's own. `table` and `mark` differ in its SQL."""

    url: str

    @property
    def mark(self) -> str:
        return "%s" if self.url.startswith("postgresql") else "?"

    @property
    def table(self) -> str:
        return "workqueue_task" if self.url.startswith("postgresql") else "task"

    async def open(self) -> Ledger:
        return await open_ledger(Settings(ledger_url=self.url))

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """By a connection that is not the ledger's."""
        if self.url.startswith("postgresql"):
            with psycopg.connect(self.url, autocommit=True) as server:
                done = server.execute(statement)
                return done.fetchall() if done.description else []
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:"), isolation_level=None)) as file:
            return file.execute(statement).fetchall()

    def rows(self, table: str = "") -> list[tuple[Any, ...]]:
        return self.run(f"SELECT * FROM {table or self.table} ORDER BY 1")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.broker)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return Store(f"sqlite:{tmp_path / 'below' / 'ledger.db'}")
    server, name = request.getfixturevalue("postgres"), f"d{uuid4().hex}"
    Store(server.url).run(f"CREATE DATABASE {name}")
    return Store(server.url.removesuffix("postgres") + name)


@pytest.fixture
async def ledger(store: Store) -> AsyncIterator[Ledger]:
    opened = await store.open()
    yield opened
    await opened.close()


async def claimed(ledger: Ledger, task_id: UUID, lease_s: float = LONG_S, worker: str = "w", **said: Any) -> Claimed:
    claim = await ledger.claim(task_id, worker, lease_s, **{**ASKED, **said})
    assert isinstance(claim, Claimed), claim
    return claim


async def test_that_a_claim_could_be_written_is_tried_again_and_again_and_no_task_changed(
    ledger: Ledger, store: Store
) -> None:
    await claimed(ledger, uuid4())
    before = store.rows()
    for _ in range(10):  # some of them by a prepared statement
        await ledger.check()
    assert store.rows() == before


# --- claims and fences ------------------------------------------------------------------------------------------------


async def test_a_task_is_claimed_by_one_at_a_time(ledger: Ledger, store: Store) -> None:
    task_id, other = uuid4(), await store.open()
    first = await claimed(ledger, task_id)
    for asked in (ledger, other):  # the one that has it is no exception: the broker delivers twice to one worker too
        taken = await asked.claim(task_id, "w", LONG_S, **ASKED)
        assert isinstance(taken, Taken)
        assert LONG_S - 60 < taken.left_s <= LONG_S
    assert first.crashes == ()
    await other.close()


async def test_a_finished_task_is_never_claimed_again(ledger: Ledger) -> None:
    done, dead = uuid4(), uuid4()
    assert await ledger.complete(done, (await claimed(ledger, done)).fence, 1, '{"a":1}')
    assert await ledger.bury(dead, (await claimed(ledger, dead)).fence, 6, "failed: no")
    assert await ledger.claim(done, "w", LONG_S, **ASKED) == Finished("done", 1)
    assert await ledger.claim(dead, "w", LONG_S, **ASKED) == Finished("dead", 1)


async def test_release_makes_a_task_free_at_once_and_is_no_crash(ledger: Ledger) -> None:
    task_id = uuid4()
    first = await claimed(ledger, task_id)
    assert await ledger.release(task_id, first.fence)
    second = await claimed(ledger, task_id)
    assert second.fence > first.fence
    assert second.crashes == ()


async def test_a_lease_that_ended_is_taken_over_and_each_loss_is_recorded_with_its_worker(ledger: Ledger) -> None:
    task_id = uuid4()
    fences = []
    for worker in ("one", "two words", "three"):
        fences.append((await claimed(ledger, task_id, NOW_S, worker)).fence)
    last = await claimed(ledger, task_id)
    assert fences == sorted(set(fences))
    assert last.fence > fences[-1]
    assert last.crashes is not None
    assert [crash.worker for crash in last.crashes] == ["one", "two words", "three"]
    assert all(crash.noticed_at.startswith("20") and crash.noticed_at.endswith("Z") for crash in last.crashes)
    assert await ledger.release(task_id, last.fence)
    assert (await claimed(ledger, task_id)).crashes == last.crashes  # what happened before stays known


async def test_a_claim_that_was_lost_can_do_nothing(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    old = (await claimed(ledger, task_id, NOW_S)).fence
    new = (await claimed(ledger, task_id)).fence
    for finish in (False, True):
        if finish:
            assert await ledger.complete(task_id, new, 2, None)
        before = store.rows()
        assert not await ledger.renew(task_id, old, LONG_S)
        assert not await ledger.complete(task_id, old, 1, "stale")
        assert not await ledger.bury(task_id, old, 1, "stale")
        assert not await ledger.release(task_id, old)
        with pytest.raises(ClaimLost):
            async with ledger.completion(task_id, old, 1, "stale"):
                pytest.fail("the effect has begun")
        assert store.rows() == before
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.attempts, outcome.result) == ("done", 2, None)


async def test_a_claim_that_is_finished_or_released_can_do_nothing_more(ledger: Ledger) -> None:
    done, released = uuid4(), uuid4()
    fence = (await claimed(ledger, done)).fence
    assert await ledger.complete(done, fence, 1, None)
    assert not await ledger.bury(done, fence, 1, "no")
    assert not await ledger.release(done, fence)
    fence = (await claimed(ledger, released)).fence
    assert await ledger.release(released, fence)
    assert not await ledger.renew(released, fence, LONG_S)
    assert not await ledger.complete(released, fence, 1, None)
    assert not await ledger.complete(uuid4(), 1, 1, None)


async def test_a_completion_that_is_asked_for_again_is_true_and_changes_nothing(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    fence = (await claimed(ledger, task_id)).fence
    assert await ledger.complete(task_id, fence, 1, '{"a":1}')
    before = store.rows()
    assert await ledger.complete(task_id, fence, 2, None)
    assert not await ledger.complete(task_id, fence + 1, 2, None)
    with pytest.raises(ClaimLost):
        async with ledger.completion(task_id, fence, 2, None):
            pytest.fail("the effect would be written twice")
    assert store.rows() == before


async def test_a_lease_that_ended_may_complete_while_nobody_else_has_claimed(ledger: Ledger) -> None:
    task_id = uuid4()
    assert await ledger.complete(task_id, (await claimed(ledger, task_id, NOW_S)).fence, 1, None)
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("done", 1)


async def test_renewing_makes_the_lease_longer_and_a_renewed_claim_is_not_taken_over(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id, NOW_S)
    assert await ledger.renew(task_id, claim.fence, LONG_S)
    taken = await ledger.claim(task_id, "x", LONG_S, **ASKED)
    assert isinstance(taken, Taken)
    assert taken.left_s > LONG_S - 60


async def test_an_effect_and_its_completion_are_one(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with suppress(ZeroDivisionError):
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("CREATE TABLE effect (n integer)")
            raise ZeroDivisionError
    assert await ledger.outcomes([task_id]) == []
    async with ledger.completion(task_id, claim.fence, 1, "{}") as db:
        await db.execute("CREATE TABLE effect (n integer)")
        assert await ledger.outcomes([task_id]) == []
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.result) == ("done", "{}")
    assert store.rows("effect") == []


# --- digests, attempts, waiting, revival ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "waiting", "done", "dead"])
async def test_an_id_that_comes_with_another_digest_is_a_conflict_whatever_became_of_it(
    ledger: Ledger, store: Store, state: str
) -> None:
    task_id = uuid4()
    fence = (await claimed(ledger, task_id)).fence
    match state:
        case "waiting":
            await ledger.release(task_id, fence)
        case "done":
            await ledger.complete(task_id, fence, 1, None)
        case "dead":
            await ledger.bury(task_id, fence, 1, "no")
    before = store.rows()
    assert await ledger.claim(task_id, "w", LONG_S, kind="simulate", digest=b"two", alone=False) == Conflict()
    assert store.rows() == before
    assert not isinstance(await ledger.claim(task_id, "w", LONG_S, **ASKED), Conflict)


async def test_a_digest_that_was_not_known_at_first_is_kept_from_the_claim_that_brings_it(ledger: Ledger) -> None:
    task_id = uuid4()
    for digest in (b"", b"one", b"", b"one"):
        await ledger.release(task_id, (await claimed(ledger, task_id, digest=digest)).fence)
    assert await ledger.claim(task_id, "w", LONG_S, kind="simulate", digest=b"two", alone=False) == Conflict()


async def test_a_crash_says_whether_its_task_was_alone_and_only_the_claim_that_finds_it_has_noticed(
    ledger: Ledger,
) -> None:
    task_id = uuid4()
    await claimed(ledger, task_id, NOW_S, "first", alone=True)
    second = await claimed(ledger, task_id, NOW_S, "second", alone=False)
    assert (second.noticed, second.crashes) == (True, (Crash("first", second.crashes[0].noticed_at, True),))  # type: ignore[index]
    third = await claimed(ledger, task_id, LONG_S, "third")
    assert third.noticed
    assert [(crash.worker, crash.alone) for crash in third.crashes or ()] == [("first", True), ("second", False)]
    assert await ledger.release(task_id, third.fence)
    fourth = await claimed(ledger, task_id)
    assert (fourth.noticed, fourth.crashes) == (False, third.crashes)


@pytest.mark.parametrize(("at_first", "said", "alone"), [
    (False, True, True), (True, False, False), (True, None, True), (False, None, False),
])  # fmt: skip
async def test_a_renewal_may_say_anew_whether_the_task_is_alone(
    ledger: Ledger, at_first: bool, said: bool | None, alone: bool
) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id, alone=at_first)
    assert await ledger.renew(task_id, claim.fence, NOW_S, alone=said)
    assert [crash.alone for crash in (await claimed(ledger, task_id)).crashes or ()] == [alone]


async def test_a_failed_attempt_is_known_to_the_next_claim_and_its_error_is_kept(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    first = await claimed(ledger, task_id)
    assert first.attempts == 0
    assert await ledger.release(task_id, first.fence, attempts=2, error="ValueError: no\0\ud800")
    second = await claimed(ledger, task_id)
    assert second.attempts == 2
    assert await ledger.release(task_id, second.fence)  # handed back: that says nothing of attempts
    third = await claimed(ledger, task_id)
    assert third.attempts == 2
    assert await ledger.complete(task_id, third.fence, 3, None)
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.kind, outcome.error, outcome.last_error) == ("simulate", None, "ValueError: no\\x00\\ud800")


async def test_a_task_that_waits_for_its_next_attempt_is_claimed_when_that_is_due_and_not_before(
    ledger: Ledger,
) -> None:
    soon, late = uuid4(), uuid4()
    for task_id, next_s in ((soon, 0.4), (late, LONG_S)):
        assert await ledger.release(task_id, (await claimed(ledger, task_id)).fence, attempts=1, next_s=next_s)
        taken = await ledger.claim(task_id, "w", LONG_S, **ASKED)
        assert isinstance(taken, Taken)
        assert next_s - 60 < taken.left_s <= next_s
        assert taken.left_s > 0
    began = time.monotonic()
    while isinstance(answer := await ledger.claim(soon, "w", LONG_S, **ASKED), Taken):
        assert time.monotonic() - began < 10
        await asyncio.sleep(answer.left_s)
    assert isinstance(answer, Claimed)
    assert (answer.attempts, answer.crashes) == (1, ())
    assert await ledger.release(soon, answer.fence)  # and then it waits no longer
    await claimed(ledger, soon)


async def test_what_is_left_of_a_claim_is_what_is_left_of_its_lease(ledger: Ledger) -> None:
    task_id = uuid4()
    await claimed(ledger, task_id, 100.0)
    taken = await ledger.claim(task_id, "w", LONG_S, **ASKED)
    assert isinstance(taken, Taken)
    assert 40 < taken.left_s <= 100


async def test_a_buried_task_is_revived_once_for_each_burial_and_counts_anew(ledger: Ledger) -> None:
    task_id = uuid4()
    await claimed(ledger, task_id, NOW_S, alone=True)
    claim = await claimed(ledger, task_id)
    assert await ledger.bury(task_id, claim.fence, 6, "failed: no")
    assert not await ledger.revive(task_id, claim.fence - 1)
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("dead", claim.fence)
    assert await ledger.revive(task_id, claim.fence)
    assert not await ledger.revive(task_id, claim.fence)  # the message was doubled
    assert await ledger.outcomes([task_id]) == []
    assert await ledger.prune(LONG_S) == 0
    again = await claimed(ledger, task_id)
    assert again.fence > claim.fence + 1
    assert (again.crashes, again.attempts, again.noticed) == ((), 0, False)
    assert not await ledger.revive(task_id, again.fence)
    assert await ledger.complete(task_id, again.fence, 1, None)
    assert not await ledger.revive(task_id, again.fence)
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.error, outcome.last_error) == ("done", None, "failed: no")


async def test_what_becomes_of_a_dead_letter_is_told_once_of_the_burial_that_it_is_of(ledger: Ledger) -> None:
    task_id, plain, off = uuid4(), uuid4(), uuid4()
    fence = (await claimed(ledger, task_id)).fence
    assert not await ledger.tell(task_id, fence, "; gone", "told\n")  # it is not dead
    assert await ledger.bury(task_id, fence, 6, "failed: no\n  File\nno", failed="line\n")
    assert not await ledger.tell(task_id, fence - 1, "; gone", "told\n")
    for said in ("; gone", "; 100% \0 as é"):
        assert await ledger.tell(task_id, fence, said, f"told{said}\n")
        assert not await ledger.tell(task_id, fence, said, f"again{said}\n")
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.error == "failed: no; gone; 100% \\x00 as é\n  File\nno"
    assert entry.story == "line\ntold; gone\ntold; 100% \\x00 as é\n"
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.error) == ("dead", entry.error)

    assert await ledger.revive(task_id, fence)
    assert not await ledger.tell(task_id, fence, "; once more", "told\n")
    again = (await claimed(ledger, task_id)).fence
    assert await ledger.bury(task_id, again, 6, "failed: no")
    assert await ledger.tell(task_id, again, "; gone", "told\n")

    fence = (await claimed(ledger, plain)).fence
    assert await ledger.bury(plain, fence, 1, "gave-up: no")
    assert await ledger.tell(plain, fence, "; gone", "told\n")
    assert [one.error for one in await ledger.outcomes([plain])] == ["gave-up: no; gone"]

    assert await ledger.cancel(off, "by ops") == "cancelled"
    assert not await ledger.tell(off, 0, "; gone", "told\n")
    assert [one.state for one in await ledger.outcomes([off])] == ["cancelled"]


async def test_a_claim_is_renewed_from_a_thread_while_the_event_loop_is_blocked(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id, NOW_S)
    answers: list[bool] = []

    def renew() -> None:
        answers.extend(ledger.renew_blocking(task_id, claim.fence + wrong, LONG_S) for wrong in (0, 1))

    thread = threading.Thread(target=renew)
    thread.start()
    thread.join()  # on the loop's own thread: nothing of it can run
    assert answers == [True, False]
    assert isinstance(await ledger.claim(task_id, "w", LONG_S, **ASKED), Taken)


async def test_a_ledger_is_the_same_for_all_who_open_it_and_another_one_differs(
    ledger: Ledger, store: Store, tmp_path: Path
) -> None:
    other, elsewhere = await store.open(), await open_ledger(Settings(ledger_url=f"sqlite:{tmp_path / 'other.db'}"))
    assert 2 <= ledger.identity < 2**31
    assert other.identity == ledger.identity != elsewhere.identity
    assert other.place == ledger.place != elsewhere.place
    assert ":" not in ledger.place.partition("://")[2].partition("@")[0] or ":***@" in ledger.place
    await other.close()
    await elsewhere.close()


# --- effects ----------------------------------------------------------------------------------------------------------


async def test_a_statement_gives_its_rows_and_their_number_and_takes_values(ledger: Ledger, store: Store) -> None:
    task_id, mark = uuid4(), store.mark
    claim = await claimed(ledger, task_id)
    named = "%(n)s" if mark == "%s" else ":n"
    async with ledger.completion(task_id, claim.fence, 1, None) as db:
        await db.execute("CREATE TABLE effect (n integer, word text)")
        assert (await db.execute(f"INSERT INTO effect VALUES ({mark}, {mark})", (1, "one"))).rowcount == 1
        assert (await db.execute(f"INSERT INTO effect VALUES ({named}, 'two')", {"n": 2})).rowcount == 1
        found = await db.execute(f"SELECT n, word FROM effect WHERE n > {mark} ORDER BY n", [0])
        assert found.rows == [(1, "one"), (2, "two")]
    with pytest.raises(RuntimeError, match="the block has ended"):
        await db.execute("SELECT 1")
    assert len(store.rows("effect")) == 2


async def test_a_statement_that_nobody_awaits_is_an_error_and_nothing_is_done(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    store.run("CREATE TABLE effect (n integer)")
    with pytest.raises(RuntimeError, match=r"await db.execute.*INSERT INTO effect VALUES"):  # noqa: PT012  # the end raises
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("INSERT INTO effect VALUES (1)")
            db.execute("INSERT INTO effect VALUES (2)")  # type: ignore[unused-coroutine]  # mypy tells it too
    assert store.rows("effect") == []
    assert await ledger.outcomes([task_id]) == []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # the handler's own error is not hidden
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            db.execute("INSERT INTO effect VALUES (2)")  # type: ignore[unused-coroutine]
            raise ZeroDivisionError
    async with ledger.completion(task_id, claim.fence, 1, None):
        pass


@pytest.mark.parametrize("statement", ["COMMIT", " rollback;", "END", "BEGIN", "commit work"])
async def test_a_handler_cannot_end_the_transaction_in_its_middle(ledger: Ledger, store: Store, statement: str) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    store.run("CREATE TABLE effect (n integer)")
    with pytest.raises(RuntimeError, match="ends the transaction itself"):  # noqa: PT012  # it is rolled back
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("INSERT INTO effect VALUES (1)")
            await db.execute(statement)
    assert store.rows("effect") == []
    assert await ledger.outcomes([task_id]) == []


async def test_a_savepoint_stays_inside_the_transaction(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    store.run("CREATE TABLE effect (n integer)")
    async with ledger.completion(task_id, claim.fence, 1, None) as db:
        for word in ("SAVEPOINT a", "INSERT INTO effect VALUES (1)", "ROLLBACK TO SAVEPOINT a"):
            await db.execute(word)
        await db.execute("INSERT INTO effect VALUES (2)")
    assert store.rows("effect") == [(2,)]


async def test_an_error_of_a_statement_is_the_handlers_and_the_next_block_works(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with pytest.raises((psycopg.Error, sqlite3.Error)):
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("INSERT INTO nothing VALUES (1)")
    async with ledger.completion(task_id, claim.fence, 1, None) as db:
        assert (await db.execute("SELECT 1")).rows == [(1,)]
    assert [outcome.state for outcome in await ledger.outcomes([task_id])] == ["done"]


def with_an_effect(store: Store) -> None:
    """It is there already, so that to write it again fails."""
    store.run("CREATE TABLE effect (n integer PRIMARY KEY)")
    store.run("INSERT INTO effect VALUES (1)")


async def test_a_block_that_goes_on_after_a_statement_failed_is_committed_as_a_whole_or_not_at_all(
    ledger: Ledger, store: Store
) -> None:
    """PostgreSQL commits nothing then and says so of no error; SQLite goes on without the statement."""
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with_an_effect(store)
    is_done, error = True, ""
    try:
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            with suppress(psycopg.errors.UniqueViolation, sqlite3.IntegrityError):
                await db.execute("INSERT INTO effect VALUES (1)")
            with suppress(psycopg.errors.InFailedSqlTransaction):
                await db.execute("INSERT INTO effect VALUES (2)")
    except psycopg.errors.InFailedSqlTransaction as failed:
        is_done, error = False, str(failed)
    assert is_done is (store.mark == "?")
    assert is_done or "SAVEPOINT" in error
    assert store.rows("effect") == ([(1,), (2,)] if is_done else [(1,)])
    assert [outcome.state for outcome in await ledger.outcomes([task_id])] == (["done"] if is_done else [])


async def test_a_block_whose_transaction_a_failed_statement_has_ended_commits_nothing(
    ledger: Ledger, store: Store
) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with_an_effect(store)
    word = "OR ROLLBACK " if store.mark == "?" else ""
    for more in ([], ["INSERT INTO effect VALUES (2)"]):
        with pytest.raises((sqlite3.OperationalError, psycopg.errors.InFailedSqlTransaction)):  # noqa: PT012
            async with ledger.completion(task_id, claim.fence, 1, None) as db:
                with suppress(psycopg.Error, sqlite3.IntegrityError):
                    await db.execute(f"INSERT {word}INTO effect VALUES (1)")
                for statement in more:
                    await db.execute(statement)
        assert store.rows("effect") == [(1,)]
        assert await ledger.outcomes([task_id]) == []


async def test_blocks_at_once_all_succeed_and_the_event_loop_stands_still_for_none(
    ledger: Ledger, store: Store
) -> None:
    store.run("CREATE TABLE effect (n integer)")
    ids, longest_s, others = [uuid4() for _ in range(6)], 0.0, 0

    async def write(task_id: UUID) -> None:
        claim = await claimed(ledger, task_id)
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute(f"INSERT INTO effect VALUES ({store.mark})", (task_id.int % 1000,))
            await asyncio.sleep(0.1)

    async def watch() -> None:
        nonlocal longest_s
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - began)

    async def work() -> None:
        nonlocal others
        while True:
            task_id = uuid4()
            with suppress(LedgerBusy):
                await ledger.complete(task_id, (await claimed(ledger, task_id)).fence, 1, None)
                others += 1
            await asyncio.sleep(0)

    beside = [asyncio.ensure_future(watch()), asyncio.ensure_future(work())]
    await asyncio.gather(*map(write, ids))
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    assert len(await ledger.outcomes(ids)) == 6
    assert len(store.rows("effect")) == 6
    assert longest_s < 1
    assert others  # those beside get their turn between two blocks


async def test_a_block_that_is_cancelled_in_a_statement_leaves_nothing_and_the_next_one_works(
    ledger: Ledger, store: Store
) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    slow = (
        "SELECT pg_sleep(30)" if store.mark == "%s" else
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000000) SELECT max(n) FROM c"
    )  # fmt: skip
    began = time.monotonic()
    with pytest.raises(TimeoutError):  # noqa: PT012  # whichever statement it is in
        async with asyncio.timeout(0.3), ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("CREATE TABLE effect (n integer)")
            await db.execute(slow)
    assert time.monotonic() - began < 10
    assert await ledger.outcomes([task_id]) == []
    async with ledger.completion(task_id, claim.fence, 1, None) as db:
        await db.execute("CREATE TABLE effect (n integer)")


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_outcomes_of_any_number_of_tasks_are_those_that_are_finished(ledger: Ledger) -> None:
    ids = [UUID(int=number) for number in range(2500)]
    for task_id in ids[::2]:
        fence = (await claimed(ledger, task_id)).fence
        if task_id.int % 4:
            await ledger.bury(task_id, fence, 6, f"failed: {task_id.int}")
        else:
            await ledger.complete(task_id, fence, 1, json.dumps(task_id.int))
    await claimed(ledger, ids[1])
    found = {outcome.id: outcome for outcome in await ledger.outcomes(ids)}
    assert list(found) != []
    assert set(found) == set(ids[::2])
    assert await ledger.outcomes([]) == []
    for task_id, outcome in found.items():
        dead = bool(task_id.int % 4)
        assert (outcome.state, outcome.worker, outcome.attempts) == (("dead", "w", 6) if dead else ("done", "w", 1))
        assert outcome.result == (None if dead else str(task_id.int))
        assert outcome.error == (f"failed: {task_id.int}" if dead else None)
        assert abs(outcome.finished_at - time.time()) < 60


async def test_a_task_that_was_recorded_waits_until_it_is_claimed_for_the_first_time(ledger: Ledger) -> None:
    task_id = uuid4()
    assert await ledger.entry(task_id) is None
    await ledger.record([Sent(task_id, "nap", b"one")])
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.id, entry.state, entry.kind, entry.digest) == (task_id, "waiting", "nap", b"one")
    assert (entry.worker, entry.held, entry.attempts, entry.claimed_at, entry.next_at) == ("", False, 0, None, None)
    assert abs((entry.created_at or 0.0) - time.time()) < 60
    assert await ledger.outcomes([task_id]) == []
    assert await ledger.claim(task_id, "w", LONG_S, **{**ASKED, "digest": b"two"}) == Conflict()
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Claimed(fence=1, crashes=())
    assert await ledger.complete(task_id, 1, 1, None)


async def test_recording_changes_nothing_of_what_is_known(ledger: Ledger) -> None:
    running, done = uuid4(), uuid4()
    claim = await claimed(ledger, running)
    await ledger.complete(done, (await claimed(ledger, done)).fence, 1, "7")
    before = [await ledger.entry(running), await ledger.entry(done)]
    await ledger.record([Sent(task_id, "other", b"other") for task_id in (running, done)])
    assert [await ledger.entry(running), await ledger.entry(done)] == before
    assert await ledger.complete(running, claim.fence, 1, None)


async def test_any_number_of_tasks_is_recorded_at_once_twice_too(ledger: Ledger) -> None:
    sent = [Sent(uuid4(), f"kind {number}", bytes([number % 256])) for number in range(701)]
    for _ in range(2):
        await ledger.record([*sent, sent[0]])
    for task in (sent[0], sent[350], sent[-1]):
        entry = await ledger.entry(task.id)
        assert entry is not None
        assert (entry.state, entry.kind, entry.digest) == ("waiting", task.kind, task.digest)


async def test_an_entry_tells_who_has_the_task_and_what_became_of_it(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.worker, entry.held, entry.attempts) == ("running", "w", True, 0)
    assert abs((entry.claimed_at or 0.0) - time.time()) < 60
    await ledger.release(task_id, claim.fence, attempts=1, error="ValueError: no", next_s=LONG_S)
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.held, entry.attempts, entry.last_error) == ("waiting", False, 1, "ValueError: no")
    assert LONG_S - 60 < (entry.next_at or 0.0) - time.time() < LONG_S + 60
    dead = uuid4()
    await ledger.bury(dead, (await claimed(ledger, dead)).fence, 3, "failed: no")
    entry = await ledger.entry(dead)
    assert entry is not None
    assert (entry.state, entry.error, entry.held) == ("dead", "failed: no", False)
    assert abs((entry.finished_at or 0.0) - time.time()) < 60


async def test_a_claim_whose_lease_has_ended_is_held_no_more(ledger: Ledger) -> None:
    task_id = uuid4()
    await claimed(ledger, task_id, NOW_S)
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.held) == ("running", False)


async def test_a_task_that_was_recorded_and_never_taken_is_forgotten_in_time(ledger: Ledger) -> None:
    task_id = uuid4()
    await ledger.record([Sent(task_id, "nap", b"one")])
    assert await ledger.prune(LONG_S) == 0
    assert await ledger.prune(-60.0) == 1
    assert await ledger.entry(task_id) is None


async def test_prune_forgets_what_is_old_and_keeps_what_is_not(ledger: Ledger) -> None:
    finished, running, abandoned = uuid4(), uuid4(), uuid4()
    await ledger.complete(finished, (await claimed(ledger, finished)).fence, 1, None)
    claim = await claimed(ledger, running)
    await claimed(ledger, abandoned, NOW_S)
    assert await ledger.prune(LONG_S) == 0
    assert await ledger.prune(0) == 2  # by their ends: the running one's lies ahead
    assert await ledger.outcomes([finished]) == []
    assert await ledger.complete(running, claim.fence, 1, None)
    assert (await claimed(ledger, abandoned)).crashes == ()


async def test_prune_looks_at_every_task_however_many_there_are(ledger: Ledger) -> None:
    ids = [uuid4() for _ in range(1203)]
    for task_id in ids:
        fence = (await claimed(ledger, task_id)).fence
        if task_id.int % 3:
            await ledger.complete(task_id, fence, 1, None)
    finished = [task_id for task_id in ids if task_id.int % 3]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    meanwhile = asyncio.ensure_future(others())
    assert await ledger.prune(0) == len(finished)
    meanwhile.cancel()
    assert turns >= (3 if ledger.place.startswith("/") else 1)  # a file's prune holds nobody up for long
    assert await ledger.outcomes(ids) == []
    assert await ledger.prune(-2 * LONG_S) == len(ids) - len(finished)


async def test_without_a_ledger_every_claim_is_granted_and_nothing_is_remembered() -> None:
    ledger = await open_ledger(Settings(ledger_url="none"))
    assert isinstance(ledger, NoLedger)
    task_id = uuid4()
    for _ in range(2):
        assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Claimed(0, None)
        assert await ledger.renew(task_id, 0, LONG_S)
        assert await ledger.complete(task_id, 0, 1, None)
        assert await ledger.bury(task_id, 0, 1, "no")
        assert await ledger.release(task_id, 0)
    assert await ledger.outcomes([task_id]) == []
    assert await ledger.prune(0) == 0
    with pytest.raises(RuntimeError, match="LEDGER_URL"):
        async with ledger.completion(task_id, 0, 1, None):
            pass
    await ledger.close()
