"""What a client says of a wrong call, of a ledger that is silent, and once it is closed: on a broker in memory."""

import asyncio
import json
import logging
import threading
import traceback
from collections.abc import Awaitable
from typing import Any
from uuid import uuid4

import pytest

from tests.generated.producer import Application as Producer
from tests.generated.producer.client import Client
from tests.generated.producer.messages import json as sent
from tests.generated.worker import Application
from tests.generated.worker.messages.json import NapResult, Task
from workqueue import NotSent, Settings, SyncClient, TaskContext, TaskDead, TaskInvalid, TaskUnfinished
from workqueue.amqp.lane import Connection
from workqueue.amqp.wire import Wire
from workqueue.client import Client as AnyClient
from workqueue.codec import ModelCodec, Undecodable
from workqueue.errors import (
    BrokerUnreachable,
    ContractInvalid,
    IdInvalid,
    LedgerUnreachable,
    NoBroker,
    SettingInvalid,
    WorkQueueError,
)
from workqueue.ledger import Ledger, LedgerBusy, open_ledger
from workqueue.testing import MemoryQueue, run_task

WAIT_S = 20.0
NAP = sent.Nap(kind="nap", seconds=0.0)


async def nap(task: Task, context: TaskContext[Any]) -> NapResult:
    return NapResult(kind="nap", attempt=context.attempt)


HANDLERS = {"do_errand": nap, "do_chore": nap}


async def test_a_client_in_another_event_loop_is_told_so_at_once_by_each_of_its_methods() -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        client = queue.client
        handle = await client.send(NAP, to="send_errand")
        calls = [
            lambda: client.send(NAP, to="send_errand"),
            lambda: client.send_many([NAP], to="send_errand"),
            lambda: client.status(handle.id),
            lambda: client.result(handle.id, timeout_s=1.0),
            handle.status,
            handle.result,
            client.close,
        ]
        said = list[str]()

        def elsewhere() -> None:
            for call in calls:
                with pytest.raises(RuntimeError, match="another event loop") as caught:
                    asyncio.run(call())
                said.append(str(caught.value))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(said) == len(calls)


@pytest.mark.parametrize("given", [0, 0.0, float("nan"), -1.0, "3", True + 1j])
async def test_no_task_is_sent_in_no_time_and_that_is_refused_in_one_line_before_anything_is_published(
    given: Any,
) -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        sends: list[Awaitable[Any]] = [
            queue.client.send(NAP, to="send_errand", within_s=given),
            queue.client.send_many([NAP], to="send_errand", within_s=given),
        ]
        for sending in sends:
            with pytest.raises(SettingInvalid, match=r"^within_s='.*': use a number of seconds above 0$"):
                await sending


@pytest.mark.parametrize("given", [float("nan"), -1.0, "3", True + 1j])
async def test_a_time_that_is_none_is_refused_in_one_line_wherever_it_is_given(given: Any) -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        handle = await queue.client.send(NAP, to="send_errand")
        for waited in (queue.client.result(handle.id, timeout_s=given), handle.result(timeout_s=given)):
            with pytest.raises(SettingInvalid, match=r"^timeout_s='.*': use a number of seconds from 0 up$"):
                await waited
    for kind in (AnyClient, SyncClient):
        with pytest.raises(SettingInvalid, match=r"^wait_s="):
            kind(Producer, wait_s=given)


async def test_sends_that_wait_for_a_broker_are_told_that_the_client_was_closed() -> None:
    async def none(*_: object) -> Connection:
        raise BrokerUnreachable("there", "refused")

    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        client = queue.client
        link = client.sender.operations["send_errand"].producer._link
        await link.close()
        link._connect = none
        under_way = [asyncio.create_task(client.send(NAP, to="send_errand")) for _ in range(2)]
        await asyncio.sleep(0.05)
        await client.close()
        for one in under_way:
            with pytest.raises(NoBroker, match=r"the client was closed$"):
                await one


async def test_a_wait_that_is_over_has_no_other_errors_in_its_traceback() -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        with pytest.raises(TaskUnfinished) as over:
            await queue.client.result(uuid4(), timeout_s=0.0)
    assert "During handling" not in "".join(traceback.format_exception(over.value))


async def test_what_only_receives_can_not_send_and_what_only_sends_has_no_handlers() -> None:
    async with MemoryQueue(Application, HANDLERS, AnyClient(Application)) as queue:
        for to in (None, "send_errand"):
            with pytest.raises(TaskInvalid, match="this application sends nothing"):
                await queue.client.send(NAP, to=to)
    with pytest.raises(ContractInvalid, match="this application receives nothing"):
        await run_task(Producer, nap, NAP)


