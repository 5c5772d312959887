"""The broker, the network and the ledger go away and come back; so do the workers and the producer."""

import asyncio
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import DEAD_QUEUE, QUEUE, ROOT, Site, simulate
from workqueue.amqp.connection import Link
from workqueue.amqp.consumer import Consumer
from workqueue.amqp.direct import DirectLane
from workqueue.amqp.lane import Lane
from workqueue.amqp.links import Links
from workqueue.amqp.topology import Topology
from workqueue.contract import load
from workqueue.dev.node import Node
from workqueue.errors import WorkQueueError
from workqueue.ledger.sqlite import LOOK_EVERY_S
from workqueue.settings import Settings
from workqueue.testing import WAIT_S, Worker, until, vhost
from workqueue.testing.given import Broker
from workqueue.testing.proxy import Proxy

BACK_S = 10.0  # never alive and idle for longer than this once the broker is back


@pytest.fixture
def alone(own_node: Node, tmp_path: Path, fast_project: Path) -> Iterator[Site]:
    """A site on a node of its own, of the contract with short delays."""
    here = Site(tmp_path, vhost(own_node), fast_project)
    yield here
    here.stop()
    here.tell()


async def progress(site: Site, more: int, within_s: float = WAIT_S) -> None:
    """Wait until so many more tasks have come to their end."""
    before = len(site.ended())
    await until(lambda: len(site.ended()) >= before + more, f"{more} more tasks are done", within_s)


async def test_workers_and_the_producer_come_back_after_a_broker_restart(alone: Site, own_node: Node) -> None:
    workers = [await alone.worker() for _ in range(3)]
    tasks = simulate(3000, seconds=0.005)
    sending = asyncio.ensure_future(alone.send(tasks))
    await progress(alone, 200)
    await asyncio.to_thread(own_node.stop)
    await asyncio.to_thread(own_node.start)
    back = time.time()
    names = {worker.name for worker in workers}
    at_work = lambda: names <= {note.worker for note in alone.record() if note.at > back}  # noqa: E731
    await until(at_work, "all three are at work again", BACK_S)
    await sending
    await alone.all_end(tasks, within_s=60)


async def test_a_broker_that_goes_away_while_the_consumers_of_a_worker_start_is_waited_for(
    alone: Site, own_node: Node
) -> None:
    """Those that have started are at work: the worker is no more than one that has lost its broker."""
    tasks = simulate(60, seconds=1.0)
    await alone.send(tasks)
    worker = await alone.worker("wide", "--concurrency", "60", ready=False)
    await until(lambda: len(alone.record()) >= 3, "some of its consumers are at work")
    await asyncio.to_thread(own_node.stop)
    await asyncio.to_thread(own_node.start)
    await until(worker.is_ready, "all of its consumers are at work")
    await alone.all_end(tasks)
    assert worker.process.poll() is None


async def test_a_broker_that_is_killed_under_load_loses_and_doubles_nothing(alone: Site, own_node: Node) -> None:
    for _ in range(3):
        await alone.worker()
    tasks = simulate(1500, seconds=0.01)
    await alone.send(tasks)
    await progress(alone, 200)  # by now the queue is old enough to come back from SIGKILL, see the node's tests
    await asyncio.sleep(1)
    await asyncio.to_thread(own_node.kill)
    await asyncio.to_thread(own_node.start)
    await progress(alone, 30, BACK_S)
    await alone.all_end(tasks, within_s=60)


async def test_connections_that_an_operator_closes_are_opened_again(alone: Site, own_node: Node) -> None:
    await alone.worker()
    tasks = simulate(400, seconds=0.005)
    await alone.send(tasks)
    await progress(alone, 20)
    for _ in range(3):
        await asyncio.to_thread(own_node.ctl, "close_all_connections", "test")
        more = simulate(20)  # the others may all be done by now
        await alone.send(more)
        ids = {one["id"] for one in more}
        await until(lambda: ids <= alone.ended().keys(), "those sent since are done", BACK_S)  # noqa: B023
        tasks += more
    await alone.all_end(tasks)


