"""Tests of handlers without a broker: one task at once, or a worker and a client on a broker in memory."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar, assert_type
from uuid import UUID

import pytest
from pamqp.commands import Basic

from tests.generated.producer import Application as Producer
from tests.generated.producer.client import Client, SendErrandResult, SyncClient
from tests.generated.producer.messages import json as sent
from tests.generated.worker import Application
from tests.generated.worker.messages.json import Digest, DigestResult, Nap, NapResult, Odd, OddResult, Task
from tests.harness import RECEIVE
from tests.workers import main
from workqueue import GiveUp, RetryAfter, Settings, TaskCancelled, TaskContext, TaskDead
from workqueue.amqp.lane import Unroutable
from workqueue.client.blocking import SyncHandle
from workqueue.client.results import Handle
from workqueue.contract import Queue
from workqueue.errors import ContractInvalid, HandlersDiffer, LifespanFailed, NotSent
from workqueue.tasks.events import Done, Event, HandedBack, Retrying, Told, What
from workqueue.testing import MemoryQueue, memory, run_task
from workqueue.testing.memory.broker import Broker, Message, Taker
from workqueue.testing.memory.lane import MemoryConnection
from workqueue.worker.ending import Ending

WAIT_S = 20.0
TO: Final = "send_errand"
ID = "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01"
NAP = sent.Nap(kind="nap", seconds=0.0)


H = TypeVar("H")


def both(handler: H) -> dict[str, H]:
    """For all operations of the tests' contract."""
    return {"do_errand": handler, "do_chore": handler}


async def nap(task: Task, context: TaskContext[None]) -> NapResult:
    assert isinstance(task.payload, Nap)
    if context.attempt <= task.payload.failures:
        raise ValueError("too early")
    return NapResult(kind="nap", attempt=context.attempt)


# --- one task ---------------------------------------------------------------------------------------------------------


async def test_one_task_runs_and_its_result_has_the_handlers_type() -> None:
    result = await run_task(Application, nap, Nap(kind="nap", seconds=0.0), to="do_errand")
    assert_type(result, NapResult)
    assert result == NapResult(kind="nap", attempt=1)


def test_a_plain_function_runs_in_a_thread_and_a_plain_test_may_run_it() -> None:
    def digest(task: Task, context: TaskContext[None]) -> DigestResult:
        assert threading.current_thread() is not threading.main_thread()
        assert isinstance(task.payload, Digest)
        return main.digest(task.payload)

    result = asyncio.run(run_task(Application, digest, {"kind": "digest", "text": "x"}, to="do_errand"))
    assert_type(result, DigestResult)
    assert result.size == 1


async def test_a_task_is_tried_as_often_as_the_contract_says_and_no_delay_is_waited_for() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> NapResult:
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise RetryAfter(10.0, "later than the longest of the contract's delays")
        return await nap(task, context)

    attempts = list[int]()
    began = time.monotonic()
    result = await run_task(Application, handle, Nap(kind="nap", seconds=0.0, failures=5), to="do_errand")
    assert (result.attempt, attempts) == (6, [1, 2, 3, 4, 5, 6])
    assert time.monotonic() - began < 10.0


async def test_a_task_that_dies_raises_its_reason_and_what_the_handler_raised_is_the_cause() -> None:
    with pytest.raises(TaskDead, match="is dead, failed: ValueError: too early") as dead:
        await run_task(Application, nap, Nap(kind="nap", seconds=0.0, failures=9), to="do_errand")
    assert (dead.value.reason, dead.value.attempts) == ("failed", RECEIVE.max_attempts)
    assert isinstance(dead.value.__cause__, ValueError)
    assert dead.value.__cause__.__traceback__ is not None


async def test_a_result_that_breaks_the_contract_is_a_dead_letter_as_for_a_worker() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> NapResult:
        return NapResult.model_construct(kind="nap", attempt=0)

    with pytest.raises(TaskDead, match="the result breaks the contract: /attempt") as dead:
        await run_task(Application, handle, {"kind": "nap", "seconds": 0}, to="do_errand")
    assert dead.value.reason == "gave-up"
    assert isinstance(dead.value.__cause__, GiveUp)


async def test_a_payload_that_breaks_the_contract_is_not_sent() -> None:
    with pytest.raises(NotSent, match="/payload/seconds"):
        await run_task(Application, nap, {"kind": "nap", "seconds": -1}, to="do_errand")