async def test_another_payload_under_a_key_is_a_conflict_at_once_while_the_first_one_runs() -> None:
    async def handle(task: Task, context: TaskContext[Any]) -> NapResult:
        begun.set()
        await ends.wait()
        return NapResult(kind="nap", attempt=1)

    begun, ends = asyncio.Event(), asyncio.Event()
    async with MemoryQueue(Application, dict.fromkeys(HANDLERS, handle), Client(Producer)) as queue:
        first = await queue.client.send(NAP, to="send_errand", key="k")
        await begun.wait()
        other = await queue.client.send(sent.Nap(kind="nap", seconds=1.0), to="send_errand", key="k")
        assert (await other.status()).reason == "conflict"
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(TaskDead, match="conflict"):
                await other.result()
        assert await other.cancel("not that one") == "dead"
        assert (await first.status()).state == "running"
        ends.set()
        assert await first.result(timeout_s=WAIT_S) is not None


async def test_an_id_that_is_none_and_a_key_that_is_empty_are_refused_in_words() -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        client = queue.client
        for call in (client.status("hello"), client.result("hello"), client.send(NAP, to="send_errand", id="hello")):
            with pytest.raises(IdInvalid, match=r"hello .*no id of a task") as caught:
                await call
            assert isinstance(caught.value, WorkQueueError)
            assert isinstance(caught.value, ValueError)
            assert isinstance(caught.value, NotSent)
        with pytest.raises(TaskInvalid, match="its key is empty"):
            await client.send(NAP, to="send_errand", key="")


@pytest.mark.parametrize(
    "payload",
    [
        {"kind": "\ud800"},
        {"kind": "digest", "text": ["\ud800"]},
        {1: 2},
        json.loads("[" * 300 + "]" * 300),
        {"kind": "nap", "seconds": object()},
    ],
    ids=["half a character", "half a character below", "a key that is no text", "too deep", "an object"],
)
async def test_values_that_have_no_json_are_refused_and_the_others_are_sent(payload: object) -> None:
    async with MemoryQueue(Application, HANDLERS, AnyClient(Producer)) as queue:
        with pytest.raises(TaskInvalid):
            await queue.client.send(payload, to="send_errand")
        with pytest.raises(WorkQueueError, match="2 tasks sent, 1 not sent, 0 unknown"):
            await queue.client.send_many([NAP, payload, NAP], to="send_errand")
        with pytest.raises(TaskInvalid, match="is no text"):
            await queue.client.send(NAP, to="send_errand", key="\ud800")


async def test_a_ledger_that_is_silent_costs_no_send_and_no_wait_more_than_its_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(*_: Any) -> Any:
        await answers.wait()
        raise LedgerBusy("no answer for 10 s")

    answers = asyncio.Event()
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        client = queue.client
        for name in ("record", "entry", "outcomes"):
            monkeypatch.setattr(client.ledger, name, silent)
        with caplog.at_level(logging.WARNING):
            async with asyncio.timeout(WAIT_S):
                handle = await client.send(NAP, to="send_errand", key="k", within_s=0.1)
                with pytest.raises(TaskUnfinished, match=r"it is unknown .the ledger does not answer."):
                    await handle.result(timeout_s=0.1)
        assert "tasks are sent, and not recorded: the ledger does not answer" in caplog.text
        answers.set()
        monkeypatch.setattr("workqueue.client.asking.PATIENCE_S", 0.1)
        with pytest.raises(LedgerUnreachable, match="does not answer: no answer for 10 s"):
            await handle.status()


async def test_a_task_that_is_done_has_its_result_however_short_the_wait() -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        handle = await queue.client.send(NAP, to="send_errand")
        await queue.idle()
        for timeout_s in (0.0, 1e-6):
            assert await handle.result(timeout_s=timeout_s) == sent.NapResult(kind="nap", attempt=1)


async def test_a_handle_of_a_client_that_was_closed_says_so() -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        handle = await queue.client.send(NAP, to="send_errand")
        await queue.client.close()
        for call in (handle.status, handle.result):
            with pytest.raises(RuntimeError, match="the client was closed"):
                await call()


