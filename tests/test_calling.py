"""What is called off, or not to be done now: `workqueue cancel`, `pause`, `resume` and `purge`, on a real broker."""

import asyncio
import json
import re
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from uuid import UUID, uuid4

import pytest

from tests.generated.producer import Application
from tests.harness import ROOT, Site, simulate, task
from tests.operators import Told, ask, workqueue
from workqueue.client import Client
from workqueue.dev.node import Node
from workqueue.errors import TaskCancelled
from workqueue.ledger import Sent, open_ledger
from workqueue.ledger.board import GONE_S
from workqueue.settings import Settings
from workqueue.testing import Worker, until, vhost
from workqueue.testing.evidence import parse

CALLED_OFF = str(ROOT / "tests" / "workers" / "called_off.py")
STOP_S = 2.0  # from the order to the handler's end, and as much for a slow machine


def called(text: str) -> dict[str, Any]:
    return task({"kind": "digest", "text": text, "algorithm": "sha256"})


async def state_of(site: Site, one: dict[str, Any]) -> str:
    return str((await ask(site, "task", one["id"]))["state"])


def told_of(site: Site, event: str) -> int:
    """How often the workers' logs tell of such an event."""
    told = [parse(line) for worker in site.workers for line in worker.log.read_text().splitlines()]
    return sum(one is not None and one.event == event for one in told)


async def runs(site: Site, one: dict[str, Any]) -> bool:
    return await state_of(site, one) == "running"


async def paused(site: Site, *flags: str) -> Told:
    return await workqueue(site, "pause", site.queue, *flags)


@pytest.fixture
async def working(site: Site) -> Site:
    site.environment |= {"WORKQUEUE_DRAIN_S": "1", "WORKQUEUE_LOG_FORMAT": "json"}
    await site.worker("one", script=CALLED_OFF)
    return site


@pytest.fixture
def alone(own_node: Node, tmp_path: Path) -> Iterator[Site]:
    """A site on a node of its own."""
    here = Site(tmp_path, vhost(own_node), environment={"WORKQUEUE_LOG_FORMAT": "json", "WORKQUEUE_DRAIN_S": "1"})
    yield here
    here.stop()
    here.tell()


async def test_a_task_that_waits_is_cancelled_and_its_message_is_no_dead_letter(working: Site) -> None:
    assert (await paused(working)).code == 0
    off, on = simulate(2)
    await working.send([off, on])
    told = await workqueue(working, "cancel", off["id"], "--why", "a mistake")
    assert told.code == 0
    assert "the ledger knew nothing of" in told.err  # nobody has recorded it, and no worker has had it
    assert f"{off['id']}  cancelled" in told.out
    told = await workqueue(working, "task", off["id"])
    assert told.code == 0
    assert "a mistake" in told.out
    assert (await workqueue(working, "resume", working.queue)).code == 0
    await until(lambda: told_of(working, "skipped") == 1 and told_of(working, "done") == 1, "both are settled")
    assert await state_of(working, off) == "cancelled"
    assert await state_of(working, on) == "done"
    assert await working.depth_is(0, working.dead_queue)


async def test_one_that_was_never_sent_is_cancelled_should_it_come(working: Site) -> None:
    (one,) = simulate(1)
    assert (await workqueue(working, "cancel", "-", given=one["id"])).code == 0
    await working.send([one])
    await until(lambda: told_of(working, "skipped") == 1, "it was skipped")
    assert await state_of(working, one) == "cancelled"


@pytest.mark.parametrize("way", ["loop", "thread", "breaks"])
async def test_one_that_runs_is_stopped_within_two_seconds(working: Site, way: str) -> None:
    (one,) = simulate(1, seconds=60) if way == "loop" else [called(way)]
    await working.send([one])
    await until(lambda: runs(working, one), "it runs")
    began = time.monotonic()
    told = await workqueue(working, "cancel", one["id"], "--why", "too long", "-o", "json")
    assert time.monotonic() - began < 2 * STOP_S + 1
    (found,) = told.value
    assert (told.code, found["state"], found["worker"]) == (0, "cancelled", "one")
    assert told_of(working, "cancelled") == 1
    assert told_of(working, "retrying") == 0
    assert await working.depth_is(0, working.dead_queue)
    assert (await ask(working, "task", one["id"]))["error"].endswith(": too long")
    (other,) = simulate(1)
    await working.run([other])  # the worker goes on


