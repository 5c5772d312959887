"""Real workers with handlers of other people's: none ends a worker, none keeps it, and none is left unsaid."""

import asyncio
import os
import re
import signal
import time
from typing import Any

import pytest

from tests.harness import ROOT, Site, simulate, task
from tests.operators import ask
from workqueue.process.signals import SAME_S
from workqueue.testing import Worker, until

ODD = str(ROOT / "tests" / "workers" / "odd.py")
ENDS_S = 20.0  # generous, for a drain of less than a second and what follows it


def odd(name: str) -> dict[str, Any]:
    return task({"kind": "digest", "text": name, "algorithm": "sha256"})


async def stops(worker: Worker) -> float:
    """End it with SIGTERM; how long that took."""
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert await worker.ended(ENDS_S) == 0, worker.text()
    return time.monotonic() - began


FAILING = {
    "awaits_a_cancelled_task": "CancelledError",
    "exits": "SystemExit: 3",
    "exits_in_a_task_of_its_own": "SystemExit: 3",
    "interrupts_in_a_task_of_its_own": "KeyboardInterrupt",
    "generator_exit": "GeneratorExit",
    "stop_iteration": "StopIteration",
    "cancelled_in_a_thread": "CancelledError",
}


async def test_no_odd_failure_ends_the_worker_and_each_is_told(site: Site) -> None:
    worker, plain = await site.worker(script=ODD), await site.worker(script=ODD, PLAIN="1")
    sent = {name: odd(name) for name in FAILING}
    good = simulate(4)
    await site.send([*sent.values(), *good])
    await until(lambda: {each["id"] for each in good} <= site.ended().keys(), "the good ones are done")
    for name, expected in FAILING.items():

        def told(name: str = name, expected: str = expected) -> bool:
            failed = [*worker.says("failed"), *plain.says("failed")]
            is_told = any(sent[name]["id"] in line and expected in line for line in failed)
            return is_told and f", in {name}\n" in worker.text() + plain.text()  # where it was raised

        await until(told, f"{name} is told: {worker.text()}{plain.text()}")
    assert await stops(worker) < ENDS_S
    assert await stops(plain) < ENDS_S


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exits_in_a_callback", "SystemExit"),
        ("stops_the_loop", "stop() of the loop in a task of the program's own; goes on"),
    ],
)
async def test_what_leaves_the_loop_does_not_end_the_worker(site: Site, name: str, said: str) -> None:
    worker = await site.worker(script=ODD)
    sent = [odd(name), *simulate(2), odd(name)]
    await site.send(sent)
    await site.all_end(sent)
    assert said in worker.text()
    assert await stops(worker) < ENDS_S


async def test_a_worker_takes_its_signals_back_and_says_so(site: Site) -> None:
    worker = await site.worker(script=ODD)
    await site.send([odd("takes_the_signals"), *simulate(1)])
    for name in ("SIGINT", "SIGTERM"):
        told = f"{name} was taken by a handler, and ends this worker again"
        await until(lambda told=told: told in worker.text(), "it is said")  # type: ignore[misc]
    assert await stops(worker) < ENDS_S


async def test_a_handler_that_cancels_all_tasks_ends_the_worker_with_its_reason_and_no_interruption(site: Site) -> None:
    worker = await site.worker(script=ODD)
    await site.send([odd("cancels_all")])
    assert await worker.ended() == 70
    assert "cancelled" in worker.text().splitlines()[-1]


async def test_an_error_of_many_megabytes_is_told_in_short_and_delays_no_other(site: Site) -> None:
    worker = await site.worker(script=ODD)
    good = simulate(3)
    await site.send([odd("says_much"), *good])
    await site.all_end(good)
    assert worker.says("failed")
    assert len(worker.text()) < 20_000
    assert await stops(worker) < ENDS_S


@pytest.mark.parametrize("plain", ["", "1"])
async def test_children_of_a_handler_do_not_touch_the_workers_signals(site: Site, plain: str) -> None:
    worker = await site.worker(script=ODD, PLAIN=plain)
    sent = [odd("uses_a_pool") for _ in range(6)] + [odd("terminates_a_child") for _ in range(3)]
    await site.send(sent)
    await site.all_end(sent)
    assert not worker.says("stops")
    await stops(worker)