async def test_a_worker_that_loses_its_channel_while_it_starts_starts_again(site: Site) -> None:
    class Losing(Link):
        async def another(self) -> Lane:
            lane = await super().another()
            if not opened:
                assert isinstance(lane, DirectLane)
                await lane.channel.close()
            opened.append(lane)
            return lane

    loaded, settings = load("tests.generated.worker"), Settings(amqp_uri=(site.uri,))
    opened, ended = list[Lane](), list[WorkQueueError]()
    link = Losing(settings, "starting", Topology(loaded.queues, "starting").declare)
    consumer = Consumer(
        Links("starting", QUEUE, lambda: link), loaded.receives[QUEUE], "starting", settings, ended.append
    )
    await consumer.start()
    (task,) = simulate(1)
    await site.publish(json.dumps(task).encode(), message_id=task["id"])
    async with asyncio.timeout(BACK_S):
        arrived = await anext(consumer.recv())
    assert json.loads(arrived.payload) == task
    assert (len(opened), ended) == (2, [])
    await link.close()


async def test_a_queue_that_is_deleted_is_declared_again_and_consumed(site: Site) -> None:
    worker = await site.worker()
    async with site.amqp() as channel:
        await channel.queue_delete(QUEUE)
    await until(lambda: worker.says("lost a consumer"), "the worker notices")
    await until(lambda: site.depth_is(0), "the queue is there again", BACK_S)
    tasks = simulate(10)
    await site.send(tasks)
    await site.all_end(tasks)


async def test_a_blocked_broker_delays_the_producer_and_stops_no_ack(alone: Site, own_node: Node) -> None:
    tasks = simulate(300, seconds=0.03)
    await alone.send(tasks[:200])
    worker = await alone.worker()
    await progress(alone, 1)
    worker.signal(signal.SIGSTOP)  # so that tasks are left, however long the next command takes
    await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.0000001")
    worker.signal(signal.SIGCONT)
    try:
        await progress(alone, 50)  # the consumers' connections are not the ones that are blocked
        sending = asyncio.ensure_future(alone.send(tasks[200:]))
        await asyncio.sleep(1)
        assert not sending.done()
    finally:
        await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.4")
    await sending
    await alone.all_end(tasks)


async def test_tasks_that_were_written_and_never_arrived_are_sent_again(node: Broker, tmp_path: Path) -> None:
    site = Site(tmp_path, vhost(node))
    async with Proxy(node.port) as proxy:
        site.uri = site.uri.replace(f":{node.port}/", f":{proxy.port}/")
        process = await site.start_producer("--jsonl", "-")
        assert process.stdin is not None
        first, *others = simulate(50)
        process.stdin.write(json.dumps(first).encode() + b"\n")
        await until(lambda: site.depth_is(1), "the first is queued")
        (flow,) = proxy.named("producer-.*")
        flow.to_broker.open.clear()
        process.stdin.write(b"".join(json.dumps(one).encode() + b"\n" for one in others))
        process.stdin.close()
        await until(lambda: flow.to_broker.held, "the others are on their way")
        await asyncio.sleep(0.3)
        assert process.returncode is None  # nothing is confirmed, so nothing is sent
        flow.cut()
        assert process.stderr is not None
        assert b"sent: 50 confirmed, 0 refused, 0 unknown" in await process.stderr.read()
        assert await process.wait() == 0
        await until(lambda: site.depth_is(50), "all are queued")


async def test_a_failed_attempt_that_waits_for_a_broker_when_its_worker_ends_is_told_and_done_again(
    node: Broker, tmp_path: Path
) -> None:
    site = Site(tmp_path, vhost(node))
    tasks = simulate(1, seconds=1.0, failures=1)
    await site.send(tasks)
    direct = site.uri
    async with Proxy(node.port) as proxy:
        site.uri = direct.replace(f":{node.port}/", f":{proxy.port}/")
        worker = await site.worker(WORKQUEUE_DRAIN_S="2")
        await until(site.record, "it has begun")
        proxy.stall()
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    (line,) = worker.says("could be recorded: it will be done again")
    assert tasks[0]["id"] in line
    assert "stopped  finished 0, handed back 1" in worker.text()
    site.uri = direct
    heir = await site.worker()
    await until(lambda: heir.says("done") or heir.says("failed"), "it is done again")
    assert not heir.says("died")