async def test_one_that_finishes_meanwhile_is_done(working: Site) -> None:
    one = called("finishes")
    await working.send([one])
    await until(lambda: runs(working, one), "it runs")
    told = await workqueue(working, "cancel", one["id"], "-o", "json")
    assert (told.code, told.value[0]["state"]) == (1, "done")
    assert told_of(working, "done") == 1


async def test_one_that_can_not_be_stopped_is_asked_and_has_no_other_attempt(working: Site) -> None:
    one = called("stubborn")
    await working.send([one])
    await until(lambda: runs(working, one), "it runs")
    told = await workqueue(working, "cancel", one["id"], "--wait", "3")
    assert told.code == 1
    assert f"{one['id']} has not ended on one, which was asked to stop it" in told.err
    assert "asked to stop by" in (await workqueue(working, "task", one["id"])).out
    await until(lambda: told_of(working, "cancelled") == 1, "it has ended at last")
    assert await state_of(working, one) == "cancelled"
    assert told_of(working, "retrying") == 0


async def test_a_cancellation_outlasts_the_death_of_the_worker_that_was_asked(working: Site) -> None:
    one = called("stubborn")
    await working.send([one])
    await until(lambda: runs(working, one), "it runs")
    assert (await workqueue(working, "cancel", one["id"], "--wait", "0")).code == 1
    working.workers[0].process.kill()
    await working.worker("two", script=CALLED_OFF)
    await until(lambda: told_of(working, "skipped") == 1, "the next worker leaves it alone")
    assert await state_of(working, one) == "cancelled"


async def test_an_application_cancels_and_whoever_waits_is_told(working: Site) -> None:
    settings = Settings(amqp_uri=(working.uri,), ledger_url=working.ledger_url)
    async with Client(Application, settings=settings, name="shop") as client:
        handle = await client.send({"kind": "nap", "seconds": 60}, to=working.to[1])
        await until(lambda: runs(working, {"id": str(handle.id)}), "it runs")
        waiting = asyncio.ensure_future(handle.result(timeout_s=30))
        assert await client.cancel(handle.id, "the order was taken back") == "asked"
        with pytest.raises(TaskCancelled, match=r"by shop@.*: the order was taken back"):
            await waiting
        assert (await handle.status()).state == "cancelled"
        assert await client.cancel(str(handle.id)) == "cancelled"


async def test_what_a_worker_has_in_hand_goes_on_while_its_queue_is_paused(working: Site) -> None:
    (first,) = simulate(1, seconds=5)
    await working.send([first])
    await until(lambda: runs(working, first), "it runs")
    told = await paused(working, "--why", "a deployment")
    assert (told.code, told.out) == (0, f"{working.queue} is paused; workers that say so: one\n")
    rest = simulate(3)
    await working.send(rest)
    await until(lambda: told_of(working, "done") == 1, "the first is done")
    await asyncio.sleep(1.5)
    assert told_of(working, "done") == 1
    found = next(one for one in (await ask(working, "status"))["queues"] if one["queue"] == working.queue)
    assert (found["ready"], found["paused"]["why"]) == (3, "a deployment")
    told = await workqueue(working, "status")
    assert "is paused, since" in told.out
    assert "nobody takes tasks" not in told.out
    findings = [one for one in await ask(working, "doctor") if one["about"] == f"queue {working.queue}"]
    assert [(one["state"], "paused since" in one["said"]) for one in findings] == [("warning", True)]
    told = await workqueue(working, "pause", working.queue)
    assert (told.code, "(it was already)" in told.out) == (0, True)
    told = await workqueue(working, "resume", working.queue)
    assert (told.code, told.out) == (0, f"{working.queue} is resumed; workers that say so: one\n")
    await until(lambda: told_of(working, "done") == 4, "the others are done")
    whats = [one["what"] for one in await ask(working, "audit")]
    assert whats == ["pause", "pause", "resume"]