async def test_a_whole_task_runs_too_and_what_it_has_none_of_is_no_result() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> None:
        seen.append(str(task.id))

    seen = list[str]()
    whole = Task.model_validate(
        {"id": ID, "created_at": "2026-11-25T09:30:00Z", "payload": {"kind": "nap", "seconds": 0}}
    )
    assert await run_task(Application, handle, whole, to="do_errand") is None  # type: ignore[func-returns-value]
    assert seen == [ID]


async def test_the_lifespan_is_open_while_the_task_runs() -> None:
    @asynccontextmanager
    async def resources(settings: Settings) -> AsyncIterator[list[str]]:
        log.append("opened")
        yield log
        log.append("closed")

    async def handle(task: Task, context: TaskContext[list[str]]) -> OddResult:
        context.resources.append("used")
        return OddResult(kind="odd", way="exits")

    log = list[str]()
    await run_task(Application, handle, Odd(kind="odd", way="exits"), lifespan=resources, to="do_errand")
    assert log == ["opened", "used", "closed"]


@pytest.mark.parametrize("where", ["in the event loop", "in a thread", "in a coroutine of a plain function's"])
async def test_what_a_handler_sets_in_its_context_is_not_there_for_the_next_task(where: str) -> None:
    def use() -> NapResult:
        seen.append(tenant.get())
        tenant.set("a customer")
        return NapResult(kind="nap", attempt=1)

    async def coroutine(task: Task, context: TaskContext[None]) -> NapResult:
        use()
        await asyncio.sleep(0)
        assert tenant.get() == await asyncio.create_task(inherited()) == "a customer"
        return NapResult(kind="nap", attempt=1)

    async def inherited() -> str:
        return tenant.get()

    def plain(task: Task, context: TaskContext[None]) -> Any:
        return use() if where == "in a thread" else coroutine(task, context)

    seen, tenant = list[str](), ContextVar("tenant", default="nobody")
    handle = coroutine if where == "in the event loop" else plain
    async with MemoryQueue(Application, both(handle), Client(Producer)) as queue:
        for _ in range(3):
            await queue.client.send(NAP, to=TO)
        await queue.idle()
    assert seen == ["nobody"] * 3


@pytest.mark.parametrize("in_thread", [False, True], ids=["in the event loop", "in a thread"])
async def test_what_the_lifespan_set_in_its_context_is_there_for_each_task(in_thread: bool) -> None:
    @asynccontextmanager
    async def lifespan(settings: Settings) -> AsyncIterator[None]:
        region.set("north")
        yield

    def plain(task: Task, context: TaskContext[None]) -> NapResult:
        seen.append(region.get())
        region.set("a task's")
        return NapResult(kind="nap", attempt=1)

    async def coroutine(task: Task, context: TaskContext[None]) -> NapResult:
        return plain(task, context)

    seen, region = list[str](), ContextVar("region", default="none")
    handlers: dict[str, Any] = both(plain if in_thread else coroutine)
    async with MemoryQueue(Application, handlers, Client(Producer), lifespan=lifespan) as queue:
        for _ in range(2):
            await queue.client.send(NAP, to=TO)
        await queue.idle()
    assert seen == ["north"] * 2


@pytest.mark.parametrize("way", ["another id", "no id", "a text", "no payload"])
async def test_a_handler_may_change_its_task_and_it_is_the_one_that_came_all_the_same(way: str) -> None:
    async def handle(task: Task, context: TaskContext[None]) -> None:
        changed: Any = task
        match way:
            case "another id":
                changed.id = UUID(int=1)
            case "no id":
                del changed.id
            case "a text":
                changed.id = str(task.id)
            case _:
                del changed.payload
        if context.attempt == 1:
            raise ValueError("too early")

    async with MemoryQueue(Application, both(handle), Client(Producer)) as queue:
        task = await queue.client.send(NAP, to=TO)
        assert await task.result(timeout_s=WAIT_S) is None
    told = {(event.id, event.kind) for event in queue.events if isinstance(event, Event)}
    assert told == {(str(task.id), "nap")}


@asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[Client]:
    async with Client(Producer, settings=settings) as client:
        yield client