async def test_a_full_queue_refuses_after_the_deadline_and_takes_what_is_sent_once_it_is_read(
    site: Site, node: Broker
) -> None:
    await site.send(simulate(1))  # declares the queue, whose overflow the contract says: reject-publish
    node.ctl("set_policy", "-p", site.uri.rpartition("/")[2], "full", f"^{QUEUE}$", '{"max-length": 5}')
    tasks = simulate(150)
    text = "".join(json.dumps(one) + "\n" for one in tasks)
    produced = await site.producer("--jsonl", "-", lines=text, WORKQUEUE_SEND_S="1", WORKQUEUE_WINDOW="50")
    assert produced.code in (1, 3), produced.err  # 3: one was just on its way again when its time was over
    assert f"queue '{QUEUE}' did not take it for 1 s; is it full?" in produced.err
    sending = asyncio.ensure_future(site.send(tasks, WORKQUEUE_WINDOW="50"))
    await asyncio.sleep(1)
    assert not sending.done()
    await site.worker()
    await sending
    await until(lambda: {one["id"] for one in tasks} <= site.ended().keys(), "all of them are done")
    assert set(site.ended().values()) == {1}


async def test_a_producer_whose_broker_stays_away_ends_with_an_account_and_exit_3(alone: Site, own_node: Node) -> None:
    process = await alone.start_producer("--jsonl", "-", WORKQUEUE_SEND_S="2")
    assert process.stdin is not None
    first = "".join(f'{{"kind": "nap", "seconds": 0, "failures": {n % 2}}}\n' for n in range(100))
    process.stdin.write(first.encode())
    await until(lambda: alone.depth_is(100), "the first hundred are queued")
    await asyncio.to_thread(own_node.kill)
    process.stdin.write(first.encode())
    process.stdin.close()
    assert process.stderr is not None
    said = (await process.stderr.read()).decode()
    assert await process.wait() == 3
    unconfirmed = said.count("was not confirmed within 2 s; send it again, under the same id")
    unsent = said.count("was refused: no broker within 2 s: ")
    assert unconfirmed + unsent == 100, said
    account = said.strip().splitlines()[-1]
    not_sent = f", {unsent} not sent" if unsent else ""
    assert account == f"sent: 100 confirmed, 0 refused, {unconfirmed} unknown{not_sent}, the rest not tried", account


async def test_a_worker_whose_broker_stays_away_ends_with_exit_3(alone: Site, own_node: Node) -> None:
    worker = await alone.worker(WORKQUEUE_RECONNECT_S="1")
    await asyncio.to_thread(own_node.kill)
    assert await worker.ended(within_s=15) == 3
    assert "no broker" in worker.text().splitlines()[-1]


async def test_a_drain_ends_at_once_while_the_broker_is_away(alone: Site, own_node: Node) -> None:
    worker = await alone.worker()
    await asyncio.to_thread(own_node.kill)
    await until(lambda: worker.says("waits for a broker"), "the worker notices")
    worker.signal(signal.SIGTERM)
    assert await worker.ended(within_s=5) == 0


async def test_a_node_that_is_killed_while_many_consumers_wait_makes_no_dead_letter(
    alone: Site, own_node: Node
) -> None:
    worker = await alone.worker("many", "--concurrency", "40")
    tasks = simulate(1, seconds=3.0)
    await alone.send(tasks)
    await until(lambda: [note.word for note in alone.record()].count("start") == 1, "it is in hand")
    await asyncio.sleep(2.0)  # a queue that is younger when its node is killed may find no leader
    own_node.kill()
    own_node.start()
    await alone.all_end(tasks)
    await until(lambda: worker.says("done already"), "it has come again, and is recognised", 30)
    assert await alone.depth_is(0, DEAD_QUEUE)


@pytest.fixture
def hasty(own_node: Node) -> Iterator[Node]:
    """A broker that takes a message back after a second."""
    for variable, milliseconds in (("consumer_timeout", 1000), ("channel_tick_interval", 300)):
        own_node.ctl("eval", f"application:set_env(rabbit, {variable}, {milliseconds}).")
    yield own_node
    own_node.kill()


async def test_a_task_that_runs_past_the_brokers_consumer_timeout_runs_once(alone: Site, hasty: Node) -> None:
    await alone.worker("first")
    await alone.worker("second")
    tasks = simulate(2, seconds=4.0)
    await alone.send(tasks)
    await until(lambda: "delivery acknowledgement" in hasty.log.read_text(), "the broker takes the tasks back")
    await alone.all_end(tasks)
    assert [note.word for note in alone.record()].count("start") == 2
    await until(lambda: sum(len(one.says("done already")) for one in alone.workers) >= 2, "they are recognised", 30)


