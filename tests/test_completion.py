"""The block of `context.completion`, whatever a handler makes of it: it keeps the ledger from nobody."""

import asyncio
import resource
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.test_handlers import attempts, outcome_of
from tests.test_ledger import Store, claimed, ledger, store
from workqueue.errors import LedgerLost
from workqueue.ledger import ClaimLost, Ledger, LedgerBusy, postgres_block, sqlite_block
from workqueue.ledger.sqlite import SqliteLedger
from workqueue.settings import Settings
from workqueue.tasks import scope
from workqueue.tasks.context import TaskContext
from workqueue.tasks.scope import CutOff
from workqueue.tasks.stack import describe

__all__ = ["ledger", "store"]  # fixtures

Handle = Callable[[TaskContext[None]], Awaitable[None]]
ANSWER_S = 0.2
INSERT = "INSERT INTO effect VALUES (1)"
ENDED_IN_IT = "the handler ended in a block of context.completion: leave that first, by async with"
ONE_ALREADY = "context.completion is for one block of a handler, and there is one: it would wait for itself"


async def returns_in_it(context: TaskContext[None]) -> None:
    block = context.completion()
    db = await block.__aenter__()
    await db.execute(INSERT)


async def raises_in_it(context: TaskContext[None]) -> None:
    await returns_in_it(context)
    raise ValueError("no")


async def leaves_it_to_a_task(context: TaskContext[None]) -> None:
    async def complete() -> None:
        async with context.completion() as db:
            await db.execute(INSERT)
            begun.set()
            await asyncio.sleep(0.2)

    begun = asyncio.Event()
    left_behind.add(asyncio.ensure_future(complete()))
    await begun.wait()


async def begins_another_within(context: TaskContext[None]) -> None:
    async with context.completion() as db:
        await db.execute(INSERT)
        async with context.completion():
            pass


async def begins_two_at_a_time(context: TaskContext[None]) -> None:
    async def complete() -> None:
        async with context.completion() as db:
            await db.execute(INSERT)
            await asyncio.sleep(0.05)
            raise ValueError("no")

    await asyncio.gather(complete(), complete())


left_behind = set["asyncio.Future[None]"]()
WAYS: dict[Handle, str] = {
    returns_in_it: ENDED_IN_IT,
    raises_in_it: "ValueError: no",
    leaves_it_to_a_task: ENDED_IN_IT,
    begins_another_within: ONE_ALREADY,
    begins_two_at_a_time: ONE_ALREADY,
}


@pytest.mark.parametrize(("handle", "said"), WAYS.items(), ids=lambda given: getattr(given, "__name__", ""))
async def test_a_block_that_is_not_left_is_a_failed_attempt_and_keeps_the_ledger_from_nobody(
    ledger: Ledger, store: Store, handle: Handle, said: str
) -> None:  # fmt: skip
    store.run("CREATE TABLE effect (n integer)")
    task_id, other = uuid4(), uuid4()
    claim = await claimed(ledger, task_id)
    context = TaskContext(
        "w1", 1, Settings(), None, lambda result: ledger.completion(task_id, claim.fence, 1, None)
    )  # fmt: skip
    failed = await outcome_of(attempts(lambda _, given: handle(given)), context=context)
    assert said in describe(failed)
    assert not context.completed
    async with asyncio.timeout(5):
        beside = await claimed(ledger, other)
        assert await ledger.complete(other, beside.fence, 1, None)
        assert await ledger.release(task_id, claim.fence, attempts=1)
    while left_behind:
        await left_behind.pop()
    assert store.rows("effect") == []
    assert [outcome.id for outcome in await ledger.outcomes([task_id, other])] == [other]


async def test_what_is_completed_stays_so_and_a_second_block_says_why_there_is_none(ledger: Ledger) -> None:
    async def handle(context: TaskContext[None]) -> None:
        async with context.completion():
            pass
        async with context.completion():
            pass

    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    context = TaskContext("w1", 1, Settings(), None, lambda result: ledger.completion(task_id, claim.fence, 1, None))
    failed = await outcome_of(attempts(lambda _, given: handle(given)), context=context)
    assert describe(failed).endswith("there was one: the task is completed")
    assert context.completed
    (outcome,) = await ledger.outcomes([task_id])
    assert outcome.state == "done"