async def test_a_pause_outlasts_the_restart_of_workers_and_broker(alone: Site, own_node: Node) -> None:
    one = await alone.worker("one")
    assert (await paused(alone)).code == 0
    await alone.send(simulate(2))
    one.process.send_signal(signal.SIGTERM)
    await until(lambda: one.process.poll() == 0, "it ends well while it is paused")
    await alone.worker("two")
    own_node.stop()
    own_node.start()
    await alone.worker("three")
    await asyncio.sleep(3)
    assert told_of(alone, "done") == 0
    assert (await workqueue(alone, "resume", alone.queue)).code == 0
    await until(lambda: told_of(alone, "done") == 2, "both are done")


async def test_a_pause_that_comes_while_the_broker_is_away_holds_when_it_is_back(alone: Site, own_node: Node) -> None:
    worker = await alone.worker("one", WORKQUEUE_HTTP="127.0.0.1:0")
    address = http_of(worker)
    own_node.stop()
    told = await paused(alone)
    assert (told.code, "whether somebody takes from it still is not known" in told.err) == (1, True)
    own_node.start()
    await until(lambda: asyncio.to_thread(is_ready, address), "it is connected again")
    await alone.send(simulate(3))
    await asyncio.sleep(3)
    assert told_of(alone, "done") == 0
    own_node.stop()  # a worker that is paused notices that, too
    await until(lambda: asyncio.to_thread(lambda: not is_ready(address)), "it is not connected", within_s=15)
    own_node.start()
    await until(lambda: asyncio.to_thread(is_ready, address), "it is connected again")
    assert (await workqueue(alone, "resume", alone.queue)).code == 0
    await until(lambda: told_of(alone, "done") == 3, "all are done")


async def ignore(message: object) -> None:
    """It is nobody's."""


async def test_of_a_queue_that_somebody_else_takes_from_it_is_said(site: Site) -> None:
    await site.worker("one")
    async with site.amqp() as channel:
        queue = await channel.get_queue(site.queue)
        await queue.consume(ignore)
        told = await paused(site)
    assert told.code == 1
    assert "1 consumers take from it still, which tell the ledger nothing" in told.err


async def test_of_a_worker_that_is_frozen_while_its_queue_is_paused_the_name_is_said(site: Site) -> None:
    worker = await site.worker("one")
    worker.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(GONE_S + 1)
        told = await paused(site)
    finally:
        worker.signal(signal.SIGCONT)
    assert told.code == 1
    assert "consumers take from it still, which tell the ledger nothing: one, which is gone, or frozen; " in told.err


async def test_a_worker_whose_queue_is_paused_is_ready_and_says_so(site: Site) -> None:
    worker = await site.worker("one", WORKQUEUE_HTTP="127.0.0.1:0")
    assert (await paused(site)).code == 0
    address = http_of(worker)
    await asyncio.sleep(1)
    assert await asyncio.to_thread(get, f"{address}/readyz") == (200, "ready\n")
    _, scraped = await asyncio.to_thread(get, f"{address}/metrics")
    assert f'workqueue_paused{{queue="{site.queue}"}} 1.0' in scraped


def http_of(worker: Worker) -> str:
    (found,) = re.findall(r"http://[\d.:]+", worker.log.read_text())
    return str(found)


def is_ready(address: str) -> bool:
    return get(f"{address}/readyz")[0] == 200


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


async def test_all_that_waits_is_thrown_away_and_called_off(working: Site) -> None:
    (running,) = simulate(1, seconds=8)
    await working.send([running])
    await until(lambda: runs(working, running), "it runs")
    assert (await paused(working)).code == 0
    tasks = simulate(30)
    await working.send(tasks)
    await working.publish(b"no task")
    told = await workqueue(working, "purge", working.queue)
    assert (told.code, "nobody can be asked" in told.err) == (2, True)
    told = await workqueue(working, "purge", working.queue, "--dry-run")
    assert (told.code, f"31 wait in {working.queue}\n" in told.err) == (0, True)
    assert await working.depth_is(31)
    told = await workqueue(working, "purge", working.queue, "--yes", "--why", "a flood")
    assert (told.code, told.out) == (0, "purge: 31 of 31 messages\n"), told.err
    assert await working.depth_is(0)
    ledger = await open_ledger(Settings(ledger_url=working.ledger_url))
    outcomes = await ledger.outcomes([UUID(one["id"]) for one in tasks])
    await ledger.close()
    assert [outcome.state for outcome in outcomes] == ["cancelled"] * 30
    assert (await workqueue(working, "resume", working.queue)).code == 0
    await working.send(tasks[:1])
    await until(lambda: told_of(working, "done") == 1, "the one that ran is done")
    await until(lambda: told_of(working, "skipped") == 1, "a copy that comes later is not run")
    assert told_of(working, "done") == 1


