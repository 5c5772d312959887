"""Many statements at once on a PostgreSQL ledger: each gets its own answer, and none waits for another's lock."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.test_ledger_postgres import ASKED, LONG_S, claimed, end_sessions, port_of, role, run, url
from workqueue.client.asking import patiently
from workqueue.ledger import Claimed, Finished, LedgerBusy, Taken, postgres, postgres_pool
from workqueue.ledger.postgres import PostgresLedger
from workqueue.ledger.postgres_pool import AT_MOST, Locked
from workqueue.ledger.postgres_session import numbered
from workqueue.testing import until
from workqueue.testing.proxy import Proxy

__all__ = ["role", "url"]  # fixtures

OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'workqueue'"


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[PostgresLedger]:
    opened = await PostgresLedger(url).set_up()
    yield opened
    await opened.close()


def connections(url: str) -> int:
    count: int = run(url, OURS)[0][0]
    return count


@contextmanager
def locked(url: str, *ids: UUID) -> Iterator[None]:
    """Somebody else's transaction has these tasks' rows, and does not end; those that do not exist it has inserted."""
    with psycopg.connect(url, application_name="foreign") as foreign:
        for task_id in ids:
            foreign.execute(
                "INSERT INTO workqueue_task (id, state, fence, worker, lease_until) VALUES (%s, 'done', 1, '', now())"
                " ON CONFLICT (id) DO UPDATE SET worker = 'foreign'",
                (task_id,),
            )
        yield
        foreign.rollback()


async def timed(work: Awaitable[Any]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_each_of_many_at_once_gets_its_own_answer(ledger: PostgresLedger) -> None:
    """Each task has a number in all that is known of it, so that two answers that are mixed up show."""
    ids = [uuid4() for _ in range(120)]
    fences = {}
    for number, task_id in enumerate(ids):
        for _ in range(number % 3):
            claim = await claimed(ledger, task_id, digest=str(number).encode())
            assert await ledger.save(task_id, claim.fence, str(number))
            assert await ledger.release(task_id, claim.fence, attempts=number)
    busy = ids[::10]
    for task_id in busy:
        fences[task_id] = (await claimed(ledger, task_id, digest=str(ids.index(task_id)).encode())).fence

    async def work(number: int, task_id: UUID) -> None:
        claim = await ledger.claim(task_id, f"w{number}", LONG_S, kind="k", digest=str(number).encode(), alone=False)
        if task_id in busy:
            assert isinstance(claim, Taken), claim
            assert claim.attempts == (number if number % 3 else 0)
        else:
            assert isinstance(claim, Claimed), claim
            fences[task_id] = claim.fence
            assert claim.fence == number % 3 + 1
            assert (claim.attempts, claim.checkpoint) == ((number, str(number)) if number % 3 else (0, None))
        entry = await ledger.entry(task_id)
        assert entry is not None
        assert (entry.id, entry.digest, entry.worker) == (
            task_id,
            str(number).encode(),
            "w" if task_id in busy else f"w{number}",
        )
        wrong = number % 7 == 0
        assert await ledger.renew(task_id, fences[task_id] + wrong, LONG_S) is not wrong
        assert await ledger.complete(task_id, fences[task_id] + wrong, number, f"result {number}") is not wrong

    await asyncio.gather(*(work(number, task_id) for number, task_id in enumerate(ids)))
    done = {outcome.id: outcome for outcome in await ledger.outcomes(ids)}
    assert done.keys() == {task_id for number, task_id in enumerate(ids) if number % 7}
    for number, task_id in enumerate(ids):
        if number % 7:
            assert (done[task_id].attempts, done[task_id].result) == (number, f"result {number}")
            assert await ledger.claim(task_id, "w", LONG_S, kind="k", digest=str(number).encode(), alone=False) == (
                Finished("done", fences[task_id])
            )


async def test_one_of_many_who_claim_the_same_task_at_once_gets_it(ledger: PostgresLedger) -> None:
    for _ in range(5):
        task_id, others = uuid4(), [uuid4() for _ in range(20)]
        answers = await asyncio.gather(
            *(
                ledger.claim(one, "w", LONG_S, **ASKED)
                for pair in zip([task_id] * 20, others, strict=True)
                for one in pair
            )
        )
        assert sorted(type(answer).__name__ for answer in answers[::2]) == ["Claimed"] + ["Taken"] * 19
        assert all(isinstance(answer, Claimed) for answer in answers[1::2])
        assert all(await asyncio.gather(*(ledger.complete(task_id, 1, number, str(number)) for number in range(20))))
        before = await ledger.outcomes([task_id])
        assert str(before[0].attempts) == before[0].result
        assert await ledger.complete(task_id, 1, 99, None)
        assert await ledger.outcomes([task_id]) == before  # it was done once


async def test_an_answer_and_a_value_may_be_larger_than_what_a_socket_takes(ledger: PostgresLedger) -> None:
    ids, large = [uuid4() for _ in range(3)], "x" * 20_000_000
    for task_id in ids:
        await claimed(ledger, task_id)
    assert all(await asyncio.gather(*(ledger.complete(task_id, 1, 1, large) for task_id in ids)))
    assert [outcome.result == large for outcome in await ledger.outcomes(ids)] == [True] * 3


async def test_a_value_that_the_server_refuses_fails_its_own_task_only(ledger: PostgresLedger) -> None:
    ids = [uuid4() for _ in range(20)]
    await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
    attempts = [2**40 if number == 10 else number for number in range(20)]
    tasks = zip(ids, attempts, strict=True)
    answers = await asyncio.gather(
        *(ledger.complete(task_id, 1, count, None) for task_id, count in tasks), return_exceptions=True
    )
    assert isinstance(answers.pop(10), LedgerBusy)
    assert answers == [True] * 19


def test_values_are_numbered_by_place_or_by_name() -> None:
    assert numbered("SELECT %s, %s::uuid[]")[0] == b"SELECT $1, $2::uuid[]"
    assert numbered("SELECT %(a)s, %(b)s, %(a)s") == (b"SELECT $1, $2, $1", ["a", "b"])


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 15], ids=["the first", "one of a batch"])
@pytest.mark.parametrize("exists", [True, False], ids=["changed", "inserted"])
async def test_a_row_that_somebody_has_locked_delays_no_other_claim(
    ledger: PostgresLedger, url: str, place: int, exists: bool
) -> None:
    async def slowest() -> float:
        """How long the slowest other one took."""
        ids = [uuid4() for _ in range(30)]
        if exists:
            await ledger.release(ids[place], (await claimed(ledger, ids[place])).fence)
        with locked(url, ids[place]):
            waits = [asyncio.ensure_future(timed(ledger.claim(task_id, "w", LONG_S, **ASKED))) for task_id in ids]
            held = waits.pop(place)
            took_s = max(await asyncio.gather(*waits))
            assert not held.done()
            held.cancel()
        return took_s

    assert min([await slowest() for _ in range(4)]) < 0.1


@pytest.mark.parametrize("place", [0, 15], ids=["the first", "one of a batch"])
async def test_a_row_that_somebody_has_locked_delays_no_other_completion(
    ledger: PostgresLedger, url: str, place: int
) -> None:
    async def slowest() -> float:
        ids = [uuid4() for _ in range(30)]
        claims = await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
        with locked(url, ids[place]):
            waits = [
                asyncio.ensure_future(timed(ledger.complete(task_id, claim.fence, 1, None)))
                for task_id, claim in zip(ids, claims, strict=True)
            ]
            held = waits.pop(place)
            took_s = max(await asyncio.gather(*waits))
            with pytest.raises(LedgerBusy):
                await held
        assert await ledger.complete(ids[place], 1, 1, None)
        return took_s

    assert min([await slowest() for _ in range(3)]) < 0.1


async def test_a_row_that_is_locked_for_five_seconds_is_taken_and_the_others_go_on(
    ledger: PostgresLedger, url: str
) -> None:
    """A task comes back to its worker while it is locked: nobody else's throughput ends with that."""
    held, turns, waits = uuid4(), 0, list[float]()
    await claimed(ledger, held, -1.0)

    async def others() -> None:
        while until_s > time.monotonic():
            began, task_id = time.monotonic(), uuid4()
            assert await ledger.complete(task_id, (await claimed(ledger, task_id)).fence, 1, None)
            waits.append(time.monotonic() - began)

    with locked(url, held):
        until_s = time.monotonic() + 5.0
        working = asyncio.gather(*(others() for _ in range(20)))
        while time.monotonic() < until_s:
            assert await ledger.claim(held, "w", LONG_S, **ASKED) == Taken(1.0)
            turns += 1
        await working
    assert turns >= 4
    waits.sort()
    assert waits[len(waits) * 99 // 100] < 0.2  # two statements of them
    assert waits[-1] < 1.0


async def test_who_has_the_row_of_a_task_is_told_and_nobody_else_is(ledger: PostgresLedger, url: str) -> None:
    mine, held, other = uuid4(), uuid4(), uuid4()
    fences = {task_id: (await claimed(ledger, task_id, LONG_S)).fence for task_id in (mine, held, other)}
    with locked(url, held), psycopg.connect(url, application_name="another") as another:
        another.execute("SELECT 1 FROM workqueue_task WHERE id = %s FOR UPDATE", (other,))
        for task_id, name in ((held, "foreign"), (other, "another")):
            pattern = rf"^the row of task {task_id} is locked by {name} \(role \w+, pid \d+.*, idle in transaction"
            with pytest.raises(Locked, match=pattern):
                await ledger.complete(task_id, fences[task_id], 1, None)
            with pytest.raises(Locked, match=pattern):
                await ledger.release(task_id, fences[task_id])
        waiting = asyncio.ensure_future(ledger.complete(held, fences[held], 1, None))
        await until(lambda: run(url, "SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0], "it waits")
        found = await ledger.board.locks()
        assert sorted(lock.name for lock in found) == ["another", "foreign"]  # who waits itself has nothing locked
        assert all(lock.pid and lock.open_s is not None for lock in found)
        with pytest.raises(Locked):
            await waiting
        assert await ledger.complete(mine, fences[mine], 1, None)
    assert await ledger.board.locks() == []
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM workqueue_task")
        assert await ledger.board.locks() == []


async def test_two_who_share_a_row_are_both_named(ledger: PostgresLedger, url: str) -> None:
    task_id = uuid4()
    fence = (await claimed(ledger, task_id, LONG_S)).fence
    with psycopg.connect(url, application_name="a") as one, psycopg.connect(url, application_name="b") as other:
        for sharer in (one, other):
            sharer.execute("SELECT 1 FROM workqueue_task WHERE id = %s FOR SHARE", (task_id,))
        with pytest.raises(Locked, match=r"is locked by . \(role .*\) or . \(role .*\)$"):
            await ledger.complete(task_id, fence, 1, None)


async def test_a_claim_that_waits_for_one_lock_after_the_other_is_made_for_nobody_at_last(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Each of them is waited for for less than a lock may take: no end of that but the statement's own."""
    monkeypatch.setattr(postgres, "FOR_STATEMENTS", postgres.FOR_STATEMENTS.replace("9.0s", "2s"))
    ledger, task_id = await PostgresLedger(url).set_up(), uuid4()
    await claimed(ledger, task_id, -1.0)
    share = "SELECT 1 FROM workqueue_task WHERE id = %s FOR SHARE"
    with psycopg.connect(url) as first, psycopg.connect(url) as second:
        holder, next_one = first, second
        holder.execute(share, (task_id,))
        asking = asyncio.ensure_future(ledger.claim(task_id, "w", LONG_S, **ASKED))
        for _ in range(10):
            await asyncio.sleep(0.4)
            next_one.execute(share, (task_id,))
            holder.rollback()
            holder, next_one = next_one, holder
        assert asking.done()
        assert await asking == Taken(1.0)
    assert (await claimed(ledger, task_id)).fence == 2  # by nobody in between
    await ledger.close()


async def test_as_many_rows_as_there_are_connections_that_somebody_has_locked_delay_no_other(
    ledger: PostgresLedger, url: str
) -> None:
    """Such as those of a host that died within several completions: their tasks come back, again and again."""
    ids, waits = [uuid4() for _ in range(2 * AT_MOST)], list[float]()

    async def others() -> None:
        while time.monotonic() < until_s:
            waits.append(await timed(claimed(ledger, uuid4())))

    async def comes_back(task_id: UUID) -> None:
        while time.monotonic() < until_s:
            assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Taken(1.0)

    with locked(url, *ids):
        until_s = time.monotonic() + 3.0
        await asyncio.gather(*map(comes_back, ids), *(others() for _ in range(10)))
    waits.sort()
    assert waits[len(waits) * 99 // 100] < 0.8  # it was more than a second


async def test_a_table_of_the_board_that_somebody_has_locked_delays_no_claim(ledger: PostgresLedger, url: str) -> None:
    await claimed(ledger, uuid4())
    with psycopg.connect(url, application_name="foreign") as foreign:
        foreign.execute("LOCK TABLE workqueue_worker IN ACCESS EXCLUSIVE MODE")
        telling = asyncio.ensure_future(ledger.board.put(uuid4(), "w", "{}"))
        await asyncio.sleep(0.01)
        await claimed(ledger, uuid4())
        assert not telling.done()
        foreign.rollback()
        await telling


# --- connections ------------------------------------------------------------------------------------------------------


async def test_one_task_at_a_time_takes_one_connection_and_many_take_a_few(
    ledger: PostgresLedger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "LONG_S", 5.0)  # on a busy machine any statement may take a while
    telling = asyncio.ensure_future(tell(ledger))
    for _ in range(100):
        task_id = uuid4()
        claim = await claimed(ledger, task_id)
        assert await ledger.renew(task_id, claim.fence, LONG_S)
        assert await ledger.complete(task_id, claim.fence, 1, None)
    telling.cancel()
    assert connections(url) == 1
    ids = [uuid4() for _ in range(100)]
    await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
    await grown(ledger, ids, lambda: connections(url))
    assert connections(url) <= AT_MOST
    await ledger.close()
    await until(lambda: not connections(url), "all are closed")


async def grown(ledger: PostgresLedger, ids: list[UUID], connections: Callable[[], int]) -> None:
    """Ask until there is a second connection: on a busy machine one may have answered all before another is made."""

    async def asked() -> bool:
        await asyncio.gather(*(ledger.renew(task_id, 1, LONG_S) for task_id in ids))
        return connections() > 1

    await until(asked, "there is more than one connection")


async def tell(ledger: PostgresLedger) -> None:
    """What a worker does beside its tasks."""
    process = uuid4()
    while True:
        await ledger.board.put(process, "w", "{}")
        await ledger.to_cancel([process])
        await ledger.board.pauses()
        await asyncio.sleep(0)


async def test_who_asks_after_the_close_opens_nothing_that_nobody_closes(url: str) -> None:
    ledger = await PostgresLedger(url).set_up()
    asking = [asyncio.ensure_future(patiently(lambda: ledger.entry(uuid4()), 0.2)) for _ in range(5)]
    await asyncio.sleep(0)
    await ledger.close()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert {str(answer) for answer in answers} == {"it was closed"}
    assert not connections(url)


async def test_a_connection_whose_making_is_cancelled_is_made_for_the_next(ledger: PostgresLedger) -> None:
    """An application that ends cancels all tasks of its loop, also those that it did not begin."""
    own = asyncio.all_tasks()
    asking = asyncio.ensure_future(ledger.entry(uuid4()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - own:
        task.cancel()
    await asyncio.wait([asking])
    assert await asyncio.wait_for(ledger.entry(uuid4()), 5.0) is None


async def test_a_caller_that_is_cancelled_leaves_its_connection_to_its_own_answer(
    ledger: PostgresLedger, url: str
) -> None:
    task_id, others = uuid4(), [uuid4() for _ in range(50)]
    claim = await claimed(ledger, task_id)
    with locked(url, task_id):
        waiting = asyncio.ensure_future(ledger.save(task_id, claim.fence, "1"))
        await asyncio.sleep(0.05)
        assert waiting.cancel()
        for other in others:  # no answer of the one that was given up is taken for another's
            assert (await claimed(ledger, other)).fence == 1
    before = connections(url)
    await until(lambda: not run(url, f"{OURS} AND state = 'active'")[0][0], "it was answered")
    for other in others:
        entry = await ledger.entry(other)
        assert entry is not None
        assert entry.id == other
    assert connections(url) == before


async def test_many_who_are_cancelled_at_once_leave_the_answers_of_the_others_right(ledger: PostgresLedger) -> None:
    for _ in range(10):
        ids = [uuid4() for _ in range(60)]
        asking = [asyncio.ensure_future(ledger.claim(task_id, task_id.hex, LONG_S, **ASKED)) for task_id in ids]
        await asyncio.sleep(0.001)
        for one in asking[::3]:
            one.cancel()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, Claimed) for place, one in enumerate(answers) if place % 3)
        entries = await asyncio.gather(*(ledger.entry(task_id) for task_id in ids))
        assert all(entry.worker == entry.id.hex for entry in entries if entry is not None)
        assert all(entry is not None for place, entry in enumerate(entries) if place % 3)


async def test_where_the_server_is_gone_one_connection_is_tried_for_all_who_wait(url: str) -> None:
    async with Proxy(port_of(url)) as proxy:
        ledger = await PostgresLedger(url.replace(f":{port_of(url)}/", f":{proxy.port}/")).set_up()
        ids = [uuid4() for _ in range(100)]
        await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
        await grown(ledger, ids, lambda: len(proxy.flows))
        tried = 0

        async def gone() -> None:
            nonlocal tried
            tried += 1
            await asyncio.sleep(0.01)  # as long as it takes to be refused
            raise psycopg.OperationalError("the server is gone")

        ledger._pool._connect = gone  # type: ignore[assignment]
        for most in (0, 1, 2):  # at first the connections end, then there are none
            proxy.cut_all()
            asking = [ledger.renew(task_id, 1, LONG_S) for task_id in ids] + [
                ledger.complete(task_id, 1, 1, None) for task_id in ids
            ]
            answers = await asyncio.gather(*asking, return_exceptions=True)
            assert all(isinstance(answer, LedgerBusy) for answer in answers), answers
            assert tried <= most + 1
        await ledger.close()


async def test_a_statement_that_fails_takes_the_idle_connections_with_it(ledger: PostgresLedger, url: str) -> None:
    """They may lead to a server that is no longer the one to ask."""
    ids = [uuid4() for _ in range(60)]
    await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
    await grown(ledger, ids, lambda: connections(url))
    run(url, "ALTER TABLE workqueue_task RENAME TO gone")
    made, connect = 0, ledger._pool._connect

    async def counted() -> Any:
        nonlocal made
        made += 1
        return await connect()

    ledger._pool._connect = counted
    with pytest.raises(LedgerBusy):
        await ledger.renew(ids[0], 1, LONG_S)
    await until(lambda: not connections(url), "they are closed")
    answers = await asyncio.gather(*(ledger.renew(task_id, 1, LONG_S) for task_id in ids), return_exceptions=True)
    assert all(isinstance(answer, LedgerBusy) for answer in answers)
    assert made <= 3  # and not one for each: those who waited have failed with the first
    await until(lambda: not connections(url), "they are closed")
    run(url, "ALTER TABLE gone RENAME TO workqueue_task")
    assert await ledger.renew(ids[0], 1, LONG_S)


async def test_where_the_server_has_no_connection_left_the_one_that_is_there_serves_all(url: str, role: str) -> None:
    await (await PostgresLedger(url).set_up()).close()
    name = role.partition("//")[2].partition(":")[0]
    run(url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON workqueue_task TO {name}",
        f"ALTER ROLE {name} CONNECTION LIMIT 1")  # fmt: skip
    theirs = await PostgresLedger(role).set_up()
    ids = [uuid4() for _ in range(60)]
    await asyncio.gather(*(claimed(theirs, task_id) for task_id in ids))
    for _ in range(3):
        assert all(await asyncio.gather(*(theirs.renew(task_id, 1, LONG_S) for task_id in ids)))
    await theirs.close()


async def test_connections_that_ended_while_nobody_asked_are_not_used(ledger: PostgresLedger, url: str) -> None:
    ids = [uuid4() for _ in range(60)]
    await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
    await asyncio.gather(*(ledger.renew(task_id, 1, LONG_S) for task_id in ids))
    end_sessions(url)
    await until(lambda: not connections(url), "they have ended")
    await asyncio.sleep(0.05)
    assert all(await asyncio.gather(*(ledger.renew(task_id, 1, LONG_S) for task_id in ids)))


async def test_plans_that_were_made_for_an_empty_table_do_not_read_all_of_it_later(
    ledger: PostgresLedger, url: str
) -> None:
    run(url, "ALTER TABLE workqueue_task SET (autovacuum_enabled = off)")
    for _ in range(10):  # more than it takes to prepare them, and the server to keep their plans
        ids = [uuid4() for _ in range(30)]
        await asyncio.gather(*(claimed(ledger, task_id) for task_id in ids))
        assert all(await asyncio.gather(*(ledger.complete(task_id, 1, 1, None) for task_id in ids)))
    await ledger.close()
    read = "SELECT seq_scan, idx_scan > 0 FROM pg_stat_user_tables WHERE relname = 'workqueue_task'"
    await until(lambda: run(url, read)[0][1], "the server has counted")
    assert run(url, read)[0][0] <= 1  # the table was made
