"""--wait ends, or says what it waits for and why that may never come."""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE

import pytest

from tests.harness import DEAD_QUEUE, QUEUE, Site, simulate
from tests.test_follow import Told, send, tasks
from tests.test_refusals import user_of
from workqueue.dev.node import Node
from workqueue.ledger import LedgerBusy, open_ledger
from workqueue.producer import follow
from workqueue.producer.follow import Follower
from workqueue.settings import Settings
from workqueue.testing import until


def lines(count: int) -> str:
    return "".join(json.dumps(one) + "\n" for one in simulate(count))


async def test_with_a_timeout_it_ends_with_exit_1_and_names_what_is_left(site: Site) -> None:
    (left,) = simulate(1)
    began = time.monotonic()
    produced = await site.producer("--jsonl", "-", "--wait", "--timeout", "1.5", lines=json.dumps(left))
    assert produced.code == 1
    assert time.monotonic() - began >= 1.5
    *_, line, account = produced.err.strip().splitlines()
    assert "1 task of kind nap did not finish within 1.5 s: " + left["id"] in line
    assert account == "sent: 1 confirmed, 0 refused, 0 unknown"
    assert "0 done, 0 dead, 1 unfinished" in produced.out


async def test_with_a_timeout_that_is_not_reached_all_is_as_without(site: Site) -> None:
    await site.worker()
    produced = await site.producer("--jsonl", "-", "--wait", "--timeout", "60", lines=lines(3))
    assert produced.code == 0, produced.err
    assert produced.err.endswith("sent: 3 confirmed, 0 refused, 0 unknown\n")
    assert "did not finish" not in produced.err


async def test_an_id_that_was_done_with_another_payload_is_no_result_of_this_one(site: Site) -> None:
    await site.worker()
    (first,) = simulate(1)
    assert (await site.producer("--jsonl", "-", "--wait", lines=json.dumps(first))).code == 0
    again = await site.producer("--jsonl", "-", "--wait", "--results", "/dev/stdout", lines=json.dumps(first))
    assert (again.code, json.loads(again.out.splitlines()[0])["state"]) == (0, "done")
    other = {**first, "payload": {**first["payload"], "seconds": 0.001}}
    produced = await site.producer("--jsonl", "-", "--wait", "--results", "/dev/stdout", lines=json.dumps(other))
    assert produced.code == 1
    line = json.loads(produced.out.splitlines()[0])
    assert (line["id"], line["state"], line["result"]) == (first["id"], "dead", None)
    assert line["error"].startswith("conflict: its id is known with another payload")
    await site.dead_letters(1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--jsonl", "-", "--timeout", "5"], "--timeout needs --wait"),
        (["--jsonl", "-", "--wait", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["--jsonl", "-", "--wait", "--timeout", "-1"], "'-1' is not a number of seconds"),
    ],
)
async def test_a_wrong_timeout_is_one_line_and_exit_2(site: Site, flags: list[str], said: str) -> None:
    produced = await site.producer(*flags)
    assert produced.code == 2
    assert said in produced.err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("LEDGER_URL", "none", "--wait needs a ledger"), ("WORKQUEUE_KEEP_S", "1", "use 60 or more")],
)
async def test_a_wait_that_could_never_end_is_refused_before_anything_is_sent(
    site: Site, name: str, value: str, said: str
) -> None:
    await site.send([])  # declares the queue
    produced = await site.producer("--jsonl", "-", "--wait", lines=lines(1), **{name: value})
    assert produced.code == 2
    (line,) = produced.err.splitlines()
    assert f"{name}='{value}'" in line
    assert said in line
    assert await site.depth_is(0)
    assert (await site.producer("--jsonl", "-", lines=lines(1), **{name: value})).code == 0


HINTS = """
import os, runpy, sys
sys.path.insert(0, os.getcwd())
from workqueue.producer import follow
follow.HINT_S = 0.5
runpy.run_module("tests.workers.producer", run_name="__main__", alter_sys=True)
"""