async def test_the_only_message_of_a_task_that_runs_is_not_thrown_away(alone: Site, own_node: Node) -> None:
    """After a lost connection it lies in the queue, while the worker goes on. Should that die, it is all there is."""
    worker = await alone.worker("one", script=CALLED_OFF)
    (one,) = simulate(1, seconds=30)
    await alone.send([one])
    await until(lambda: runs(alone, one), "it runs")
    assert (await paused(alone)).code == 0
    own_node.stop()
    own_node.start()
    await until(lambda: alone.depth_is(1), "its message is back")
    told = await workqueue(alone, "purge", alone.queue, "--yes")
    assert (told.code, told.out) == (1, "purge: 0 of 1 messages\n")
    assert "1 stay: their tasks run, and go on" in told.err
    worker.process.kill()
    await workqueue(alone, "resume", alone.queue)
    await alone.worker("two", script=CALLED_OFF)
    await until(lambda: runs(alone, one), "it is not lost")


async def test_a_message_with_the_id_of_another_queues_task_does_not_call_that_off(working: Site) -> None:
    others = next(one for one in working.scripts.operations(working.project).values() if one.receive != working.receive)
    (one,) = simulate(1)
    for queue in (working.queue, others.receive.queue.name):
        assert (await workqueue(working, "pause", queue)).code == 0
    ledger = await open_ledger(Settings(ledger_url=working.ledger_url))
    await ledger.record([Sent(UUID(one["id"]), "nap", b"of the errand")])
    await working.publish(json.dumps({**called("x"), "id": one["id"]}).encode(), others.receive.queue.name)
    told = await workqueue(working, "purge", others.receive.queue.name, "--yes")
    assert told.out == "purge: 1 of 1 messages\n"
    entry = await ledger.entry(UUID(one["id"]))
    await ledger.close()
    assert entry is not None
    assert entry.state == "waiting"


async def test_what_comes_back_from_delays_is_purged_too(working: Site) -> None:
    assert (await paused(working)).code == 0
    rung = working.receive.rungs[0].queue.name
    for number, one in enumerate(simulate(600)):
        await working.publish(json.dumps(one).encode(), rung if number % 3 == 0 else working.queue)
    told = await workqueue(working, "purge", working.queue, "--yes")
    assert await working.depth_is(0) or told.code == 1, told.err
    told = await workqueue(working, "purge", working.queue, "--yes")
    assert told.code == 0
    assert await working.depth_is(0)
    assert await working.depth_is(0, rung)


async def test_a_ledger_that_is_busy_for_a_moment_breaks_no_command_off(working: Site) -> None:
    tasks = simulate(50)
    with closing(sqlite3.connect(working.ledger_url.removeprefix("sqlite:"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cancelling = asyncio.ensure_future(workqueue(working, "cancel", *[one["id"] for one in tasks], "-o", "json"))
        await asyncio.sleep(3)
        other.execute("ROLLBACK")
        told = await cancelling
    assert (told.code, len(told.value)) == (0, 50), told.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("cancel", "7"), "'7' is no id of a task"),
        (("pause", "nowhere"), "'nowhere' is no queue of this project's workers"),
        (("purge", "nowhere", "--yes"), "'nowhere' is no queue of this project's workers"),
    ],
)
async def test_what_can_not_be_meant_is_one_line(site: Site, arguments: tuple[str, ...], problem: str) -> None:
    told = await workqueue(site, *arguments)
    assert (told.code, told.out, len(told.err.splitlines())) == (2, "", 1)
    assert problem in told.err


async def test_without_a_ledger_it_is_said(site: Site) -> None:
    for command in (("cancel", str(uuid4())), ("pause", site.queue), ("resume", site.queue)):
        told = await workqueue(site, *command, LEDGER_URL="none")
        assert (told.code, "needs a ledger, and LEDGER_URL is none" in told.err) == (2, True)
