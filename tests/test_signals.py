"""SIGTERM, SIGINT and SIGHUP at any moment: no new task, what is in hand is finished, and the exit code says so."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests import example
from tests.harness import Site, simulate
from workqueue.process.signals import ENDING, SAME_S
from workqueue.testing import WAIT_S, until

pytestmark = pytest.mark.broker


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def start(site: Site, *command: str) -> "subprocess.Popen[bytes]":
    """The example's script itself: the tests' recording one has imported much before it runs that."""
    with (site.folder / "log").open("ab") as out:
        return subprocess.Popen(
            [*command, sys.executable, "main-worker.py", "w"],
            cwd=site.project,
            env=site._environment({}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )


def takes(pid: int, number: signal.Signals) -> bool:
    """Whether the script has come to its first lines: this signal does not kill it any more."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1 and caught >> (signal.SIGHUP - 1) & 1)  # Python itself catches SIGINT


@pytest.mark.example
@pytest.mark.parametrize("number", ENDING)
def test_a_worker_that_is_told_to_end_at_any_moment_of_its_start_exits_0(site: Site, number: signal.Signals) -> None:
    for delay_s in (0.0, 0.1, 0.3, 0.6, 1.0, 1.5):
        worker = start(site)
        while not takes(worker.pid, number):
            time.sleep(0.001)
        time.sleep(delay_s)  # the moment is what is tested
        worker.send_signal(number)
        assert worker.wait(WAIT_S) == 0, (delay_s, (site.folder / "log").read_text())
    assert "Traceback" not in (site.folder / "log").read_text()


@pytest.mark.parametrize("number", ENDING)
async def test_a_signal_ends_a_worker_after_the_task_in_hand_and_before_the_next(
    site: Site, number: signal.Signals
) -> None:
    tasks = simulate(2, seconds=4.0)
    worker = await site.worker()
    await site.send(tasks)
    await until(site.record, "the first task has begun")
    worker.signal(number)
    assert await worker.ended() == 0
    assert [note.word for note in site.record()] == ["start", "end"]
    await site.worker("heir")
    await site.all_end(tasks)


async def test_a_worker_that_is_told_to_end_while_its_consumers_start_finishes_what_they_took(site: Site) -> None:
    tasks = simulate(40, seconds=5.0)
    await site.send(tasks)
    worker = await site.worker("wide", "--concurrency", "400", ready=False)
    await until(site.record, "the first of its consumers is at work")  # the others take seconds
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert not worker.says("ready")
    begun = {note.id for note in site.record()}
    assert set(site.ended()) == begun
    await site.worker("heir", "--concurrency", "10")
    await site.all_end(tasks)
    assert {line["attempts"] for line in await site.run(tasks)} == {1}