@pytest.mark.parametrize(
    "way",
    [
        "returns_in_the_child",
        "exits_in_the_child",
        "raises_in_the_child",
        "awaits_in_the_child",
        "yields_in_the_child",
        "returns_in_a_thread",
        "raises_in_a_thread",
    ],
)
async def test_a_child_that_comes_back_from_the_handler_settles_nothing(site: Site, way: str) -> None:
    worker = await site.worker(script=ODD)
    await site.send([odd(f"forks_and_{way}"), *simulate(2)])
    await until(lambda: len(worker.says("done")) >= 3, "all are done")
    await until(lambda: all(map(has_ended, children_of(worker.process.pid))), "the child has ended")
    await stops(worker)
    assert len(worker.says("done")) == 3  # and the child wrote none
    assert "finished 3, handed back 0" in worker.text()


@pytest.mark.parametrize(
    "names", [["waits_at_the_gate", "forks_and_opens_the_gate"], ["forks_and_returns_in_an_executor"]]
)
async def test_what_is_about_to_go_on_beside_a_handler_that_forks_does_so_once(site: Site, names: list[str]) -> None:
    worker = await site.worker("", "--concurrency", "2", script=ODD)
    await site.send(list(map(odd, names)))
    await until(lambda: len(worker.says("done")) >= len(names), "all are done")
    await until(lambda: all(map(has_ended, children_of(worker.process.pid))), "the child has ended")
    await stops(worker)
    assert worker.text().count("the effect of who waited") == 1


async def test_a_child_that_outlives_its_killed_worker_keeps_neither_lock_nor_connection(site: Site) -> None:
    first = await site.worker(script=ODD)
    left = odd("leaves_a_child_behind")
    await site.send([left])
    await until(site.record, "the handler has begun")
    await until(lambda: len(os.listdir(f"/proc/{first.process.pid}/task")) > 0, "it runs")
    await until(lambda: children_of(first.process.pid), "it has forked")
    (child,) = children_of(first.process.pid)
    second = await site.worker(script=ODD)
    began = time.monotonic()
    first.signal(signal.SIGKILL)
    try:
        await until(lambda: any(note.worker == second.name for note in site.record()), "the task goes on", 15)
        assert time.monotonic() - began < 10  # its lease is a minute, and the broker's heartbeats half of one
        os.kill(child, 0)
    finally:
        for pid in (child, *children_of(second.process.pid)):
            os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as listed:
            found += [int(child) for child in listed.read().split()]
    return found


def has_ended(pid: int) -> bool:
    """Whether it waits for nothing but to be asked how it ended."""
    with open(f"/proc/{pid}/stat") as told:
        return told.read().rpartition(")")[2].split()[0] == "Z"


# --- handlers that do not end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain", "place"),
    [
        ("in_a_loop", "", "in_a_loop"),
        ("in_c_code", "", "in_c_code"),
        ("in_c_code", "1", "in_c_code"),
        ("swallows_in_a_thread", "1", "swallows_in_a_thread"),
        ("blocks", "", "blocks"),
    ],
)
async def test_a_drain_ends_whatever_the_handler_does_and_its_claim_is_given_back(
    site: Site, name: str, plain: str, place: str
) -> None:
    worker = await site.worker(script=ODD, PLAIN=plain, WORKQUEUE_DRAIN_S="0.5")
    sent = odd(name)
    await site.send([sent])
    await until(site.record, "the handler has begun")
    assert await stops(worker) < 0.5 + 3 + 4 + 5
    (line,) = worker.says("ends ")
    assert sent["id"] in line
    assert re.search(rf"odd\.py:\d+ {place}", line), line
    assert await ask(site, "workers") == []  # it has ended, and did not die
    again = await site.worker(script=ODD, BLOCKS_S="0.1")
    await until(lambda: [note for note in site.record() if note.worker == again.name], "another worker has it at once")


@pytest.mark.parametrize("presses", [2, 3])
async def test_who_presses_ctrl_c_again_and_again_while_a_coroutine_blocks_the_loop_kills_no_task(
    site: Site, presses: int
) -> None:
    worker = await site.worker(script=ODD)
    sent = odd("blocks")
    await site.send([sent])
    await until(site.record, "the handler has begun")
    for _ in range(presses):
        worker.signal(signal.SIGINT)
        await asyncio.sleep(2 * SAME_S)  # what comes sooner is the same signal
    assert await worker.ended(ENDS_S) == 130
    (line,) = worker.says("ends (SIGINT again)")
    assert sent["id"] in line
    assert re.search(r"odd\.py:\d+ blocks", line), line
    again = await site.worker(script=ODD, BLOCKS_S="0.1")
    await site.all_end([sent])
    assert not again.says("died")


