"""A wish for a task whose answer does not come, or comes when nobody wants the task: no claim is left behind."""

import asyncio
import signal
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.harness import RECEIVE, Site, simulate
from tests.test_ledger_postgres import port_of, run, url
from tests.test_processor import DEAD, RETURNED, RUNGS, TASK, TASKS, WAIT_S, Bench, claimed
from workqueue.codec import Undecodable
from workqueue.delivery import Delivery, current
from workqueue.ledger import Crash, Taken
from workqueue.process.signals import SAME_S
from workqueue.tasks import claiming, ends
from workqueue.tasks.story import REQUEST
from workqueue.testing import until
from workqueue.testing.proxy import Proxy

__all__ = ["url"]

REFUSED = Undecodable("invalid", "no")


def arrives(bench: Bench, headers: dict[str, Any], *, again: bool = False) -> Delivery:
    return replace(bench.arrives(headers), redelivered=again)


async def handed_back(bench: Bench, task: Any, headers: dict[str, Any]) -> list[str]:
    """The effects of a message for which the ledger is busy until the worker drains."""
    bench.ledger.busy["claim"] = 1000
    taking = asyncio.ensure_future(bench.take(task, headers))
    await until(lambda: bench.log, "it is asked for")
    bench.guard.drain()
    return await taking


@pytest.mark.parametrize("task", [TASK, REFUSED])
async def test_a_message_that_goes_back_without_an_answer_takes_the_number_of_the_wish_along(task: Any) -> None:
    bench = Bench()
    assert (await handed_back(bench, task, {"x-burial": 3}))[-2:] == [TASKS, "ack"]
    (copy,) = bench.publisher.copies
    assert copy["headers"] == {"x-burial": 3, REQUEST: str(bench.ledger.requests[0])}


async def test_who_gets_it_then_adopts_the_wish_and_no_copy_of_it_does() -> None:
    bench, wish = Bench(), uuid4()
    bench.ledger.claim_answer = Taken(3.0)
    await bench.take(headers={REQUEST: str(wish), "traceparent": "00-1"})
    (copy,) = bench.publisher.copies
    assert bench.ledger.adopted == [wish]
    assert bench.ledger.requests[0] not in (wish, None)
    assert copy["headers"] == {"traceparent": "00-1"}


@pytest.mark.parametrize("told", ["no number", 7, None, {"a": 1}, "x" * 5000])
async def test_what_is_no_number_is_no_wish(told: Any) -> None:
    bench = Bench()
    assert (await bench.take(headers={REQUEST: told}))[-1] == "ack"
    assert bench.ledger.adopted == [None]
    assert isinstance(bench.ledger.requests[0], UUID)


async def test_a_message_that_was_delivered_before_adopts_no_wish() -> None:
    """Its worker may be at work: both would have the claim."""
    bench, wish = Bench(), uuid4()
    current.set(arrives(bench, {REQUEST: str(wish)}, again=True))
    await bench.guard.take(TASK)
    assert bench.ledger.adopted == [None]


async def test_whose_wish_it_is_stays_so_where_who_adopts_it_gets_no_answer_either() -> None:
    bench, wish = Bench(), uuid4()
    await handed_back(bench, TASK, {REQUEST: str(wish)})
    assert bench.publisher.copies[0]["headers"] == {REQUEST: str(wish)}


@pytest.mark.parametrize("drains", [True, False], ids=["as it is handed back", "as it is delayed"])
async def test_no_copy_of_what_was_delivered_before_has_the_number(drains: bool) -> None:
    """It would be a first delivery again, while whoever has adopted the wish is at work."""
    bench = Bench(single=False)
    if drains:
        bench.guard.drain()
    current.set(replace(arrives(bench, {REQUEST: str(uuid4())}, again=True), delivery_count=1 if drains else 10))
    await bench.guard.take(TASK)
    assert bench.publisher.copies[0]["headers"] == {}


