"""Several operations in one contract: one worker serves them all, and a producer sends to each."""

import asyncio
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.harness import CHORES, ROOT, TESTS, Site, simulate
from workqueue.testing import until


@pytest.fixture
def two(site: Site) -> Site:
    site.scripts = replace(TESTS, worker="tests/workers/sharing.py")
    return site


async def test_one_worker_does_the_tasks_of_both_each_by_its_own_delays(two: Site) -> None:
    worker = await two.worker()
    errands, chores = simulate(20), simulate(20)
    await two.send(errands, "--to", "send_errand")
    await two.send(chores, "--to", "send_chore")
    (always,) = simulate(1, failures=100)
    await two.send([always], "--to", "send_chore")
    await two.all_end([*errands, *chores])
    (told,) = await until(lambda: worker.says("dead "), "the chore that fails is a dead letter")
    assert "failed: RuntimeError: told to fail" in told
    starts = [note for note in two.record() if note.word == "start" and note.id == always["id"]]
    assert len(starts) == CHORES.max_attempts == 3  # the other operation allows 6
    assert await two.depth_is(1, CHORES.dead.name)
    worker.process.terminate()
    assert await worker.ended() == 0
    assert "closed" in worker.text()
    assert worker.says("ready  takes 1 at a time from errands, 1 at a time from chores, ledger ")


async def test_a_queue_whose_handlers_are_all_busy_delays_no_other(two: Site) -> None:
    await two.worker()
    slow, quick = simulate(1, seconds=4.0), simulate(20)
    await two.send(slow, "--to", "send_errand")
    await until(lambda: two.record(), "the slow one runs")
    began = time.monotonic()
    await two.send(quick, "--to", "send_chore")
    await until(lambda: len(two.ended()) == len(quick), "the quick ones are done")
    assert time.monotonic() - began < 3.5
    await two.all_end([*slow, *quick])


async def test_concurrency_and_only_name_operations(two: Site) -> None:
    worker = await two.worker("wide", "--concurrency", "2", "--concurrency", "do_chore=3")
    assert worker.says("ready  takes 2 at a time from errands, 3 at a time from chores, ledger ")
    only = await two.worker("only", "--only", "do_chore")
    assert only.says("ready  takes 1 at a time from chores, ledger ")


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (
            ("--only", "do_chor"),
            {},
            "--only='do_chor': no such receive operation; the contract has do_errand, do_chore",
        ),
        (("--concurrency", "do=2"), {}, "--concurrency='do': no such receive operation; the contract has do_errand"),
        (
            ("--only", "do_chore", "--concurrency", "do_errand=2"),
            {},
            "--concurrency='do_errand': --only leaves that operation out; name it there too",
        ),
        ((), {"WITHOUT": "do_chore"}, "the handlers are for 'do_errand', and the contract's receive operations are "),
        ((), {"WITH": "do_more"}, "the handlers are for 'do_errand', 'do_chore', 'do_more', and the contract's "),
        ((), {"FAILS": "never"}, "is of type async_generator, and no asynchronous context manager; give a function"),
        ((), {"FAILS": "open"}, "the lifespan failed: ValueError: no such pool; see the traceback above"),
    ],
)
async def test_what_does_not_fit_the_contract_is_one_line_and_exit_2(
    two: Site, flags: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    worker = await two.worker("w", *flags, ready=False, **environment)
    assert await worker.ended() == 2
    assert said in worker.text()
    assert ("Traceback" in worker.text()) == (environment.get("FAILS") == "open")


async def test_a_lifespan_that_ends_by_itself_ends_the_worker_and_what_it_has_in_hand_goes_back(two: Site) -> None:
    (slow,) = simulate(1, seconds=3.0)
    await two.send([slow], "--to", "send_errand")
    worker = await two.worker("w", ready=False, FAILS="later")
    assert await worker.ended() == 2
    assert "the lifespan failed: " in worker.text()
    assert "the pool broke" in worker.text()
    heir = await two.worker("heir")
    await two.all_end([slow])
    assert [(note.word, note.worker) for note in two.record()] == [("start", "w"), ("start", "heir"), ("end", "heir")]
    (done,) = await until(lambda: heir.says("done "), "it is told")
    assert "attempt" not in done  # the first one counts for nothing


async def test_a_lifespan_that_fails_when_it_is_left_is_told_and_changes_no_exit_code(two: Site) -> None:
    worker = await two.worker("w", FAILS="close")
    worker.process.terminate()
    assert await worker.ended() == 0
    assert "the lifespan failed when it was left\nTraceback (most recent call last):\n" in worker.text()
    assert "it leaks" in worker.text()


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ((), "name the operation that sends these lines, with --to: send_errand, send_chore; see --help"),
        (("--to", "nobody"), "--to='nobody': no such send operation; the contract has send_errand, send_chore"),
    ],
)
def test_a_producer_of_several_operations_must_say_which_sends_lines(to: tuple[str, ...], said: str) -> None:
    command = [sys.executable, *TESTS.producer, "--jsonl", "-", *to]
    done = subprocess.run(command, cwd=ROOT, input="{}\n", capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


async def test_a_lifespan_that_does_not_let_itself_be_cancelled_holds_no_process_up(two: Site) -> None:
    worker = await two.worker("w", ready=False, FAILS="to end")
    await until(lambda: "opening" in worker.text(), "it opens")
    worker.process.terminate()
    assert await worker.ended(within_s=25) == 0
    assert "the lifespan does not end within 4 s" in worker.text()


async def test_sigterm_while_the_lifespan_opens_ends_the_worker_with_0(two: Site) -> None:
    worker = await two.worker("w", ready=False, FAILS="slowly")
    await until(lambda: "opening" in worker.text(), "it opens")
    await asyncio.sleep(0.2)
    worker.process.terminate()
    assert await worker.ended() == 0
    assert "opened" not in worker.text()
