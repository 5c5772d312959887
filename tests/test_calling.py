"""What is called off, or not to be done now: `workqueue cancel`, `pause`, `resume` and `purge`, on a real broker."""

import asyncio
import signal
import time
import urllib.request
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
from workqueue.ledger import open_ledger
from workqueue.settings import Settings
from workqueue.testing import until, vhost
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


async def test_a_task_that_waits_is_cancelled_and_its_message_is_no_dead_letter(working: Site) -> None:
    assert (await paused(working)).code == 0
    off, on = simulate(2)
    await working.send([off, on])
    told = await workqueue(working, "cancel", off["id"], "--why", "a mistake")
    assert (told.code, told.err) == (0, "")
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
    assert f"{one['id']} runs still on one, which was asked to stop it" in told.err
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


async def test_a_pause_outlasts_the_restart_of_workers_and_broker(own_node: Node, tmp_path: Path) -> None:
    alone = Site(tmp_path, vhost(own_node), environment={"WORKQUEUE_LOG_FORMAT": "json"})
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
    alone.stop()


async def test_a_worker_whose_queue_is_paused_is_ready_and_says_so(site: Site) -> None:
    worker = await site.worker("one", WORKQUEUE_HTTP="127.0.0.1:0")
    assert (await paused(site)).code == 0
    (line,) = [line for line in worker.log.read_text().splitlines() if "http://" in line]
    address = "http://" + line.partition("http://")[2].strip()
    await asyncio.sleep(1)
    assert await asyncio.to_thread(get, f"{address}/readyz") == (200, "ready\n")
    _, scraped = await asyncio.to_thread(get, f"{address}/metrics")
    assert f'workqueue_paused{{queue="{site.queue}"}} 1.0' in scraped


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
    assert (told.code, told.out) == (0, "purge: 31 of 31 messages\n")
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