async def test_where_the_contracts_headers_do_not_allow_the_number_it_is_not_told() -> None:
    closed = {"type": "object", "additionalProperties": False, "properties": {"x-attempts": True}}
    bench = Bench(receive=replace(RECEIVE, message=replace(RECEIVE.message, headers_schema=closed)))
    await handed_back(bench, TASK, {})
    assert bench.publisher.copies[0]["headers"] == {}


@pytest.mark.parametrize("task", [TASK, REFUSED])
@pytest.mark.parametrize("given_up", ["never", "just before", "just after"])
async def test_a_claim_that_comes_as_the_process_ends_is_given_back(task: Any, given_up: str) -> None:
    bench, asked = Bench(), asyncio.Event()
    claim = bench.ledger.claim

    async def silent(*values: Any, **more: Any) -> Any:
        if asked.is_set():
            return await claim(*values, **more)
        bench.ledger.requests.append(more["request"])
        asked.set()
        await asyncio.Event().wait()

    bench.ledger.claim = silent  # type: ignore[method-assign]
    taking = asyncio.ensure_future(bench.take(task))
    await asked.wait()
    bench.guard.claims.end()
    if given_up == "just before":
        bench.guard.claims._ask.give_up()
    taking.cancel()
    if given_up == "just after":
        bench.guard.claims._ask.give_up()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert bench.log == ["claim", "release"]
    assert bench.ledger.requests[0] == bench.ledger.requests[1]


@pytest.mark.parametrize("task", [TASK, REFUSED])
@pytest.mark.parametrize("ended", ["before the claim", "during it"])
async def test_a_message_whose_claim_is_not_answered_goes_back_at_the_end_of_the_drain(
    monkeypatch: pytest.MonkeyPatch, task: Any, ended: str
) -> None:
    monkeypatch.setattr(claiming, "END_S", 0.01)
    bench, asked = Bench(), asyncio.Event()

    async def silent(*_: Any, **more: Any) -> Any:
        bench.ledger.requests.append(more["request"])
        asked.set()
        await asyncio.Event().wait()

    bench.ledger.claim = silent  # type: ignore[method-assign]
    if ended == "before the claim":
        bench.guard.end()
    taking = asyncio.ensure_future(bench.take(task))
    await asked.wait()
    bench.guard.drain()
    bench.guard.end()
    assert await asyncio.wait_for(taking, WAIT_S) == [TASKS, "ack"]
    assert bench.publisher.copies[0]["headers"] == {REQUEST: str(bench.ledger.requests[0])}
    assert bench.guard.settling.handed_back == 1


async def test_once_answers_are_given_up_no_claim_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "END_S", 0.0)
    bench = Bench()
    bench.guard.end()
    await until(lambda: bench.guard.claims._ask.is_over, "it is over")
    assert await bench.take() == [TASKS, "ack"]
    assert bench.ledger.requests == []