async def test_one_task_is_its_own_operations_and_what_is_sent_to_others_waits() -> None:
    async def handle(task: Task, context: TaskContext[Client]) -> NapResult:
        seen.append(task.id)
        sent_ = await context.resources.send(NAP, to="send_chore")
        await asyncio.sleep(0.05)
        states.append((await sent_.status()).state)
        return NapResult(kind="nap", attempt=context.attempt)

    seen, states = list[UUID](), list[str]()
    async with asyncio.timeout(WAIT_S):
        await run_task(Application, handle, Nap(kind="nap", seconds=0.0), to="do_errand", lifespan=sending)
    assert (len(seen), states) == (1, ["waiting"])


async def test_one_task_ends_although_its_handler_sends_itself_others_without_end() -> None:
    async def handle(task: Task, context: TaskContext[Client]) -> NapResult:
        await context.resources.send(NAP, to=TO)
        return NapResult(kind="nap", attempt=context.attempt)

    async with asyncio.timeout(WAIT_S):
        result = await run_task(Application, handle, Nap(kind="nap", seconds=0.0), to="do_errand", lifespan=sending)
    assert result.attempt == 1


async def test_of_several_tasks_that_die_the_cause_is_that_of_the_one_that_was_asked_for() -> None:
    async def handle(task: Task, context: TaskContext[Client]) -> NapResult:
        if str(task.id) == ID:
            await context.resources.send(sent.Odd(kind="odd", way="exits"), to=TO)
        if context.attempt < RECEIVE.max_attempts:
            raise ValueError("too early")
        raise GiveUp(str(task.id))

    whole = {"id": ID, "created_at": "2026-11-25T09:30:00Z", "payload": {"kind": "nap", "seconds": 0}}
    with pytest.raises(TaskDead) as dead:
        await run_task(Application, handle, Task.model_validate(whole), to="do_errand", lifespan=sending)
    assert str(dead.value.__cause__) == ID


async def test_one_task_that_its_handler_calls_off_says_so() -> None:
    async def handle(task: Task, context: TaskContext[Client]) -> NapResult:
        await context.resources.cancel(task.id, "no need")
        raise ValueError("too early")

    with pytest.raises(TaskCancelled, match="no need"):
        await run_task(Application, handle, Nap(kind="nap", seconds=0.0), to="do_errand", lifespan=sending)


# --- a queue ----------------------------------------------------------------------------------------------------------


def became(events: list[Told]) -> list[What]:
    return [told.what for told in events if isinstance(told, Event)]


async def test_a_client_sends_to_the_worker_and_gets_typed_results_statuses_and_dead_letters() -> None:
    async with MemoryQueue(Application, both(nap), Client(Producer)) as queue:
        handle = await queue.client.send(NAP, to=TO)
        assert_type(handle, Handle[SendErrandResult])
        assert await handle.result(timeout_s=WAIT_S) == sent.NapResult(kind="nap", attempt=1)
        assert (await queue.client.status(handle.id)).state == "done"
        failing = await queue.client.send(sent.Nap(kind="nap", seconds=0.0, failures=9), to=TO)
        await queue.idle()
        assert (await failing.status()).state == "dead"
        (letter,) = queue.dead_letters
        assert letter.headers["x-reason"] == "failed"
        assert len(letter.headers["x-attempts"]) == RECEIVE.max_attempts
    assert became(queue.events)[0] == Done(1)
    assert [type(what) for what in became(queue.events)[1:-1]] == [Retrying] * (RECEIVE.max_attempts - 1)


def test_a_plain_test_has_a_client_that_blocks() -> None:
    def digest(task: Task, context: TaskContext[None]) -> DigestResult:
        assert isinstance(task.payload, Digest)
        return main.digest(task.payload)

    with MemoryQueue(Application, both(digest), SyncClient(Producer)) as queue:
        handle = queue.client.send(sent.Digest(kind="digest", text="x"), to=TO)
        assert_type(handle, SyncHandle[SendErrandResult])
        result = handle.result(timeout_s=WAIT_S)
        assert isinstance(result, sent.DigestResult)
        failing = queue.client.send(NAP, to=TO)  # the handler is for something else
        with pytest.raises(TaskDead, match="AssertionError"):
            failing.result(timeout_s=WAIT_S)
        assert [letter.headers["x-reason"] for letter in queue.dead_letters] == ["failed"]