@pytest.mark.parametrize("many", [False, True])
async def test_a_handle_of_a_send_that_was_under_way_at_the_close_says_so_too(
    many: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        client, confirmed, go_on = queue.client, asyncio.Event(), asyncio.Event()
        really_send = client.sender.send

        async def send(*given: Any, **named: Any) -> None:
            await really_send(*given, **named)
            confirmed.set()
            await go_on.wait()

        client.sender.send = send  # type: ignore[method-assign]
        sending: asyncio.Future[Any]
        if many:
            sending = asyncio.ensure_future(client.send_many([NAP], to="send_errand"))
        else:
            sending = asyncio.ensure_future(client.send(NAP, to="send_errand"))
        await confirmed.wait()
        await client.close()
        go_on.set()
        sent_ = await sending
        (handle,) = sent_ if many else [sent_]
        for call in (handle.status, handle.result, handle.cancel):
            with pytest.raises(RuntimeError, match="the client was closed"):
                await call()
    assert many or "tasks are sent, and not recorded: the client was closed" in caplog.text


async def test_opening_twice_is_opening_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        before = queue.client.sender
        await queue.client.open()
        assert queue.client.sender is before


async def test_a_client_outlasts_an_application_that_cancels_all_tasks_of_its_loop() -> None:
    async def handle(task: Task, context: TaskContext[Any]) -> NapResult:
        await ends.wait()
        return NapResult(kind="nap", attempt=1)

    ends = asyncio.Event()
    async with MemoryQueue(Application, dict.fromkeys(HANDLERS, handle), Client(Producer)) as queue:
        first = await queue.client.send(NAP, to="send_errand")
        before = asyncio.all_tasks()
        waiting = asyncio.ensure_future(first.result())
        await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.wait([waiting])
        ends.set()
        assert await first.result(timeout_s=WAIT_S) == sent.NapResult(kind="nap", attempt=1)


async def test_who_waits_for_a_task_that_no_worker_can_read_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a worker whose contract is older than the sender's."""
    refused = Undecodable("invalid", "/payload: 'reason' was unexpected")
    monkeypatch.setattr(ModelCodec, "decode", lambda *_: refused)
    async with MemoryQueue(Application, HANDLERS, Client(Producer)) as queue:
        handle = await queue.client.send(NAP, to="send_errand")
        with pytest.raises(TaskDead, match="'reason' was unexpected"):
            await handle.result(timeout_s=WAIT_S)
        assert (await handle.status()).reason == "invalid"
        monkeypatch.undo()
        again = await queue.client.send(NAP, to="send_errand")
        assert await again.result(timeout_s=WAIT_S) == sent.NapResult(kind="nap", attempt=1)


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> list[Ledger]:
    """The ledgers of clients that are open; each takes a moment to open, and to close."""
    are_open = list[Ledger]()

    async def slowly(settings: Settings, *_: object) -> Ledger:
        await asyncio.sleep(0.02)
        ledger = await open_ledger(settings)
        really_close = ledger.close

        async def close() -> None:
            await asyncio.sleep(0.02)
            await really_close()
            are_open.remove(ledger)

        ledger.close = close  # type: ignore[method-assign]
        are_open.append(ledger)
        return ledger

    monkeypatch.setattr("workqueue.client.shared_ledger", slowly)
    return are_open


async def test_whoever_opens_a_client_at_the_same_time_opens_one_ledger(ledgers: list[Ledger]) -> None:
    async with MemoryQueue(Application, HANDLERS, None):
        client = Client(Producer)
        await asyncio.gather(*(client.open() for _ in range(3)))
        assert len(ledgers) == 1
        await asyncio.gather(*(client.close() for _ in range(3)))
        assert ledgers == []


async def test_a_client_that_is_closed_while_it_opens_is_closed(ledgers: list[Ledger]) -> None:
    async with MemoryQueue(Application, HANDLERS, None):
        client = Client(Producer)
        opening = asyncio.ensure_future(client.open())
        await asyncio.sleep(0.01)
        await client.close()
        await opening
        assert ledgers == []
        with pytest.raises(RuntimeError, match="not open"):
            await client.send(NAP, to="send_errand")


async def test_a_close_that_is_cancelled_closes_all_the_same(
    ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(_: Wire) -> None:
        await asyncio.sleep(20)

    async with MemoryQueue(Application, HANDLERS, None):
        client = Client(Producer)
        with monkeypatch.context() as patch:
            patch.setattr(Wire, "close", slow)
            await client.open()
            closing = asyncio.ensure_future(client.close())
            await asyncio.sleep(0.05)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert ledgers == []


async def test_a_client_is_opened_in_one_event_loop_after_the_other() -> None:
    async def shared() -> None:
        async with MemoryQueue(Application, HANDLERS, None):
            await asyncio.gather(client.open(), client.open())
            await asyncio.gather(client.close(), client.close())

    client = Client(Producer)
    for _ in range(2):
        await asyncio.to_thread(asyncio.run, shared())
