"""The work-queue pattern at work: real workers, a real broker, and each promise a test.

Every test has a vhost of its own on a RabbitMQ node that this run started. The workers are main-worker.py, or where
spec/ has other kinds than the example, those of the tests' own contract; their handler also writes each start and end
into a record, which is what the tests count.
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

from tests import example, harness
from tests.harness import EXAMPLE, TESTS, Site, is_example, until, vhost
from workqueue.dev.node import Node

pytestmark = [pytest.mark.example] if is_example() else []
simulate = example.simulate if is_example() else harness.simulate


async def test_every_task_is_done_exactly_once_and_none_is_missing(site: Site) -> None:
    for _ in range(3):
        await site.worker()
    tasks = simulate(1000)
    await site.send(tasks)
    await site.all_end(tasks)


async def test_each_worker_gets_a_fair_share(site: Site) -> None:
    for _ in range(3):
        await site.worker()
    tasks = simulate(300, seconds=0.01)
    await site.send(tasks)
    await site.all_end(tasks)
    shares = Counter(note.worker for note in site.record() if note.word == "end")
    assert len(shares) == 3
    assert all(75 <= share <= 125 for share in shares.values()), shares


async def test_a_slow_task_delays_no_other(site: Site) -> None:
    (slow,), quick = simulate(1, seconds=3.0), simulate(50, seconds=0.01)
    await site.worker()
    await site.worker()
    await site.send([slow, *quick])
    await site.all_end([slow, *quick])
    assert [note.id for note in site.record() if note.word == "end"][-1] == slow["id"]


async def test_a_worker_that_joins_gets_work_at_once(site: Site) -> None:
    tasks = simulate(500, seconds=0.01)
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
    tasks = simulate(120, seconds=0.05)
    victim = await site.worker("victim")
    await site.send(tasks)
    await until(lambda: len(site.ended()) >= 5, "the victim is at work")
    victim.signal(signal.SIGKILL)
    await site.worker("heir")
    await site.all_end(tasks)


async def test_sigterm_finishes_the_task_in_hand_and_takes_no_other(site: Site) -> None:
    tasks = simulate(2, seconds=3.0)  # the first one is still running when it is known that all were sent
    worker = await site.worker("leaver")
    await site.send(tasks)
    await until(lambda: site.record(), "the first task has begun")
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert [note.word for note in site.record()] == ["start", "end"]
    assert "finished 1, handed back 0" in worker.text()
    await site.worker("stayer")
    await site.all_end(tasks)


async def test_tasks_sent_while_no_worker_is_up_survive_a_broker_that_is_killed(own_node: Node, tmp_path: Path) -> None:
    site = Site(tmp_path, vhost(own_node), scripts=EXAMPLE if is_example() else TESTS)
    try:
        tasks = simulate(200)
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
    (foreign,) = simulate(1)
    await site.publish(json.dumps(foreign).encode())
    await site.all_end([foreign])
    (line,) = await site.run([foreign])
    assert line["result"] == {"kind": foreign["payload"]["kind"], "attempt": 1}


async def test_a_body_that_is_not_the_contracts_stops_nobody_and_is_found_with_its_reason(site: Site) -> None:
    await site.worker()
    (one, *good) = simulate(21)
    bodies = {
        b"not json": ("undecodable", "not JSON"),
        json.dumps({**one, "payload": {**one["payload"], "seconds": -1}}).encode(): ("invalid", "/payload/seconds"),
        json.dumps({**one, "extra": 1}).encode(): ("invalid", "'extra'"),
        b"[" * 100_000: ("undecodable", "the limit is"),
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
    await fast.worker()
    await fast.worker()
    (failing,) = simulate(1, failures=3)
    (line,) = await fast.run([failing])
    assert (line["state"], line["attempts"]) == ("done", 4)
    starts = [note.at for note in fast.record() if note.word == "start"]
    pauses = [later - sooner for sooner, later in pairwise(starts)]
    assert all(pause >= rung for pause, rung in zip(pauses, (0.1, 0.15, 0.2), strict=True)), pauses


async def test_a_handler_that_always_fails_stops_nobody_and_ends_as_a_dead_letter_with_its_story(fast: Site) -> None:
    await fast.worker("steady")
    failing, good = simulate(5, failures=100), simulate(50)
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
    tasks = simulate(100)
    await site.send(tasks)
    await site.send(tasks)
    await site.all_end(tasks)
    await until(lambda: len(site.workers[0].says("done already")) == 100, "the second hundred is recognised")
    await site.all_end(tasks)


async def test_concurrency_gives_one_process_several_tasks_at_a_time(site: Site) -> None:
    await site.worker("wide", "--concurrency", "4")
    tasks = simulate(12, seconds=0.5)
    await site.send(tasks)
    await site.all_end(tasks)
    running = list(accumulate(1 if note.word == "start" else -1 for note in site.record()))
    assert max(running) == 4