def test_a_plain_test_waits_until_nothing_is_left_to_do() -> None:
    def handle(task: Task, context: TaskContext[None]) -> NapResult:
        time.sleep(0.05)
        raise ValueError("never")

    with MemoryQueue(Application, both(handle), SyncClient(Producer)) as queue:
        tasks = [queue.client.send(NAP, to=TO) for _ in range(2)]
        asyncio.run(asyncio.wait_for(queue.idle(), WAIT_S))
        assert [task.status().state for task in tasks] == ["dead", "dead"]
        assert len(queue.dead_letters) == 2
        asyncio.run(asyncio.wait_for(queue.idle(), WAIT_S))  # at once, where nothing is in hand


async def test_a_task_that_is_sent_as_the_last_one_ends_is_waited_for_too() -> None:
    async with MemoryQueue(Application, both(nap), Client(Producer)) as queue:
        idle = queue.broker.idle
        idle.clear()
        waiting = asyncio.ensure_future(queue.idle())
        await turns()
        idle.set()
        idle.clear()
        await turns()
        assert not waiting.done()
        idle.set()
        await asyncio.wait_for(waiting, WAIT_S)


async def test_who_waits_for_the_end_of_a_worker_and_gives_up_is_not_why_it_ends() -> None:
    ending = Ending()
    waiting = asyncio.ensure_future(ending.wait())
    await turns()
    waiting.cancel()
    await turns()
    ending.set(ValueError("why"))
    with pytest.raises(ValueError, match="why"):
        await ending.wait()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_client_for_the_other_kind_of_test_is_refused() -> None:
    with pytest.raises(TypeError, match="use `with`"):
        async with MemoryQueue(Application, both(nap), SyncClient(Producer)):
            pass
    with (
        pytest.raises(TypeError, match="use `async with`"),
        MemoryQueue(Application, both(nap), Client(Producer)),
    ):
        pass


def test_handlers_that_are_not_the_contracts_are_refused_as_by_a_worker() -> None:
    with pytest.raises(HandlersDiffer):
        MemoryQueue(Application, {"another": nap}, Client(Producer))


async def test_delays_are_waited_for_where_that_is_asked_for() -> None:
    (first, *_) = RECEIVE.rungs
    async with MemoryQueue(Application, both(nap), Client(Producer), skip_delays=False) as queue:
        began = time.monotonic()
        handle = await queue.client.send(sent.Nap(kind="nap", seconds=0.0, failures=1), to=TO)
        await handle.result(timeout_s=WAIT_S)
        assert time.monotonic() - began >= first.delay_s


async def test_a_task_that_is_due_meanwhile_does_not_wait_for_one_that_runs() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> NapResult:
        if isinstance(task.payload, Nap):
            return await nap(task, context)
        await retried.wait()
        return NapResult(kind="nap", attempt=1)

    retried = asyncio.Event()
    async with MemoryQueue(Application, both(handle), Client(Producer), concurrency=2) as queue:
        long = await queue.client.send(sent.Digest(kind="digest", text="x"), to=TO)
        short = await queue.client.send(sent.Nap(kind="nap", seconds=0.0, failures=1), to=TO)
        await short.result(timeout_s=WAIT_S)
        retried.set()
        await long.result(timeout_s=WAIT_S)


async def test_an_effect_in_the_ledgers_transaction_is_kept_with_the_completion() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> None:
        async with context.completion() as db:
            await db.execute("CREATE TABLE effect (attempt)", ())
            if context.attempt == 1:
                raise ValueError("not yet")
            await db.execute("INSERT INTO effect VALUES (?)", (context.attempt,))
            rows.extend((await db.execute("SELECT attempt FROM effect", ())).rows)

    rows = list[object]()
    async with MemoryQueue(Application, both(handle), Client(Producer)) as queue:
        handle_ = await queue.client.send(NAP, to=TO)
        assert await handle_.result(timeout_s=WAIT_S) is None
    assert rows == [(2,)]


async def test_what_is_still_running_at_the_end_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(task: Task, context: TaskContext[None]) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(memory, "FINISH_S", 0.1)
    begun = asyncio.Event()
    async with MemoryQueue(Application, both(handle), Client(Producer)) as queue:
        await queue.client.send(NAP, to=TO)
        await begun.wait()
    assert became(queue.events) == [HandedBack()]