async def test_tasks_beside_one_that_runs_past_the_consumer_timeout_run_once_too(alone: Site, hasty: Node) -> None:
    await alone.worker("many", "--concurrency", "5")
    tasks = simulate(1, seconds=4.0) + simulate(25, seconds=0.6)
    await alone.send(tasks)
    await alone.all_end(tasks)
    assert "delivery acknowledgement" in hasty.log.read_text()
    assert [note.word for note in alone.record()].count("start") == len(tasks)
    await until(lambda: alone.depth_is(0), "all are acked", 30)


async def test_a_rolling_restart_of_all_workers_fails_no_attempt_and_doubles_nothing(site: Site) -> None:
    workers = [await site.worker(f"old{n}") for n in range(3)]
    tasks = simulate(600, seconds=0.05)
    await site.send(tasks)
    for n, worker in enumerate(workers):
        await progress(site, 50)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0  # what reaches it after the signal goes back, and that counts for nothing
        await site.worker(f"new{n}")
    await site.all_end(tasks)
    assert not any(worker.says("failed") for worker in site.workers)
    assert len(site.record()) == 2 * len(tasks)


async def test_no_task_runs_while_the_ledger_is_out_of_reach(site: Site) -> None:
    worker = await site.worker()
    tasks = simulate(50)
    with closing(sqlite3.connect(site.folder / "ledger.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        await site.send(tasks)
        await until(lambda: worker.says("waits for the ledger"), "the worker waits")
        await asyncio.sleep(1)
        assert not site.record()
        db.execute("ROLLBACK")
    db.close()
    await site.all_end(tasks)


async def test_a_worker_whose_ledger_was_deleted_ends_with_a_line_and_exit_3_and_nothing_is_lost(site: Site) -> None:
    worker = await site.worker(LEDGER_URL=f"sqlite:{site.folder}/deleted/ledger.db")
    first, *others = simulate(5)
    await site.send([first])
    await until(lambda: worker.says("done"), "the first one is done")
    shutil.rmtree(site.folder / "deleted")
    await asyncio.sleep(LOOK_EVERY_S)
    await site.send(others)
    assert await worker.ended() == 3
    (line,) = [line for line in worker.text().splitlines() if "was lost" in line]
    assert f"the ledger {site.folder}/deleted/ledger.db was lost: " in line
    assert site.ended() == {first["id"]: 1}
    await until(lambda: site.depth_is(4), "the others are with the broker")


async def frozen_past_its_lease(site: Site) -> tuple[Worker, Worker]:
    frozen = await site.worker("frozen")
    tasks = simulate(1, seconds=1.0)
    await site.send(tasks)
    await until(site.record, "it has begun")
    frozen.signal(signal.SIGSTOP)
    heir = await site.worker("heir")
    return frozen, heir


async def test_the_claim_of_a_frozen_worker_is_respected_until_its_lease_ends(alone: Site, own_node: Node) -> None:
    """The lease of this contract is 2 s. The broker takes the task back when the operator closes the connection."""
    frozen, heir = await frozen_past_its_lease(alone)
    began = time.time()
    await asyncio.to_thread(own_node.ctl, "close_all_connections", "test")
    # Where closing took longer than the lease, the claim is over by then, and just the time can be told.
    await until(lambda: heir.says("is taken") or heir.says("its worker died"), "the heir sees the claim")
    await until(lambda: heir.says("done"), "the heir does the task")
    (start,) = [note.at for note in alone.record() if note.word == "start" and note.worker == "heir"]
    assert start - began > 0.9  # the claim was at most a second old, and renewed by nobody
    frozen.signal(signal.SIGCONT)
    words = "lost its claim", "done already", "failed"  # the last where it was frozen for longer than the task's limit
    await until(lambda: any(map(frozen.says, words)), "the frozen one can't complete")
    (line,) = await alone.run([{"id": alone.record()[0].id, "created_at": "2026-11-25T09:30:00Z",
                                "payload": {"kind": "nap", "seconds": 1.0}}])  # fmt: skip
    assert line["worker"] == "heir"


async def test_a_blocking_handler_leaves_heartbeats_and_signals_alone(site: Site) -> None:
    script = str(ROOT / "tests" / "workers" / "blocking.py")
    worker = await site.worker(script=script, WORKQUEUE_HEARTBEAT_S="1")
    tasks = simulate(1, seconds=7.0)
    await site.send(tasks)
    await until(site.record, "it has begun")
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert "finished 1, handed back 0" in worker.text()
    assert not worker.says("lost a consumer")
    await site.all_end(tasks)
