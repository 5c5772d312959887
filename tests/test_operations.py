"""Several operations in one contract: one worker serves them all, and a producer sends to each."""

import asyncio
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT, TESTS, Site, simulate
from workqueue.testing import copy_project, until

QUEUES = ("errands", "chores")
WORKER = '''"""A worker of two operations, which share a resource."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager

from tests.generated.worker import Application
from tests.generated.worker.messages.json import NapResult
from workqueue.worker import run_worker


@asynccontextmanager
async def shared(settings):
    print("opened", flush=True, file=sys.stderr)
    if os.environ.get("FAILS") == "open":
        raise ValueError("no such pool")
    async with asyncio.timeout(None):  # which asks to be left in the task that entered it
        yield {"pool": 7}
    print("closed", flush=True, file=sys.stderr)
    if os.environ.get("FAILS") == "close":
        raise ValueError("it leaks")


async def dies(settings):
    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        yield None


async def stays(settings):
    print("opening", flush=True, file=sys.stderr)
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            pass
    yield None


async def fail():
    await asyncio.sleep(1)
    raise ValueError("the pool broke")


async def do(task, context):
    assert context.resources == {"pool": 7}
    await asyncio.sleep(task.payload.seconds)
    if context.attempt <= task.payload.failures:
        raise RuntimeError("told to fail")
    return NapResult(kind="nap", attempt=context.attempt)


async def chore(task, context):
    return await do(task, context)


handlers = {"do_errand": do, "do_chore": chore}
if name := os.environ.get("WITHOUT"):
    del handlers[name]
if name := os.environ.get("WITH"):
    handlers[name] = do
lifespan = asynccontextmanager(dies) if os.environ.get("FAILS") == "later" else shared
if os.environ.get("FAILS") == "never":
    lifespan = dies
if os.environ.get("FAILS") == "to end":
    lifespan = asynccontextmanager(stays)
sys.exit(run_worker(Application, handlers, about=__doc__, lifespan=lifespan))
'''


def doubled(text: str) -> str:
    """The documents with a second operation beside each, on queues of its own."""
    document = yaml.safe_load(text)
    channels: dict[str, Any] = document["channels"]
    for name in [*channels]:
        renamed = json.dumps(channels[name]).replace("errands", "chores")
        if "$ref" in channels[name]:
            renamed = json.dumps({"$ref": f"./common.asyncapi.yaml#/channels/{second(name)}"})
        channels[second(name)] = json.loads(renamed)
    operations: dict[str, Any] = document.get("operations", {})
    for name, other in (("do_errand", "do_chore"), ("send_errand", "send_chore")):
        if name in operations:
            operations[other] = made = copy.deepcopy(operations[name])
            made["channel"] = {"$ref": "#/channels/chores"}
            if name == "do_errand":
                made["x-deadLetter"] = {"channel": {"$ref": f"#/channels/{second('buried')}"}}
                waits = [route["$ref"].rpartition("/")[2] for route in made["x-retry"]["channels"]][:2]
                made["x-retry"] = {
                    "channels": [{"$ref": f"#/channels/{second(wait)}"} for wait in waits], "maxAttempts": 3,
                }  # fmt: skip
    return yaml.safe_dump(document, sort_keys=False)


def second(channel: str) -> str:
    return "chores" if channel == "errands" else f"chores-{channel}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "project"
    copy_project(ROOT, folder, doubled, home="tests")
    (folder / "two.py").write_text(WORKER)
    return folder


@pytest.fixture
def two(site: Site, project: Path) -> Site:
    site.project, site.scripts = project, replace(TESTS, worker=str(project / "two.py"))
    return site


async def send(two: Site, tasks: list[dict[str, Any]], operation: str) -> None:
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    produced = await two.producer("--jsonl", "-", "--to", operation, lines=lines.encode())
    assert produced.code == 0, produced.err


async def test_one_worker_does_the_tasks_of_both_each_by_its_own_delays(two: Site) -> None:
    worker = await two.worker()
    errands, chores = simulate(20), simulate(20)
    await send(two, errands, "send_errand")
    await send(two, chores, "send_chore")
    (always,) = simulate(1, failures=100)
    await send(two, [always], "send_chore")
    await two.all_end([*errands, *chores])
    (told,) = await until(lambda: worker.says("dead "), "the chore that fails is a dead letter")
    assert "failed: RuntimeError: told to fail" in told
    starts = [note for note in two.record() if note.word == "start" and note.id == always["id"]]
    assert len(starts) == 3  # as its own operation says; the other allows 6
    async with two.amqp() as channel:
        queue = await channel.declare_queue("chores-buried", passive=True)
        assert queue.declaration_result.message_count == 1
    worker.process.terminate()
    assert await worker.ended() == 0
    assert "closed" in worker.text()
    assert worker.says("ready  takes 1 at a time from errands, 1 at a time from chores, ledger ")


async def test_a_queue_whose_handlers_are_all_busy_delays_no_other(two: Site) -> None:
    await two.worker()
    slow, quick = simulate(1, seconds=4.0), simulate(20)
    await send(two, slow, "send_errand")
    await until(lambda: two.record(), "the slow one runs")
    began = time.monotonic()
    await send(two, quick, "send_chore")
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


async def test_a_lifespan_that_ends_by_itself_ends_the_worker_after_a_drain(two: Site) -> None:
    worker = await two.worker("w", ready=False, FAILS="later")
    assert await worker.ended() == 2
    assert "the lifespan failed: " in worker.text()
    assert "the pool broke" in worker.text()


async def test_a_lifespan_that_fails_when_it_is_left_is_told_and_changes_no_exit_code(two: Site) -> None:
    worker = await two.worker("w", FAILS="close")
    worker.process.terminate()
    assert await worker.ended() == 0
    assert "the lifespan failed when it was left\nTraceback (most recent call last):\n" in worker.text()
    assert "it leaks" in worker.text()


async def test_a_producer_of_several_operations_must_say_which_sends_lines(two: Site) -> None:
    produced = await two.producer("--jsonl", "-", lines=b"{}\n")
    assert produced.code == 2
    assert "name the operation that sends these lines, with --to: send_errand, send_chore; see --help" in produced.err
    produced = await two.producer("--jsonl", "-", "--to", "nobody", lines=b"{}\n")
    assert produced.code == 2
    assert "--to='nobody': no such send operation; the contract has send_errand, send_chore" in produced.err


async def test_a_lifespan_that_does_not_let_itself_be_cancelled_holds_no_process_up(two: Site) -> None:
    worker = await two.worker("w", ready=False, FAILS="to end")
    await until(lambda: "opening" in worker.text(), "it opens")
    worker.process.terminate()
    assert await worker.ended(within_s=25) == 0
    assert "the lifespan does not end within 4 s" in worker.text()


async def test_sigterm_while_the_lifespan_opens_ends_the_worker_with_0(two: Site, tmp_path: Path) -> None:
    slow = two.project / "slow.py"
    slow.write_text(WORKER.replace('    print("opened"', '    print("opening", file=sys.stderr, flush=True)\n'
                                   "    await asyncio.sleep(30)\n"
                                   '    print("opened"'))  # fmt: skip
    worker = await two.worker("w", ready=False, script=str(slow))
    await until(lambda: "opening" in worker.text(), "it opens")
    await asyncio.sleep(0.2)
    worker.process.terminate()
    assert await worker.ended() == 0
    assert "opened" not in worker.text()
