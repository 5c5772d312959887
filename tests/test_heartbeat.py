"""What a worker tells of itself, and that it does no harm where nobody can be told."""

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from tests.harness import CHORES, ERRANDS
from workqueue.contract import Contract
from workqueue.errors import LedgerLost
from workqueue.ledger import Claimed, Ledger, LedgerBusy
from workqueue.ledger.board import Seen
from workqueue.ledger.none import NoLedger
from workqueue.ledger.sqlite import SqliteLedger
from workqueue.observe.counting import BOUNDS_S, Counting
from workqueue.observe.health import Health
from workqueue.ops import workers
from workqueue.tasks.events import Dead, Done, Event, HandedBack, Ready, Retrying, Skipped, Told
from workqueue.tasks.progress import LEFT_OUT, Progress
from workqueue.testing import until
from workqueue.worker import heartbeat, serving
from workqueue.worker.beside import again, begin
from workqueue.worker.crew import Crew, Job
from workqueue.worker.heartbeat import Heartbeat

CONTRACT = Contract("1.2.3", "abcdef", (), {}, {})


def beating(ledger: Any, crew: Any = None, counting: Counting | None = None) -> Heartbeat:
    def handle(*_: Any) -> None: ...

    jobs, counting = [Job(ERRANDS, handle, 2), Job(CHORES, handle, 1)], counting or Counting(lambda _: None)
    return Heartbeat("w1", CONTRACT, jobs, crew or Crew(), counting, ledger, Health(starting=False))


def event(operation: str, what: Any) -> Event:
    return Event("w1", operation, "nap", "1", 0.1, what)


def test_what_became_of_tasks_is_counted_by_operation_and_told_on() -> None:
    heard: list[Told] = []
    counting = Counting(heard.append)
    told: list[Told] = [
        Ready("w1", {}, "none"),
        *(event(ERRANDS.operation, Done(1)) for _ in range(3)),
        event(ERRANDS.operation, Retrying(1, 1.0, "no")),
        event(ERRANDS.operation, Dead("failed", "no", "dead")),
        event(ERRANDS.operation, Skipped("done")),
        event(CHORES.operation, Done(2)),
        event(CHORES.operation, HandedBack()),
    ]
    for each in told:
        counting(each)
    assert heard == told
    queues = beating(NoLedger(), counting=counting).told()["queues"]
    counts = {name: [one[word] for word in ("done", "failed", "dead", "handed_back")] for name, one in queues.items()}
    assert counts == {ERRANDS.queue.name: [3, 1, 1, 0], CHORES.queue.name: [1, 0, 0, 1]}
    assert counting.dead == {(ERRANDS.operation, "failed"): 1}
    took = counting.took[ERRANDS.operation]
    assert (sum(took.counts), took.counts[BOUNDS_S.index(0.1)]) == (5, 5)
    assert took.sum_s == pytest.approx(0.5)


def test_the_rate_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    counting, now_s = Counting(lambda _: None), 1000.0
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(time=lambda: now_s, monotonic=lambda: now_s))
    worker = beating(NoLedger(), counting=counting)

    def rate() -> float:
        told: float = worker.told()["queues"][ERRANDS.queue.name]["rate"]
        return told

    assert rate() == 0.0
    for _ in range(40):  # 80 s of 5 a second
        now_s += 2.0
        for _ in range(10):
            counting(event(ERRANDS.operation, Done(1)))
        told = rate()
    assert told == 5.0
    for _ in range(15):  # 30 s of nothing
        now_s += 2.0
        told = rate()
    assert told == 2.5
    for _ in range(16):
        now_s += 2.0
        told = rate()
    assert told == 0.0


def running(task_id: UUID, fence: int = 1) -> Any:
    """A scope, as far as it is looked at here."""
    return SimpleNamespace(
        task_id=task_id, fence=fence, kind="nap", holder=SimpleNamespace(operation=ERRANDS.operation), attempt=2,
        ran_s=lambda: 3.0, progress=Progress(),
    )  # fmt: skip


def crew_with(*scopes: Any) -> Crew:
    crew: Any = Crew()
    crew.running = lambda: list(scopes)
    return cast(Crew, crew)


async def test_a_worker_is_on_the_board_while_it_works_and_not_when_it_has_ended(tmp_path: Path) -> None:
    ledger = SqliteLedger(str(tmp_path / "ledger.db"))
    scope = running(UUID(int=7))
    worker = beating(ledger, crew := crew_with(scope))
    task = asyncio.ensure_future(worker.beat())
    await asyncio.sleep(0.05)
    (seen,) = await ledger.board.seen(60.0)
    told = json.loads(seen.told)
    assert (seen.name, told["state"], told["contract"]) == ("w1", "working", {"version": "1.2.3", "digest": "abcdef"})
    assert {queue: one["concurrency"] for queue, one in told["queues"].items()} == {
        ERRANDS.queue.name: 2, CHORES.queue.name: 1,
    }  # fmt: skip
    (held,) = told["in_hand"]
    assert (held["id"], held["attempt"], held["operation"]) == (str(UUID(int=7)), 2, ERRANDS.operation)
    assert {"progress", "text"}.isdisjoint(held)
    scope.progress.told(0.5, "half", LEFT_OUT)
    (held,) = worker.told()["in_hand"]
    assert (held["progress"], held["text"]) == (0.5, "half")
    crew.draining = True
    assert worker.told()["state"] == "stopping"
    task.cancel()
    await worker.end()
    assert await ledger.board.seen(60.0) == []
    await ledger.close()


