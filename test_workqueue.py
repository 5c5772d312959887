"""The work-queue pattern at work: real workers, a real broker, and each promise a test.

Every test has a vhost of its own on a RabbitMQ node that this run started. The workers are main-worker.py, on the
queues, with the delays and limits that spec/ says; only their handlers are stand-ins, which take as long and fail as
often as a test tells them, and write each start and end into a record. That is what the tests count. Where the contract
has several receive operations, each test runs for each of them, beside workers that serve them all.
"""

import asyncio
import json
import signal
import time
from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from workqueue.dev.node import Node
from workqueue.testing import MAIN, Scripts, Site, until, vhost

PROJECT = Path(__file__).parent
OPERATIONS = [*MAIN.operations(PROJECT)]


@pytest.fixture(scope="session")
def project() -> Path:
    return PROJECT


@pytest.fixture(params=OPERATIONS, ids=OPERATIONS if len(OPERATIONS) > 1 else [pytest.HIDDEN_PARAM])
def operation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def site(site: Site) -> Site:
    """This project's queue, with stand-ins for its handlers."""
    site.stand_in = True
    return site


async def test_every_task_is_done_exactly_once_and_none_is_missing(site: Site) -> None:
    for _ in range(3):
        await site.worker()
    tasks = site.tasks(1000)
    await site.send(tasks)
    await site.all_end(tasks)


async def test_each_worker_gets_a_fair_share(site: Site) -> None:
    one_at_a_time(site)
    for _ in range(3):
        await site.worker()
    tasks = site.tasks(300, seconds=0.01)
    await site.send(tasks)
    await site.all_end(tasks)
    shares = Counter(note.worker for note in site.record() if note.word == "end")
    assert len(shares) == 3
    assert all(75 <= share <= 125 for share in shares.values()), shares


def one_at_a_time(site: Site) -> None:
    if site.receive.prefetch > 1:
        pytest.skip("x-prefetch is above 1: tasks wait behind a slow one, and with the worker that was first")


async def test_a_slow_task_delays_no_other(site: Site) -> None:
    one_at_a_time(site)
    (slow,), quick = site.tasks(1, seconds=3.0), site.tasks(50, seconds=0.01)
    await site.worker()
    await site.worker()
    await site.send([slow, *quick])
    await site.all_end([slow, *quick])
    assert [note.id for note in site.record() if note.word == "end"][-1] == slow["id"]


async def test_a_worker_that_joins_gets_work_at_once(site: Site) -> None:
    one_at_a_time(site)
    tasks = site.tasks(500, seconds=0.01)
    await site.send(tasks)
    await site.worker("first")
    await until(lambda: len(site.ended()) >= 100, "the first worker has done 100")
    await site.worker("second")
    joined = time.time()
    await site.all_end(tasks)
    rest = [note for note in site.record() if note.word == "end" and note.at > joined]
    taken = sum(note.worker == "second" for note in rest)
    assert 0.4 * len(rest) <= taken <= 0.6 * len(rest), f"{taken} of {len(rest)}"


async def test_a_worker_that_is_killed_loses_nothing_and_its_task_is_done_by_another(site: Site) -> None:
    (slow,), quick = site.tasks(1, seconds=2.0), site.tasks(100)
    victim = await site.worker("victim")
    await site.send([slow, *quick])
    await until(lambda: site.record(), "the victim has the first one in hand")
    victim.signal(signal.SIGKILL)
    await site.worker("heir")
    await site.all_end([slow, *quick])
    lost, again, _ = (note for note in site.record() if note.id == slow["id"])
    assert (lost.worker, again.worker) == ("victim", "heir")
    assert again.at - lost.at >= site.receive.rungs[0].delay_s


async def test_sigterm_finishes_the_task_in_hand_and_takes_no_other(site: Site) -> None:
    tasks = site.tasks(2, seconds=3.0)  # the first one is still running when it is known that all were sent
    worker = await site.worker("leaver")
    await site.send(tasks)
    await until(lambda: site.record(), "the first task has begun")
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert [note.word for note in site.record()] == ["start", "end"]
    assert "finished 1, handed back 0" in worker.text()
    await site.worker("stayer")
    await site.all_end(tasks)