async def ends_with_it(context: TaskContext[None]) -> None:
    async with context.completion() as db:
        await db.execute(INSERT)


async def leaves_the_end_to_a_task(context: TaskContext[None]) -> None:
    left_behind.add(asyncio.ensure_future(ends_with_it(context)))
    await asyncio.Event().wait()


@pytest.mark.parametrize("handle", [ends_with_it, leaves_the_end_to_a_task])
async def test_what_is_committed_while_the_handler_is_stopped_is_done(
    ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch, handle: Handle
) -> None:
    def in_sqlite(db: Any) -> None:
        at_once[0](db)
        loop.call_soon_threadsafe(committed.set)
        time.sleep(ANSWER_S)

    async def in_postgres(connection: Any) -> None:
        await at_once[1](connection)
        committed.set()
        await asyncio.sleep(ANSWER_S)

    at_once: tuple[Any, Any] = sqlite_block._commit, postgres_block._commit
    monkeypatch.setattr(sqlite_block, "_commit", in_sqlite)
    monkeypatch.setattr(postgres_block, "_commit", in_postgres)
    monkeypatch.setattr(scope, "CANCEL_AGAIN_S", ANSWER_S / 10)
    loop, committed = asyncio.get_running_loop(), asyncio.Event()
    store.run("CREATE TABLE effect (n integer)")
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    context = TaskContext("w1", 1, Settings(), None, lambda result: ledger.completion(task_id, claim.fence, 1, None))
    runner = attempts(lambda _, given: handle(given))
    running = asyncio.ensure_future(outcome_of(runner, context=context))
    await committed.wait()
    runner.cut_off()
    assert isinstance(await running, CutOff)
    assert context.completed
    assert store.rows("effect") == [(1,)]
    while left_behind:
        await left_behind.pop()


@pytest.mark.parametrize("own", [LedgerLost("/other.db", "it was deleted"), LedgerBusy("no answer"), ClaimLost()])
async def test_another_ledger_that_the_block_asks_is_the_handlers_own(ledger: Ledger, own: Exception) -> None:
    async def handle(context: TaskContext[None]) -> None:
        async with context.completion():
            raise own

    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    context = TaskContext("w1", 1, Settings(), None, lambda result: ledger.completion(task_id, claim.fence, 1, None))
    failed = await outcome_of(attempts(lambda _, given: handle(given)), context=context)
    assert describe(failed).startswith(f"the handler raised {type(own).__name__}")
    assert await ledger.outcomes([task_id]) == []


def test_a_handler_can_not_say_by_itself_that_its_task_is_completed() -> None:
    context: Any = TaskContext("w1", 1, Settings(), None, lambda result: pytest.fail("not asked for"))
    with pytest.raises(AttributeError):
        context.completed = True


@pytest.mark.parametrize("place", ["at the commit", "at a statement", "at one that the handler lets pass"])
async def test_a_disk_that_is_full_is_no_failure_of_the_handlers(tmp_path: Path, place: str) -> None:
    """Nothing can be written beyond the present end of the log."""
    ledger, task_id = SqliteLedger(str(tmp_path / "ledger.db")), uuid4()
    claim = await claimed(ledger, task_id)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log_bytes = (tmp_path / "ledger.db-wal").stat().st_size

    async def complete() -> None:
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("CREATE TABLE IF NOT EXISTS effect (text TEXT)")
            if place != "at the commit":
                await db.execute("PRAGMA cache_size = 1")  # it is written before the commit, too
                resource.setrlimit(resource.RLIMIT_FSIZE, (log_bytes, limits[1]))
            try:
                await db.execute("INSERT INTO effect VALUES (?)", ["x" * 200_000])
            except sqlite3.OperationalError:
                if place == "at a statement":
                    raise
            resource.setrlimit(resource.RLIMIT_FSIZE, (log_bytes, limits[1]))

    try:
        with pytest.raises(LedgerBusy):
            await complete()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(sqlite3.IntegrityError):  # what is the handler's stays so
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("INSERT INTO task (id) VALUES (NULL)")
    async with ledger.completion(task_id, claim.fence, 1, None) as db:
        await db.execute("CREATE TABLE effect (text TEXT)")
    await ledger.close()