async def test_one_that_died_does_not_come_back_once_the_one_that_was_started_anew_at_once_has_ended(
    tmp_path: Path,
) -> None:
    ledger = SqliteLedger(str(tmp_path / "ledger.db"))
    died, lives = beating(ledger), beating(ledger)
    for one in (died, lives):
        assert await one._put()
    await asyncio.sleep(0.05)
    anew = beating(ledger)
    beat = asyncio.ensure_future(anew.beat())
    try:
        await until(lambda: on_board(ledger, anew), "it tells of itself")
        assert await lives._put()
        assert await on_board(ledger, died)
    finally:
        beat.cancel()
    await anew.end()
    assert [seen.id for seen in await ledger.board.seen(60.0)] == [lives.id]
    await ledger.close()


async def on_board(ledger: SqliteLedger, one: Heartbeat) -> bool:
    return one.id in [seen.id for seen in await ledger.board.seen(60.0)]


async def test_a_tasks_progress_is_that_of_its_own_attempt_by_a_worker_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger, one, other = SqliteLedger(str(tmp_path / "ledger.db")), UUID(int=7), UUID(int=8)
    scope = running(one)
    scope.progress.told(0.5, "half", LEFT_OUT)
    await ledger.board.put(one, "w1", json.dumps(beating(ledger, crew_with(scope)).told()))
    found = workers.in_hand(await workers.heard_of(ledger, "w1"), one, 2)
    assert found is not None
    assert (found.progress, found.text) == (0.5, "half")
    for task_id, name, attempt in ((one, "w2", 2), (one, "w1", 3), (other, "w1", 2)):
        assert workers.in_hand(await workers.heard_of(ledger, name), task_id, attempt) is None
    monkeypatch.setattr(workers, "GONE_S", -1.0)
    assert workers.in_hand(await workers.heard_of(ledger, "w1"), one, 2) is None
    await ledger.close()


def test_what_a_worker_waits_for_is_told_as_its_state_and_in_words() -> None:
    worker = beating(NoLedger(), crew := Crew())
    assert (worker.told()["state"], worker.told()["why"]) == ("working", "")
    cast(Any, crew).late = lambda operation: 2 if operation == ERRANDS.operation else 0
    worker.health.stuck = lambda: ["2 of errands can't be settled: no"]
    worker.health.not_consumed = lambda: {"chores": ""}
    told = worker.told()
    assert (told["state"], told["why"]) == ("waiting", "chores is not consumed; 2 of errands can't be settled: no")
    worker.health.starting = True
    assert (worker.told()["state"], worker.told()["why"]) == ("starting", f"it starts; {told['why']}")


def test_a_worker_that_takes_tasks_works_whatever_keeps_it_from_others() -> None:
    worker, late = beating(NoLedger(), crew := Crew()), {ERRANDS.operation: 1}
    cast(Any, crew).late = lambda operation: late.get(operation, 0)

    def state() -> str:
        told: str = worker.told()["state"]
        return told

    worker.health.stuck = lambda: ["1 of errands can't be settled: no"]
    assert (state(), worker.told()["why"]) == ("working", "1 of errands can't be settled: no")
    worker.health.not_consumed = lambda: {CHORES.queue.name: ""}
    assert state() == "working"  # its other consumer of errands takes them
    worker.health.paused.add(ERRANDS.queue.name)
    assert state() == "waiting"
    worker.health.paused.add(CHORES.queue.name)
    worker.health.not_consumed = dict
    assert state() == "paused"
    worker.health.paused.clear()
    late[ERRANDS.operation] = 2
    assert state() == "working"  # it takes chores
    worker.health.ledger_s = time.monotonic() - 60
    assert state() == "waiting"


class Broken:
    """A ledger whose board fails so often, and then no more; no claim could be written unless it `answers`."""

    def __init__(self, *errors: Exception, answers: bool = False) -> None:
        self.errors, self.put_count, self.answers, self.board = list(errors), 0, answers, self

    async def check(self) -> None:
        if not self.answers:
            raise LedgerBusy("no answer")

    async def put(self, *_: object) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.put_count += 1

    async def remove(self, *_: object) -> None:
        raise LedgerBusy("no answer")

    async def seen(self, within_s: float) -> list[Seen]:
        return []