async def hinted(site: Site, *flags: str, lines: str, **environment: str) -> str:
    """What a producer says that is sooner to hint."""
    (site.folder / "soon.py").write_text(HINTS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(site.folder / "soon.py"), "--jsonl", "-", "--wait", *site.to, *flags),
        cwd=site.project,
        env=site._environment(environment),
        stdin=PIPE,
        stderr=PIPE,
    )
    _, err = await process.communicate(lines.encode())
    assert process.returncode == 1, err.decode()
    return err.decode()


async def test_it_says_that_no_worker_takes_from_the_queue(site: Site) -> None:
    said = await hinted(site, "--timeout", "3", lines=lines(1))
    assert "waits for 1 task, and none has finished for" in said
    assert f"no worker takes from {QUEUE}, where 1 waits; start one" in said


async def test_with_another_ledger_than_the_workers_it_is_refused_before_anything_is_sent(site: Site) -> None:
    await site.worker(LEDGER_URL=f"sqlite:{site.folder}/other.db")
    produced = await site.producer("--jsonl", "-", "--wait", lines=lines(1))
    assert produced.code == 2
    assert "is worked on with another ledger" in produced.err
    assert await site.depth_is(0)


async def test_it_says_that_a_task_may_have_ended_in_another_ledger(site: Site, node: Node) -> None:
    """Who may declare nothing can't find out beforehand."""
    await (await open_ledger(Settings(ledger_url=site.ledger_url))).close()
    await site.worker(LEDGER_URL=f"sqlite:{site.folder}/other.db")
    restricted = user_of(node, site.uri, "^$", ".*", ".*")
    said = await hinted(site, "--timeout", "3", lines=lines(1), AMQP_URI=restricted)
    assert f"none waits in {QUEUE}" in said
    assert f"the workers have another LEDGER_URL than this producer ({site.folder}/ledger.db)" in said


async def test_it_says_that_dead_letters_lie_there_which_no_ledger_knows(site: Site, node: Node) -> None:
    await (await open_ledger(Settings(ledger_url=site.ledger_url))).close()
    await site.worker(LEDGER_URL=f"sqlite:{site.folder}/other.db")
    await site.publish(b"not json")
    await until(lambda: site.depth_is(1, DEAD_QUEUE), "it is a dead letter")
    restricted = user_of(node, site.uri, "^$", ".*", ".*")
    said = await hinted(site, "--timeout", "3", lines=lines(1), AMQP_URI=restricted)
    assert f"1 lies in {DEAD_QUEUE}" in said


async def test_hints_come_ever_more_rarely_and_progress_begins_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.001)
    monkeypatch.setattr(follow, "HINT_S", 0.05)
    asked: list[float] = []

    async def matter() -> str:
        asked.append(time.monotonic())
        return "\x1b[31mthe reason"

    ledger, sent = Told(), tasks(2)
    with Follower(ledger, None, matter) as follower:
        send(follower, sent)
        await follower.finish(0.5)
    assert 2 <= len(asked) <= 4  # at 0.05, 0.1, 0.2 and 0.4 s
    said = capsys.readouterr().err
    assert "waits for 2 tasks" in said
    assert "\x1b[31m" not in said
    assert r"\x1b[31mthe reason" in said
    assert follower.unfinished == 2


async def test_a_ledger_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "HINT_S", 0.05)
    ledger = Told()

    async def busy(ids: object) -> list[object]:
        raise LedgerBusy("database is locked")

    monkeypatch.setattr(ledger, "outcomes", busy)
    with Follower(ledger, None) as follower:
        send(follower, tasks(1))
        await follower.finish(0.5)
    assert "the ledger does not answer: database is locked" in capsys.readouterr().err


async def test_of_many_that_are_left_some_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    sent = tasks(12)
    with Follower(Told(), None) as follower:
        send(follower, sent)
        await follower.finish(0.0)
    said = capsys.readouterr().err
    assert f"12 tasks of kind nap did not finish within 0 s: {sent[0].id}, " in said
    assert said.endswith(f"{sent[4].id}, and 7 more\n")