async def test_a_worker_that_waits_for_a_silent_broker_is_told_to_end(tmp_path: Path, silent: socket.socket) -> None:
    site = Site(tmp_path, f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/")
    worker = await site.worker(ready=False)
    silent.settimeout(20)
    connection = (await asyncio.to_thread(silent.accept))[0]
    worker.signal(signal.SIGTERM)
    assert await worker.ended(within_s=8.0) == 0
    connection.close()


async def test_a_worker_that_waits_for_a_silent_ledger_is_told_to_end(site: Site, silent: socket.socket) -> None:
    url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db"
    worker = await site.worker(ready=False, LEDGER_URL=url)
    silent.settimeout(20)
    connection = (await asyncio.to_thread(silent.accept))[0]
    worker.signal(signal.SIGTERM)
    assert await worker.ended(within_s=8.0) == 0
    connection.close()


@pytest.mark.parametrize(("first", "again"), [*product(ENDING[:1], ENDING), (signal.SIGHUP, signal.SIGHUP)])
async def test_a_signal_that_comes_twice_at_once_is_one(
    site: Site, first: signal.Signals, again: signal.Signals
) -> None:
    tasks = simulate(1, seconds=5.0)
    worker = await site.worker()
    await site.send(tasks)
    await until(site.record, "the task has begun")
    for number in (first, again, again):
        worker.signal(number)
        await asyncio.sleep(0.01)  # long enough that the kernel does not merge them
    assert await worker.ended() == 0
    assert "finished 1, handed back 0" in worker.text()
    await site.all_end(tasks)


@pytest.mark.parametrize(("flags", "least"), [(("--max-tasks", "3"), 3), (("--max-memory", "1"), 1)])
async def test_a_worker_that_has_done_enough_drains_and_exits_with_0_for_the_next_one(
    site: Site, flags: tuple[str, str], least: int
) -> None:
    tasks = simulate(8, seconds=0.2)
    worker = await site.worker("first", "--concurrency", "2", *flags)
    await site.send(tasks)
    assert await worker.ended() == 0
    assert worker.says("has enough: ")
    finished = len(site.ended())
    assert f"finished {finished}, handed back " in worker.text()  # back goes what it had not begun
    assert least <= finished <= least + 3  # the other one's, and one for each that came before the drain began
    await site.worker("next")
    await site.all_end(tasks)


async def test_a_second_signal_hands_back_what_is_in_hand_and_that_is_no_failed_attempt(site: Site) -> None:
    tasks = simulate(1, seconds=12.0)
    worker = await site.worker()
    await site.send(tasks)
    await until(site.record, "the task has begun")
    worker.signal(signal.SIGINT)
    await until(lambda: worker.says("stops"), "it drains")
    await asyncio.sleep(2 * SAME_S)  # what comes sooner is the same signal
    worker.signal(signal.SIGINT)
    assert await worker.ended(within_s=8.0) == 130
    assert "handed back 1" in worker.text()
    assert "SIGINT again" in worker.text()
    await site.worker("heir")
    await site.all_end(tasks)
    (line,) = await site.run(tasks)
    assert (line["worker"], line["attempts"]) == ("heir", 1)


@pytest.mark.example
async def test_a_hangup_that_was_to_be_ignored_is_ignored(site: Site) -> None:
    tasks = example.simulate(1, seconds=0.1)
    log, worker = site.folder / "log", start(site, "nohup")
    try:
        await until(lambda: "ready" in log.read_text(), "it is ready")
        worker.send_signal(signal.SIGHUP)
        assert (await site.run(tasks))[0]["state"] == "done"
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 10) == 0
    finally:
        worker.kill()


@pytest.mark.parametrize("number", ENDING)
async def test_a_producer_that_is_told_to_end_accounts_for_all_and_exits_130(
    site: Site, number: signal.Signals
) -> None:
    process = await site.start_producer("--jsonl", "-")
    assert process.stdin is not None
    process.stdin.write(b"".join(json.dumps(one).encode() + b"\n" for one in simulate(7)))
    await process.stdin.drain()  # and left open: the producer waits for more
    await until(lambda: site.depth_is(7), "seven tasks are queued")
    for _ in range(3):
        process.send_signal(number)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert err.decode() == "sent: 7 confirmed, 0 refused, 0 unknown, the rest not tried\n"


async def test_a_producer_that_is_told_to_end_before_it_is_connected_says_that_it_sent_nothing(
    tmp_path: Path, silent: socket.socket
) -> None:
    site = Site(tmp_path, f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/")
    process = await site.start_producer("--jsonl", "-")
    silent.settimeout(20)
    connection = (await asyncio.to_thread(silent.accept))[0]
    process.terminate()
    _, err = await process.communicate()
    assert process.returncode == 130
    assert err.decode() == "sent: 0 confirmed, 0 refused, 0 unknown, the rest not tried\n"
    connection.close()


def test_a_forked_child_leaves_the_signals_of_its_parent_alone() -> None:
    script = """
import asyncio, multiprocessing, os, signal, time
from workqueue.lifecycle import on_signals, prepare, run
async def main():
    on_signals(lambda: print("told", flush=True))
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    await asyncio.to_thread(child.join, 10)
    print("child", child.exitcode, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    return 7
prepare()
raise SystemExit(run(main))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ran.stdout, ran.returncode) == (f"child {-signal.SIGTERM}\ntold\n", 7), ran.stderr


def test_a_third_signal_ends_a_process_whose_loop_is_blocked() -> None:
    script = """
import asyncio, time
from workqueue.lifecycle import on_signals, prepare, run
async def main():
    on_signals(lambda: None)
    print("blocks", flush=True)
    while True:
        time.sleep(0.01)
prepare()
raise SystemExit(run(main))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"blocks\n"
        for _ in range(3):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(2 * SAME_S)
        assert process.wait(3) == 130
