"""A process that forks while the threads of its blocking client are at work."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.harness import ROOT, Site, simulate
from workqueue.client.running import Running
from workqueue.process import forking
from workqueue.testing import until

BUSY = """
import os, sys, threading, time
from tests.generated.producer import Application
from tests.generated.producer.client import SyncClient
from tests.generated.producer.messages.json import Nap

queue, nap, TO, ids, over = SyncClient(Application), Nap(kind="nap", seconds=0.0), "send_errand", [], threading.Event()

def send():
    while not over.is_set():
        ids.append(queue.send(nap, to=TO).id)

threads = [threading.Thread(target=send) for _ in range(3)]
for thread in threads:
    thread.start()
children, sent = [], 0
for _ in range(15):
    time.sleep({pause_s})
    child = os.fork()
    if not child:
        queue.send(nap, to=TO, within_s=20)
        os._exit(0)
    children.append(child)
end_s = time.monotonic() + 40
while children and time.monotonic() < end_s:
    for child in children[:]:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            children.remove(child)
            sent += status == 0
    time.sleep(0.01)
for child in children:
    os.kill(child, 9)
over.set()
for thread in threads:
    thread.join()
print(sent, len(children), len(ids) > 0)
"""


@pytest.mark.parametrize("pause_s", [0.05, 0.0], ids=["in the middle of sends", "in the middle of the first one"])
async def test_a_child_of_a_process_whose_threads_are_sending_sends_too(site: Site, pause_s: float) -> None:
    environment = {**os.environ, "AMQP_URI": site.uri, "LEDGER_URL": site.ledger_url, "PYTHONPATH": str(ROOT)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c",
                         BUSY.replace("{pause_s}", str(pause_s))],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "15 0 True\n"), done.stderr
    # Sixteen processes at one file: some records may come too late on a busy machine, which changes nothing of a send.
    assert not [line for line in done.stderr.splitlines() if "tasks are sent, and not recorded" not in line]


class Nothing:
    async def close(self) -> None:
        pass


def forked() -> float:
    """Fork a child that does nothing; how long that took."""
    began_s = time.monotonic()
    child = os.fork()
    if not child:
        os._exit(0)
    took_s = time.monotonic() - began_s
    os.waitpid(child, 0)
    return took_s


async def test_a_thread_that_does_not_come_to_rest_delays_a_fork_and_does_not_prevent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forking, "REST_S", 0.5)
    go_on, blocked = threading.Event(), threading.Event()

    async def opening() -> None:
        blocked.set()
        go_on.wait(20)

    running = Running(Nothing()).begin(opening())
    await until(blocked.is_set, "it is blocked")
    assert 0.4 < forked() < 5
    go_on.set()
    await asyncio.to_thread(running.opened)
    assert forked() < 0.4
    await asyncio.to_thread(running.end)
    assert forked() < 0.4


async def test_a_fork_by_the_clients_own_thread_does_not_wait_for_it() -> None:
    async def opening() -> None:
        pass

    async def fork(_: Nothing) -> float:
        return forked()

    running = await asyncio.to_thread(Running(Nothing()).start, opening())
    assert await asyncio.to_thread(running.run, fork) < 0.4
    await asyncio.to_thread(running.end)


async def test_a_thread_and_the_event_loop_that_fork_at_once_do_not_wait_for_one_another() -> None:
    here, began, took_s = forking.LoopHere(asyncio.get_running_loop()), threading.Event(), list[float]()

    def begin() -> None:
        began.set()
        took_s.append(forked())

    for _ in range(5):
        began.clear()
        thread = threading.Thread(target=begin)
        thread.start()
        began.wait()
        time.sleep(0.01)  # noqa: ASYNC251  # the other one waits for this loop now
        took_s.append(forked())
        await asyncio.to_thread(thread.join)
    assert here.thread is threading.current_thread()
    assert max(took_s) < 2


async def test_children_that_handlers_fork_in_their_threads_use_what_the_workers_loop_uses(site: Site) -> None:
    worker = await site.worker("one", "--concurrency", "8", script=str(ROOT / "tests/workers/forker.py"))
    tasks = simulate(400)
    await site.send(tasks)
    await until(lambda: len(site.ended()) == len(tasks), "all are done", 100)
    assert "the child hung" not in worker.text()