async def test_tasks_sent_while_no_worker_is_up_survive_a_broker_that_is_killed(
    own_node: Node, tmp_path: Path, project: Path, scripts: Scripts, operation: str
) -> None:
    site = Site(tmp_path, vhost(own_node), project, scripts=scripts, operation=operation, stand_in=True)
    try:
        tasks = site.tasks(200)
        await site.send(tasks)
        await asyncio.sleep(2)  # a quorum queue younger than a second may come back from SIGKILL without a leader
        own_node.kill()
        own_node.start()
        await site.worker()
        await site.all_end(tasks)
    finally:
        site.stop()


async def test_a_task_from_a_foreign_client_is_done(site: Site) -> None:
    await site.worker()
    (foreign,) = site.tasks(1)
    await site.publish(json.dumps(foreign).encode())
    await site.all_end([foreign])
    (line,) = await site.run([foreign])
    assert (line["state"], line["attempts"]) == ("done", 1)


async def test_a_body_that_is_not_the_contracts_stops_nobody_and_is_found_with_its_reason(site: Site) -> None:
    await site.worker()
    (one, *good) = site.tasks(21)
    bodies = {
        b"not json": ("undecodable", "not JSON"),
        json.dumps({**one, "payload": 7}).encode(): ("invalid", "/payload"),
        json.dumps({**one, "id": "no UUID"}).encode(): ("invalid", "/id"),
        b"[" * (site.receive.message.max_bytes + 1): ("undecodable", "the limit is"),
    }
    for body in bodies:
        await site.publish(body)
    await site.send(good)
    await site.all_end(good)
    for letter in await site.dead_letters(len(bodies)):
        reason, error = bodies[letter.body]
        assert letter.headers["x-reason"] == reason
        assert error in str(letter.headers["x-error"])
        assert letter.headers["x-queue"] == site.queue


async def test_a_failed_task_is_tried_again_after_growing_delays_on_any_worker(fast: Site) -> None:
    first = await fast.worker("first")
    delays_s = [rung.delay_s for rung in fast.receive.rungs][:3]
    (failing,) = fast.tasks(1, seconds=0.5, failures=len(delays_s))
    running = asyncio.ensure_future(fast.run([failing]))
    await until(lambda: fast.record(), "the first worker has it in hand")
    first.signal(signal.SIGTERM)  # it ends with this attempt
    await fast.worker("second")
    (line,) = await running
    assert (line["state"], line["attempts"], line["worker"]) == ("done", len(delays_s) + 1, "second")
    starts = [note.at for note in fast.record() if note.word == "start"]
    pauses = [later - sooner for sooner, later in pairwise(starts)]
    assert all(pause >= 0.5 + delay_s for pause, delay_s in zip(pauses, delays_s, strict=True)), pauses


async def test_a_handler_that_always_fails_stops_nobody_and_ends_as_a_dead_letter_with_its_story(fast: Site) -> None:
    await fast.worker("steady")
    failing, good = fast.tasks(5, failures=100), fast.tasks(50)
    lines = {line["id"]: line for line in await fast.run([*failing, *good])}
    assert all(lines[one["id"]]["state"] == "done" for one in good)
    letters = {json.loads(letter.body)["id"]: letter for letter in await fast.dead_letters(5)}
    for one in failing:
        assert (lines[one["id"]]["state"], lines[one["id"]]["attempts"]) == ("dead", fast.receive.max_attempts)
        letter = letters[one["id"]]
        assert json.loads(letter.body) == one
        assert letter.headers["x-reason"] == "failed"
        attempts: Any = letter.headers["x-attempts"]
        assert len(attempts) == fast.receive.max_attempts
        assert all(attempt["worker"] == "steady" and "told to fail" in attempt["error"] for attempt in attempts)


async def test_a_task_that_is_sent_twice_runs_once(site: Site) -> None:
    await site.worker()
    tasks = site.tasks(100)
    await site.send(tasks)
    await site.send(tasks)
    await site.all_end(tasks)
    await until(lambda: len(site.workers[0].says("done already")) == 100, "the second hundred is recognised")
    await site.all_end(tasks)


async def test_concurrency_gives_one_process_several_tasks_at_a_time(site: Site) -> None:
    await site.worker("wide", "--concurrency", "4")
    tasks = site.tasks(12, seconds=0.5)
    await site.send(tasks)
    await site.all_end(tasks)
    running = list(accumulate(1 if note.word == "start" else -1 for note in site.record()))
    assert max(running) == 4