@pytest.mark.parametrize("name", ["in_the_default_executor", "leaves_a_thread_behind"])
async def test_a_thread_that_a_handler_left_behind_does_not_keep_the_worker(site: Site, name: str) -> None:
    worker = await site.worker(script=ODD, WORKQUEUE_DRAIN_S="0.5")
    await site.send([odd(name)])
    await until(site.record, "the handler has begun")
    assert await stops(worker) < 0.5 + 3 + 4 + 5


async def test_a_handler_that_outlasts_its_time_limit_is_told_and_keeps_its_claim(fast: Site) -> None:
    worker, other = await fast.worker(script=ODD), await fast.worker(script=ODD)
    sent = odd("in_a_loop")
    await fast.send([sent])
    await until(lambda: [*worker.says("can't stop"), *other.says("can't stop")], "it is told")
    (line,) = [*worker.says("can't stop"), *other.says("can't stop")]
    assert sent["id"] in line
    assert re.search(r"odd\.py:\d+ in_a_loop", line)
    assert "longer than its limit of 6 s" in line
    await asyncio.sleep(5)  # more than two leases: a second worker would have begun it
    assert len(fast.record()) == 1


async def test_a_coroutine_that_blocks_the_loop_is_named_and_keeps_its_claim_within_its_limit(fast: Site) -> None:
    worker, other = await fast.worker(script=ODD, BLOCKS_S="5"), await fast.worker(script=ODD, BLOCKS_S="5")
    sent = odd("blocks")
    await fast.send([sent])
    await fast.all_end([sent])
    assert len(fast.record()) == 2  # one start and one end, though it took more than two leases
    has_it = worker if worker.says("the event loop is blocked") else other
    (line,) = has_it.says("the event loop is blocked")
    assert sent["id"] in line
    assert re.search(r"odd\.py:\d+ blocks", line)
    (after,) = await until(lambda: has_it.says("the event loop goes on"), "it is told that it ended")
    seconds = re.search(r"after (\d+) s", after)
    assert seconds is not None
    assert 4 <= int(seconds[1]) <= 7


async def test_a_task_that_begins_is_told_where_that_is_wanted(site: Site) -> None:
    worker = await site.worker(WORKQUEUE_LOG="debug")
    sent = simulate(1)
    await site.send(sent)
    await site.all_end(sent)
    (line,) = worker.says("running")
    assert f"running  nap  {sent[0]['id']}  attempt 1" in line


FAULTY = """
import sys
from tests.generated.worker import Application
from workqueue.amqp import consumer
from workqueue.tasks import processor
from workqueue.worker import run_worker

async def broken(*_):
    raise {raised}

{where} = broken

async def handle(task, run):
    return None

sys.exit(run_worker(Application, {{"do_errand": handle, "do_chore": handle}}))
"""


@pytest.mark.parametrize(
    ("where", "raised", "told"),
    [
        ("processor.Guard._take", "KeyError('ours')", "KeyError: 'ours'"),
        ("processor.Guard._take", "GeneratorExit", "ended unasked: GeneratorExit"),
        ("processor.Guard.take", "asyncio.CancelledError", "ended unasked: it was cancelled"),
        ("consumer.Consumer._next", "KeyError('ours')", "ended unasked: KeyError: 'ours'"),
    ],
)
async def test_a_consumer_that_ends_by_a_fault_of_ours_ends_the_worker_with_70_and_a_line(
    site: Site, where: str, raised: str, told: str
) -> None:
    script = site.folder / "faulty.py"
    script.write_text("import asyncio\n" + FAULTY.format(where=where, raised=raised))
    worker = await site.worker(script=str(script), ready=False)  # one consumer may end before the other has begun
    await site.send(simulate(1))
    assert await worker.ended() == 70, worker.text()
    last = worker.text().splitlines()[-1]
    assert last.startswith("faulty.py: ")
    assert told in last
    assert (
        "in broken" in worker.text() or raised == "asyncio.CancelledError"
    )  # the traceback; asyncio keeps none of that