async def test_a_worker_that_can_not_go_on_is_told_to_all_who_wait() -> None:
    limits: list[asyncio.Timeout] = []

    @asynccontextmanager
    async def resources(settings: Settings) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            yield

    async def handle(task: Task, context: TaskContext[None]) -> None:
        await asyncio.sleep(0.5)

    queue = MemoryQueue(Application, both(handle), Client(Producer), lifespan=resources)
    await queue.open()
    handle_ = await queue.client.send(NAP, to=TO)
    limits[0].reschedule(asyncio.get_running_loop().time())
    with pytest.raises(RuntimeError, match="the client was closed"):
        await handle_.result()
    with pytest.raises(LifespanFailed):
        await queue.idle()
    with pytest.raises(LifespanFailed):
        await queue.close()


def test_it_needs_neither_pytest_nor_what_the_fixtures_need() -> None:
    said = "import sys; from workqueue.testing import MemoryQueue, run_task; print({'pytest', 'yaml'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- the broker -------------------------------------------------------------------------------------------------------

TASKS = Queue("tasks", True, False, False, {"x-dead-letter-routing-key": "dead"})
DEAD = Queue("dead", True, False, False, {})


def broker_with(*queues: Queue) -> Broker:
    broker = Broker(None)
    for queue in queues:
        broker.declare(queue)
    return broker


class Consuming:
    """A consumer that notes what it gets."""

    def __init__(self, broker: Broker, prefetch: int = 1) -> None:
        self.got = list[tuple[int, Message]]()
        self.taker = Taker("tasks", prefetch, lambda tag, message: self.got.append((tag, message)))
        broker.consume(self.taker)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for _, message in self.got]


async def test_consumers_get_messages_in_turn_and_no_more_than_they_have_room_for() -> None:
    broker = broker_with(TASKS, DEAD)
    one, two = Consuming(broker, prefetch=2), Consuming(broker)
    for number in range(5):
        await broker.publish("tasks", Message(b"%d" % number))
    assert (one.bodies, two.bodies) == ([b"0", b"2"], [b"1"])
    broker.settle(two.taker, two.got[0][0], "ack")
    assert two.bodies == [b"1", b"3"]
    assert [message.body for message in broker.messages("tasks")] == [b"4"]


async def test_what_comes_back_is_next_and_says_how_often_it_was_delivered() -> None:
    broker = broker_with(TASKS, DEAD)
    for body in (b"first", b"second"):
        await broker.publish("tasks", Message(body))
    one = Consuming(broker)
    broker.settle(one.taker, one.got[0][0], "requeue")
    assert one.bodies == [b"first", b"first"]
    arrived = one.got[1][1].delivered(7, most_bytes=100)
    assert arrived.redelivered
    assert arrived.properties is not None
    assert arrived.properties.headers["x-delivery-count"] == 1
    broker.leave(one.taker)
    assert [(message.body, message.came_back) for message in broker.messages("tasks")] == [
        (b"first", 2),
        (b"second", 0),
    ]


async def test_what_is_rejected_is_a_dead_letter() -> None:
    broker = broker_with(TASKS, DEAD)
    one = Consuming(broker)
    await broker.publish("tasks", Message(b"large"))
    assert not broker.idle.is_set()
    assert one.got[0][1].delivered(7, most_bytes=4).oversized_bytes == 5
    broker.settle(one.taker, one.got[0][0], "reject")
    assert [message.body for message in broker.messages("dead")] == [b"large"]
    assert broker.idle.is_set()


async def test_what_no_queue_takes_comes_back() -> None:
    lane = MemoryConnection(broker_with(TASKS)).first
    with pytest.raises(Unroutable):
        await lane.publish("nowhere", Basic.Properties(), b"", mandatory=True)


async def test_two_contracts_with_different_queues_of_one_name_are_noticed() -> None:
    with pytest.raises(ContractInvalid, match="queue 'dead' is another one"):
        broker_with(DEAD, Queue("dead", True, False, False, {"x-queue-type": "quorum"}))


async def test_a_task_that_runs_is_called_off() -> None:
    runs = asyncio.Event()

    async def forever(task: Task, context: TaskContext[None]) -> NapResult:
        runs.set()
        await asyncio.sleep(3600)
        raise AssertionError("it went on")

    async with MemoryQueue(Application, both(forever), Client(Producer)) as queue:
        handle = await queue.client.send(NAP, to=TO)
        await runs.wait()
        assert await queue.client.cancel(handle.id, "no need") == "asked"
        with pytest.raises(TaskCancelled, match="no need"):
            await handle.result(timeout_s=WAIT_S)
        assert not queue.dead_letters