class Locked(Broken):
    """A ledger where somebody has the row of task 7, and a statement waits for it until it is `over`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.over, self.released = False, asyncio.Event(), list[UUID]()

    async def save(self, task_id: UUID, *_: object) -> bool:
        if task_id == UUID(int=7):
            self.asked = True
            await self.over.wait()
            raise LedgerBusy("canceling statement due to lock timeout")
        return True

    async def release(self, task_id: UUID, *_: object) -> bool:
        self.released.append(task_id)
        return True


async def test_checkpoints_are_saved_within_a_beat_and_not_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger, task_id, saved = SqliteLedger(str(tmp_path / "ledger.db")), UUID(int=7), list[str]()
    claim = await ledger.claim(task_id, "w1", 60.0, kind="nap", digest=b"", alone=False)
    assert isinstance(claim, Claimed)
    scope = running(task_id, claim.fence)

    async def save(task_id: UUID, fence: int, checkpoint: str) -> bool:
        saved.append(checkpoint)
        return await SqliteLedger.save(ledger, task_id, fence, checkpoint)

    monkeypatch.setattr(ledger, "save", save)
    crew = crew_with(scope)
    task = asyncio.ensure_future(again(partial(crew.save, cast(Ledger, ledger)), 0.001)())
    await asyncio.sleep(0.05)
    assert saved == []
    for checkpoint in ("[1]", "[2]"):
        scope.progress.told(None, None, json.loads(checkpoint))
        await until(lambda: scope.progress.unsaved is None, "it is saved")
    await asyncio.sleep(0.05)
    assert saved == ["[1]", "[2]"]
    assert await ledger.release(task_id, claim.fence)
    claim = await ledger.claim(task_id, "w1", 60.0, kind="nap", digest=b"", alone=False)
    assert isinstance(claim, Claimed)
    assert claim.checkpoint == "[2]"
    task.cancel()
    await ledger.close()


async def test_a_task_whose_row_is_locked_keeps_neither_other_checkpoints_nor_the_worker_from_the_ledger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody's transaction that does not end: who asks for its row waits, and is told that the ledger is busy."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.001)
    ledger, locked, free = Locked(), running(UUID(int=7)), running(UUID(int=8))
    for scope in (locked, free):
        scope.progress.told(None, None, 1)
    worker = beating(ledger, crew := crew_with(locked, free))
    works = worker.beat, again(partial(crew.save, cast(Ledger, ledger)), 0.001)
    tasks = [asyncio.ensure_future(work()) for work in works]
    await until(lambda: ledger.asked, "it waits for the row")
    puts = ledger.put_count
    await until(lambda: ledger.put_count > puts + 1, "it is there meanwhile")
    ledger.over.set()
    await until(lambda: free.progress.unsaved is None, "the other is saved")
    assert locked.progress.unsaved == "1"
    for task in tasks:
        assert not task.done()
        task.cancel()


async def test_a_task_whose_row_is_locked_keeps_no_other_claim_from_being_released() -> None:
    ledger, locked, free = Locked(), running(UUID(int=7)), running(UUID(int=8))
    locked.progress.told(None, None, 1)
    releasing = asyncio.ensure_future(serving._release(cast(Ledger, ledger), [locked, free]))
    await until(lambda: ledger.released == [UUID(int=8)], "the other one is released meanwhile")
    ledger.over.set()
    await releasing
    assert ledger.released == [UUID(int=8)]


async def test_a_busy_board_is_said_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.001)
    monkeypatch.setattr(heartbeat, "AGAIN_S", 0.001)
    caplog.set_level(logging.WARNING)
    board = Broken(*(LedgerBusy("no answer") for _ in range(5)))
    worker = beating(board)
    task = asyncio.ensure_future(worker.beat())
    await until(lambda: board.put_count > 1 or task.done(), "it has told twice")
    assert not task.done()
    task.cancel()
    await worker.end()
    assert caplog.messages == ["w1  can't tell the ledger that it works: no answer"]


@pytest.mark.parametrize("error", [LedgerBusy("no answer"), LedgerLost("/a", "it was deleted"), None])
async def test_a_worker_ends_whatever_its_ledger_does(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """None: it is silent."""
    monkeypatch.setattr(heartbeat, "END_S", 0.01)

    class Ledger(Broken):
        async def remove(self, *_: object) -> None:
            if error is None:
                await asyncio.Event().wait()
            else:
                raise error

    async with asyncio.timeout(5):
        await beating(Ledger()).end()


async def test_a_ledger_that_is_lost_ends_an_idle_worker_too() -> None:
    lost, fatal = LedgerLost("/a", "it was deleted"), list[BaseException]()
    async with AsyncExitStack() as closing:
        begin(beating(Broken(lost)).beat, fatal.append, closing)
        await until(lambda: fatal, "it is told")
    assert fatal == [lost]


async def test_what_ends_what_a_worker_does_beside_its_tasks_ends_the_worker_and_its_end_does_not() -> None:
    error, fatal = RuntimeError("a fault of ours"), list[BaseException]()

    async def fails() -> None:
        raise error

    async with AsyncExitStack() as closing:
        begin(again(fails, 0.0), fatal.append, closing)
        begin(again(partial(asyncio.sleep, 0), 0.0), fatal.append, closing)
        await until(lambda: fatal, "it is told")
    await asyncio.sleep(0)
    assert fatal == [error]