async def test_a_ledger_that_stays_silent_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "END_S", 0.01)
    bench, asked = Bench(), asyncio.Event()

    async def silent(*_: Any, **__: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    bench.ledger.claim = silent  # type: ignore[method-assign]
    taking = asyncio.ensure_future(bench.take())
    await asked.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(taking, WAIT_S)


async def test_no_handler_begins_once_the_drain_is_over() -> None:
    bench, go, asked = Bench(), asyncio.Event(), asyncio.Event()
    claim = bench.ledger.claim

    async def late(*values: Any, **more: Any) -> Any:
        asked.set()
        await go.wait()
        return await claim(*values, **more)

    bench.ledger.claim = late  # type: ignore[method-assign]
    taking = asyncio.ensure_future(bench.take())
    await asked.wait()
    bench.guard.drain()
    bench.guard.end()
    go.set()
    assert await taking == ["claim", "release", TASKS, "ack"]


@pytest.mark.parametrize("waits", [False, True])
async def test_what_can_not_be_run_waits_for_who_has_its_task_and_is_dead_in_the_ledger_then(waits: bool) -> None:
    """Or whoever awaits its result waits for ever: a worker may have died as it buried it."""
    bench = Bench()
    bench.ledger.claim_answer = Taken(0.1, waits=waits)
    assert await bench.take(REFUSED) == ["claim", RUNGS[0], "ack"]
    bench.ledger.claim_answer = claimed()
    bench.log.clear()
    assert await bench.take(REFUSED) == ["claim", DEAD, "bury", "ack"]


@pytest.mark.parametrize("task", [TASK, REFUSED], ids=["of a convict", "of what can't be run"])
async def test_a_burial_that_ends_with_its_process_gives_the_claim_back(task: Any) -> None:
    bench = Bench()
    bench.ledger.claim_answer = claimed(crashes=(Crash("w0", "2026-11-25T09:30:00Z", alone=True),) * 5)
    bench.publisher.is_there.clear()
    taking = asyncio.ensure_future(bench.take(task))
    await until(lambda: bench.log, "it is claimed")
    taking.cancel()
    with suppress(asyncio.CancelledError):
        await taking
    assert bench.log == ["claim", "release"]


async def test_a_body_that_is_too_large_for_the_contract_is_dead_in_the_ledger_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(receive=replace(RECEIVE, message=replace(RECEIVE.message, max_bytes=10)))
    assert await bench.take(Undecodable("undecodable", "117 bytes, the limit is 10")) == ["claim", DEAD, "bury", "ack"]
    monkeypatch.setattr("workqueue.tasks.refusing.NAMED_BYTES", 20)  # to read it would take too much memory
    bench.log.clear()
    assert await bench.take(Undecodable("undecodable", "117 bytes, the limit is 10")) == [DEAD, "ack"]


@pytest.mark.parametrize("how", ["a drain", "a short drain", "a second signal"])
async def test_the_end_of_a_worker_whose_claim_is_not_answered_is_no_death(fast: Site, url: str, how: str) -> None:
    """Its answer was on its way when the network fell silent: the claim is made."""
    (one,) = tasks = simulate(1)
    row = f"SELECT state, fence, crashes FROM workqueue_task WHERE id = '{one['id']}'"
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    fast.environment["LEDGER_URL"] = url
    if how == "a short drain":  # shorter than a silent server is waited for
        fast.environment["WORKQUEUE_DRAIN_S"] = "1"
    (await fast.worker("first")).process.terminate()
    run(url, f"INSERT INTO workqueue_task (id, state, fence, worker, lease_until, created_at)"
             f" VALUES ('{one['id']}', 'waiting', 0, '', now(), now())")  # fmt: skip
    async with Proxy(port_of(url)) as proxy:
        with psycopg.connect(url) as lock:
            lock.execute(f"SELECT 1 FROM workqueue_task WHERE id = '{one['id']}' FOR UPDATE")
            through = url.replace(f":{port_of(url)}/", f":{proxy.port}/")
            worker = await fast.worker("second", "--only", fast.receive.operation, LEDGER_URL=through)
            await fast.send(tasks)
            await until(lambda: run(url, waits)[0][0] > 0, "the claim waits for the row")
            proxy.stall()
            lock.rollback()
        await until(lambda: run(url, row)[0][0] == "running", "the claim is made")
        worker.process.send_signal(signal.SIGTERM)
        if how == "a second signal":
            await until(lambda: "stops" in worker.text(), "it drains")
            await asyncio.sleep(2 * SAME_S)  # or it is the same one
            worker.process.send_signal(signal.SIGTERM)
        code = 130 if how == "a second signal" else 0
        assert await asyncio.to_thread(worker.process.wait, WAIT_S) == code
    assert "handed back 1" in worker.text()
    await fast.worker("third", "--only", fast.receive.operation)
    await until(lambda: run(url, row)[0][0] == "done", "another one goes on with it")
    assert run(url, row) == [("done", 2, "")]


@pytest.mark.parametrize("kept", [True, False], ids=["its own still", "another one's by now"])
async def test_a_claim_whose_answer_comes_late_is_renewed_before_it_is_run(kept: bool) -> None:
    """The process stood still, or a handler blocked its loop: by now the lease may have ended."""
    bench = Bench(receive=replace(RECEIVE, lease_s=0.02))
    claim, bench.ledger.kept = bench.ledger.claim, kept

    async def late(*values: Any, **more: Any) -> Any:
        answer = await claim(*values, **more)
        time.sleep(0.03)  # noqa: ASYNC251  # as the loop is
        return answer

    bench.ledger.claim = late  # type: ignore[method-assign]
    log = await bench.take()
    assert log[:2] == ["claim", "renew"]
    assert ("run" in log) is kept
    assert log[-1] == "ack"
    assert kept or log[2:-1] == [RUNGS[0]]


@pytest.mark.parametrize("ended", ["cut off", "done", "failed"])
@pytest.mark.parametrize("goes", [True, False], ids=["goes along", "can't"])
async def test_a_claim_that_can_not_be_given_back_at_the_end_goes_to_who_has_the_message_next(
    monkeypatch: pytest.MonkeyPatch, ended: str, goes: bool
) -> None:
    monkeypatch.setattr(ends, "END_S", 0.05)
    monkeypatch.setattr(ends, "COMPLETE_S", 0.05)
    running = asyncio.Event()

    async def handle(*_: Any) -> Any:
        running.set()
        if ended == "cut off":
            await asyncio.Event().wait()
        if ended == "failed":
            raise ValueError("no")
        return RETURNED

    bench = Bench(handle)
    bench.ledger.keeps_requests = goes
    bench.ledger.busy |= {"complete": 1000, "release": 1000}
    taking = asyncio.ensure_future(bench.take())
    await running.wait()
    bench.guard.drain()
    bench.guard.end()
    if goes and ended != "failed":
        assert (await asyncio.wait_for(taking, WAIT_S))[-2:] == [TASKS, "ack"]
        assert bench.publisher.copies[0]["headers"] == {REQUEST: str(bench.ledger.requests[0])}
        assert bench.guard.execution.ends.open == {}  # from here on the claim is another one's
    else:  # the ledger may answer yet
        await asyncio.sleep(0.2)
        assert not taking.done()
        bench.ledger.busy.clear()
        log = await asyncio.wait_for(taking, WAIT_S)
        assert (log[-1], TASKS in log) == ("ack", ended == "cut off")
    assert bench.fatal == []


async def test_who_cancels_itself_while_it_is_cut_off_gives_its_claim_along_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ends, "COMPLETE_S", 0.05)
    running = asyncio.Event()

    async def handle(*_: Any) -> Any:
        running.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return RETURNED

    bench = Bench(handle)
    bench.ledger.busy |= {"complete": 1000, "release": 1000}
    taking = asyncio.ensure_future(bench.take())
    await running.wait()
    bench.guard.drain()
    bench.guard.end()
    assert (await asyncio.wait_for(taking, WAIT_S))[-2:] == [TASKS, "ack"]


async def test_a_worker_that_ends_with_a_claim_while_its_ledger_is_away_has_not_died(fast: Site, url: str) -> None:
    """What it has still on its way to the server does not end the claim of who goes on with it."""
    (one,) = tasks = simulate(1, seconds=3.0)
    row = f"SELECT state, fence, crashes FROM workqueue_task WHERE id = '{one['id']}'"
    fast.environment |= {"LEDGER_URL": url, "WORKQUEUE_DRAIN_S": "1"}
    async with Proxy(port_of(url)) as proxy:
        through = url.replace(f":{port_of(url)}/", f":{proxy.port}/")
        worker = await fast.worker("first", "--only", fast.receive.operation, LEDGER_URL=through)
        await fast.send(tasks)
        await until(lambda: run(url, row)[0][0] == "running", "it runs")
        proxy.stall()
        worker.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.process.wait, WAIT_S) == 0
        assert "handed back 1" in worker.text()
        await fast.worker("second", "--only", fast.receive.operation)
        await until(lambda: run(url, row)[0][1] == 2, "another one goes on with it")
        proxy.resume()
        await until(lambda: run(url, row)[0][0] == "done", "it is done")
    assert run(url, row) == [("done", 2, "")]
