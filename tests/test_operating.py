"""What operators see and do: `workqueue status`, `workers`, `task` and `dead`, on a real broker, as processes."""

import asyncio
import json
import random
import re
import shlex
import signal
import socket
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import aio_pika
import psycopg
import pytest

from tests.harness import ROOT, Site, simulate, task
from tests.operators import ask, start, workqueue
from workqueue import contract
from workqueue.amqp.held import for_itself
from workqueue.cli.send import _operation
from workqueue.dev.node import Node
from workqueue.dev.postgres import Postgres
from workqueue.errors import UsageInvalid
from workqueue.ledger import Claimed, Sent, open_ledger
from workqueue.ops.project import Project
from workqueue.ops.workers import workers
from workqueue.settings import Settings, hide_password
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker
from workqueue.testing.proxy import Proxy

MOODY = str(ROOT / "tests" / "workers" / "moody.py")
GONE_S = 10.0
NOBODY = "amqp://guest:secret@127.0.0.1:1/"


async def queue_status(site: Site) -> dict[str, Any]:
    (found,) = [queue for queue in (await ask(site, "status"))["queues"] if queue["queue"] == site.queue]
    return dict(found)


@pytest.fixture
def broken(fast: Site) -> Path:
    """While this file exists, every task fails."""
    file = fast.folder / "broken"
    file.touch()
    fast.environment["BROKEN"] = str(file)
    return file


def mend(broken: Path) -> None:
    broken.unlink()


async def buried(site: Site, count: int) -> list[dict[str, Any]]:
    """So many tasks, dead because all of their attempts failed."""
    tasks = simulate(count)
    await site.send(tasks)
    await until(lambda: site.depth_is(count, site.dead_queue), f"{count} are dead")
    return tasks


async def test_status_before_anything_ran_says_what_is_missing(fast: Site) -> None:
    told = await workqueue(fast, "status")
    assert (told.code, told.err) == (0, "")
    assert f"there is no queue {fast.queue}" in told.out
    assert not (fast.folder / "ledger.db").exists()


async def test_status_says_what_waits_who_works_and_what_each_has_in_hand(site: Site) -> None:
    await site.send(simulate(3, seconds=60))
    waiting = await queue_status(site)
    assert (waiting["ready"], waiting["in_hand"], waiting["consumers"], waiting["backlog_s"]) == (3, None, 0, None)
    assert f"nobody takes tasks from {site.queue}" in (await workqueue(site, "status")).out

    worker = await site.worker("one", WORKQUEUE_DRAIN_S="1")
    await until(lambda: holds(site, 1), "it says that it has one in hand")
    whole = await ask(site, "status")
    (seen,) = whole["workers"]
    (held,) = seen["in_hand"]
    assert (seen["name"], seen["state"], seen["pid"]) == ("one", "working", worker.process.pid)
    assert (held["kind"], held["attempt"], held["operation"]) == ("nap", 1, site.receive.operation)
    found = await queue_status(site)
    assert (found["ready"], found["in_hand"], found["workers"]) == (2, 1, 1)
    assert held["id"] in (await workqueue(site, "workers")).out
    assert [one["name"] for one in await ask(site, "workers")] == ["one"]

    worker.process.send_signal(signal.SIGTERM)
    await until(lambda: worker.process.poll() is not None, "it ends")
    assert await ask(site, "workers") == []


async def test_status_says_what_tasks_died_of_and_takes_no_letter_for_it(fast: Site, broken: Path) -> None:
    await fast.worker("one", script=MOODY)
    await buried(fast, 2)
    (died,) = (await ask(fast, "status"))["deaths"]
    assert (died["reason"], died["kind"], died["count"], died["hour"]) == ("failed", "nap", 2, 2)
    told = (await workqueue(fast, "status")).out.splitlines()
    assert any(columns(line)[:4] == ["failed", "nap", "2", "2"] for line in told), told
    assert not any(letter.redelivered for letter in await fast.dead_letters(2))
    assert (await workqueue(fast, "dead", "drop", "--all", "--yes")).code == 0
    assert "died of" not in (await workqueue(fast, "status")).out


async def test_a_database_of_somebody_elses_gets_no_tables_by_a_look(site: Site, postgres: Postgres) -> None:
    name = f"d{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    url = postgres.url.removesuffix("postgres") + name
    with psycopg.connect(url) as theirs:
        password = theirs.info.password
        for command, code, said in (
            (["status"], 0, "! there is no ledger at postgresql://"),
            (["doctor"], 1, "there is none at postgresql://"),
            (["pause", site.queue], 2, "pause needs the ledger, and there is none at postgresql://"),
        ):
            told = await workqueue(site, *command, LEDGER_URL=url)
            assert (told.code, said in told.out + told.err) == (code, True), told
            assert password not in told.out + told.err
        tables = "SELECT relname FROM pg_class WHERE relname LIKE 'workqueue%'"
        assert theirs.execute(tables).fetchall() == []


async def test_while_the_ledger_is_down_what_the_broker_tells_is_shown(site: Site) -> None:
    await site.send(simulate(3, seconds=60))
    down = {"LEDGER_URL": "postgresql://u:secretword@127.0.0.1:1/x"}
    told = await workqueue(site, "status", **down)
    assert (told.code, told.err, "secretword" in told.out) == (3, "", False)
    assert any(columns(line)[:2] == [site.queue, "3"] for line in told.out.splitlines())
    assert "! no ledger: postgresql://u:***@127.0.0.1:1/x" in told.out
    assert not any(word in told.out for word in ("died of", "nobody tells", "the workers have another"))
    told = await workqueue(site, "status", "-o", "json", **down)
    assert (told.code, told.value["ledger_answers"]) == (3, False)
    assert {(queue["in_hand"], queue["workers"], queue["rate"]) for queue in told.value["queues"]} == {(None,) * 3}
    told = await workqueue(site, "doctor", "-o", "json", **down)
    (found,) = [one for one in told.value if one["about"] == "ledger"]
    assert (told.code, found["state"], "Connection refused" in found["said"]) == (3, "fault", True)
    for command in (["workers"], ["dead", "groups"], ["pause", site.queue]):
        told = await workqueue(site, *command, **down)
        assert (told.code, told.out, len(told.err.splitlines())) == (3, "", 1)


async def holds(site: Site, count: int) -> bool:
    workers = await ask(site, "workers")
    return sum(len(worker["in_hand"]) for worker in workers) == count


async def test_a_worker_that_died_is_told_to_be_gone_with_what_it_had_in_hand(fast: Site) -> None:
    await fast.send(simulate(1, seconds=60))
    worker = await fast.worker("one")
    await until(lambda: holds(fast, 1), "it says that it has one in hand")
    worker.process.kill()

    async def is_gone() -> bool:
        return [one["state"] for one in await ask(fast, "workers")] == ["gone"]

    await until(is_gone, "it is gone", within_s=GONE_S + 10)
    told = await workqueue(fast, "status")
    assert re.search(r"! one on \S+ was last heard of \d+ s ago, with 1 in hand", told.out), told.out


async def test_a_task_is_told_from_send_to_result_with_every_attempt(fast: Site, broken: Path) -> None:
    (one,) = simulate(1)
    told = await workqueue(fast, "task", one["id"])
    assert (told.code, "there is none at" in told.err) == (2, True)  # no worker has made a ledger
    await fast.worker("one", script=MOODY)
    told = await workqueue(fast, "task", one["id"])
    assert (told.code, told.out.split("\n")[1]) == (1, "state  unknown: the ledger has nothing of it")

    await fast.send([one])
    await until(lambda: fast.depth_is(1, fast.dead_queue), "it is dead")
    dead = await ask(fast, "task", one["id"])
    most = fast.receive.max_attempts
    assert (dead["state"], dead["reason"], dead["kind"], len(dead["attempts"])) == ("dead", "failed", "nap", most)
    assert [attempt["attempt"] for attempt in dead["attempts"]] == list(range(1, most + 1))
    for attempt in dead["attempts"]:
        assert (attempt["worker"], attempt["error"]) == ("one", "RuntimeError: it is broken")
        assert attempt["traceback"].endswith("RuntimeError: it is broken")

    mend(broken)
    told = await workqueue(fast, "dead", "redrive", "--id", one["id"], "--yes", "--why", "it is mended")
    assert (told.code, told.out) == (0, "redrive: 1 of 1 letters\n")
    await until(lambda: fast.ended() == {one["id"]: 1}, "it is done")

    async def is_done() -> bool:
        return bool((await ask(fast, "task", one["id"]))["state"] == "done")

    await until(is_done, "and recorded as done")
    done = await ask(fast, "task", one["id"])
    assert (done["result"], len(done["attempts"])) == ({"kind": "nap", "attempt": 1}, most)
    (back,) = done["returns"]
    assert (back["why"], dead["returns"]) == ("it is mended", [])
    assert (await workqueue(fast, "dead", "show", one["id"])).code == 1


async def letters_of_four_kinds(site: Site) -> dict[str, str]:
    """One letter each that failed, conflicted, is invalid and undecodable, put there by a worker; by reason, an id."""
    (one,) = await buried(site, 1)
    other = task({"kind": "nap", "seconds": 0, "failures": 7}) | {"id": one["id"]}
    invalid = task({"kind": "nap", "seconds": "long", "failures": 0})
    await site.send([other])
    async with site.amqp() as channel:
        await channel.default_exchange.publish(aio_pika.Message(json.dumps(invalid).encode()), site.queue)
        await channel.default_exchange.publish(aio_pika.Message(b"not json", message_id="garbage"), site.queue)
    await until(lambda: site.depth_is(4, site.dead_queue), "four are dead")
    return {"failed": one["id"], "conflict": one["id"], "invalid": invalid["id"], "undecodable": "garbage"}


async def test_letters_are_grouped_listed_shown_filtered_and_dropped(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    ids = await letters_of_four_kinds(fast)
    groups = await ask(fast, "dead", "groups")
    counts = {(one["reason"], one["kind"]): (one["count"], one["pass_contract"]) for one in groups}
    assert counts == {
        ("failed", "nap"): (1, 1), ("conflict", "nap"): (1, 1), ("invalid", "nap"): (1, 0),
        ("undecodable", "message"): (1, 0),
    }  # fmt: skip
    listed = await ask(fast, "dead", "list")
    assert {one["reason"]: one["id"] for one in listed} == ids
    assert len(await ask(fast, "dead", "list", "--limit", "2")) == 2
    for reason, id in ids.items():
        (one,) = await ask(fast, "dead", "list", "--reason", reason)
        assert one["id"] == id
        (whole,) = [each for each in await ask(fast, "dead", "show", id) if each["letter"]["reason"] == reason]
        assert whole["letter"] == one
    (garbage,) = await ask(fast, "dead", "show", "garbage")
    assert garbage["body"] == "not json"

    for filters, reasons in (
        (["--kind", "message"], {"undecodable"}),
        (["--error", "broken"], {"failed"}),
        (["--worker", "worker1"], {"failed"}),
        (["--since", "1h"], set(ids)),
        (["--until", "1h"], set[str]()),
        (["--queue", fast.queue, "--reason", "invalid", "--reason", "conflict"], {"invalid", "conflict"}),
        (["--id", "garbage"], {"undecodable"}),
    ):
        assert {one["reason"] for one in await ask(fast, "dead", "list", *filters)} == reasons, filters

    told = await workqueue(fast, "dead", "redrive", "--all", "--yes", "--reason", "invalid", "--reason", "undecodable")
    assert (told.code, told.out) == (1, "")
    assert "0 of 2 letters to redrive" in told.err
    assert "1 are left alone: today's contract refuses it: undecodable: not JSON" in told.err

    told = await workqueue(
        fast, "dead", "drop", "--id", "-", "--yes", "--why", "of no use", given=f"garbage\nabsent\n{ids['invalid']}"
    )
    assert (told.code, told.out) == (0, "drop: 2 of 2 letters\n")
    assert "no letter that is meant has the id absent\n" in told.err
    assert {one["reason"] for one in await ask(fast, "dead", "list")} == {"failed", "conflict"}


async def test_a_bulk_action_is_previewed_and_asks(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    await buried(fast, 5)
    for arguments, problem in (
        (["redrive"], "say which letters: a filter, or --all"),
        (["redrive", "--all"], "nobody can be asked, there is no terminal: look with --dry-run, and say --yes"),
        (["drop", "--all", "--error", "("], "--error '(' is no regular expression: "),
        (["list", "--since", "soon"], "--since 'soon': give a time, such as "),
        (["throw"], "No such command 'throw'"),
        (["list", "--queue", "nowhere"], "--queue 'nowhere': there are errands, chores"),
        (["list", "--reason", "boredom"], "--reason 'boredom': there are undecodable, "),
        (["list", "--error", "(" * 3000 + ")" * 3000], "--error "),
    ):
        told = await workqueue(fast, "dead", *arguments)
        assert (told.code, told.out, told.err.count("\n")) == (2, "", 1), told.err
        assert told.err.startswith(f"workqueue dead: {problem}")

    told = await workqueue(fast, "dead", "redrive", "--all", "--dry-run")
    assert (told.code, told.out, told.err.split("\n")[0]) == (0, "", "5 of 5 letters to redrive")
    assert told.err.count("RuntimeError: it is broken") == 3
    told = await workqueue(fast, "dead", "drop", "--all", "--yes", "--expect", "4")
    assert (told.code, told.out) == (1, "")
    assert "5 letters match and 4 were expected: nothing is done" in told.err
    told = await workqueue(fast, "dead", "drop", "--all", "--yes", "--max", "2", "--expect", "5")
    assert (told.code, told.out) == (0, "drop: 2 of 2 letters\n")
    await until(lambda: fast.depth_is(3, fast.dead_queue), "three are left")


async def test_letters_are_done_once_however_often_their_redrive_is_killed(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    tasks = await buried(fast, 60)
    mend(broken)
    for attempt in range(8):
        process = await start(fast, "dead", "redrive", "--all", "--yes", "--rate", "20")
        await asyncio.sleep(0.8 + random.Random(attempt).random())
        if process.returncode is None:
            process.kill()
        await process.communicate()
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes")
    assert told.code == 0, told.err
    await until(lambda: len(fast.ended()) == 60, "all are done")
    await until(lambda: fast.depth_is(0, fast.queue), "nothing is left")
    assert fast.ended() == {one["id"]: 1 for one in tasks}
    assert await fast.depth_is(0, fast.dead_queue)


async def test_two_operators_at_once_move_each_letter_once(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    tasks = await buried(fast, 40)
    mend(broken)
    told = await asyncio.gather(*(workqueue(fast, "dead", "redrive", "--all", "--yes") for _ in range(3)))
    assert [one.code for one in told] == [0, 0, 0], [one.err for one in told]
    moved = [int(found[1]) for one in told if (found := re.match(r"redrive: (\d+) of", one.out))]
    assert sum(moved) == 40
    await until(lambda: len(fast.ended()) == 40, "all are done")
    assert fast.ended() == {one["id"]: 1 for one in tasks}


async def test_a_hundred_looks_lose_no_letter_and_change_none(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    await buried(fast, 3)
    before = await ask(fast, "dead", "list")
    for _ in range(5):
        looks = await asyncio.gather(*(workqueue(fast, "dead", "list", "-o", "json") for _ in range(4)))
        assert [look.value for look in looks] == [before] * 4
    assert len(await fast.dead_letters(3)) == 3


async def test_the_desk_of_another_ledger_moves_nothing(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    await buried(fast, 1)
    other = fast.folder / "other.db"
    other.touch()
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes", LEDGER_URL=f"sqlite:{other}")
    assert (told.code, told.out) == (2, "")
    assert "is worked on with another ledger" in told.err, told.err
    assert await fast.depth_is(1, fast.dead_queue)


async def test_without_a_ledger_letters_are_moved_and_the_rest_says_that_it_needs_one(fast: Site, broken: Path) -> None:
    fast.environment["LEDGER_URL"] = "none"
    await fast.worker(script=MOODY)
    (one,) = await buried(fast, 1)
    assert (await workqueue(fast, "dead", "list", "--since", "9999999999d", "-o", "json")).value[0]["id"] == one["id"]
    for command in (["task", one["id"]], ["workers"]):
        told = await workqueue(fast, *command)
        assert (told.code, told.out) == (2, "")
        assert "needs a ledger, and LEDGER_URL is none" in told.err
    assert "LEDGER_URL=none: nobody tells who works" in (await workqueue(fast, "status")).out
    queue = await queue_status(fast)
    assert (queue["ready"], queue["dead"], queue["consumers"]) == (0, 1, 1)
    assert (queue["in_hand"], queue["workers"], queue["rate"]) == (None, None, None)
    mend(broken)
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes")
    assert (told.code, told.out) == (0, "redrive: 1 of 1 letters\n")
    await until(lambda: fast.ended() == {one["id"]: 1}, "it is done")


async def test_a_folder_that_is_no_project_is_told(fast: Site) -> None:
    told = await workqueue(fast, "status", "--project", str(fast.folder))
    assert (told.code, told.out) == (2, "")
    assert f"{fast.folder} has no generated/*/contract.json" in told.err


async def test_a_broker_that_is_out_of_reach_is_one_line_and_exit_3(fast: Site) -> None:
    for command in (["status"], ["dead", "list"]):
        told = await workqueue(fast, *command, AMQP_URI=NOBODY)
        assert (told.code, told.out, told.err.count("\n")) == (3, "", 1), told.err
        assert "secret" not in told.err


async def test_what_needs_no_broker_goes_on_while_none_answers(fast: Site) -> None:
    await (await open_ledger(Settings(ledger_url=fast.ledger_url))).close()
    one = str(uuid4())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        told = await workqueue(fast, "task", one, AMQP_URI=f"amqp://127.0.0.1:{silent.getsockname()[1]}/")
        assert (told.code, told.err, time.monotonic() - began < 8.0) == (1, "", True), told
    for command in (["workers"], ["tasks"], ["cancel", one], ["resume", fast.queue], ["audit"]):
        assert (await workqueue(fast, *command, AMQP_URI=NOBODY)).code == 0


async def test_letters_that_were_looked_at_and_moved_are_right_after_a_restart_of_the_node(
    own_node: Node, tmp_path: Path, fast_project: Path
) -> None:
    """RabbitMQ 3.10 loses some of those that more than 32 consumers of a channel held."""
    site = Site(tmp_path, vhost(own_node), fast_project)
    await site.worker("one")
    site.stop()
    letters = [letter(one, f"number {number}") for number, one in enumerate(simulate(100))]
    async with site.amqp() as channel:
        for one in letters:
            await channel.default_exchange.publish(one, site.dead_queue)
    for _ in range(3):
        assert len(await ask(site, "dead", "list", "--limit", "1000")) == 100
    told = await workqueue(site, "dead", "drop", "--error", "number [1-4]", "--yes")
    assert (told.code, told.out) == (0, "drop: 44 of 44 letters\n"), told.err
    await asyncio.to_thread(own_node.stop)
    await asyncio.to_thread(own_node.start)
    left = {one["error"] for one in await ask(site, "dead", "list", "--limit", "1000")}
    assert left == {f"number {number}" for number in range(100) if str(number)[0] not in "1234"}


async def test_of_many_letters_each_is_moved_and_none_is_in_two_places(fast: Site) -> None:
    """More than the broker takes acks for at a time, and than are delivered at a time."""
    await fast.send(simulate(1))
    worker = await fast.worker("one")
    await until(lambda: len(fast.ended()) == 1, "its ledger is there")
    worker.process.terminate()
    letters = [letter(one, "odd" if number % 2 else "even") for number, one in enumerate(simulate(3_000))]
    async with fast.amqp() as channel:
        await asyncio.gather(*(channel.default_exchange.publish(one, fast.dead_queue) for one in letters))
    told = await workqueue(fast, "dead", "drop", "--error", "even", "--yes")
    assert (told.code, told.out) == (0, "drop: 1500 of 1500 letters\n"), told.err
    assert "not there any more" not in told.err
    await until(lambda: fast.depth_is(1_500, fast.dead_queue), "half of them are left")
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes")
    assert (told.code, told.out) == (0, "redrive: 1500 of 1500 letters\n"), told.err
    await until(lambda: fast.depth_is(0, fast.dead_queue), "none is left")
    await until(lambda: fast.depth_is(1_500), "each is a task once")


def letter(of: dict[str, Any], error: str) -> aio_pika.Message:
    """A dead letter of this task, as a worker would have made it."""
    return aio_pika.Message(
        json.dumps(of).encode(), message_id=of["id"], delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers={"x-reason": "failed", "x-error": error, "x-died-at": "2026-11-26T10:00:00Z", "x-burial": 1},
    )  # fmt: skip


PRINTED = re.findall(
    r"^    \$ workqueue (.+)\n((?:    (?!\$ ).+\n)*)", (ROOT / "docs" / "operate.md").read_text(), re.MULTILINE
)
VARIES = {"--error": "broken", "--kind": "nap", "--reason": "failed", "--until": "0s"}
"""What the filters of the page must say here, for something to match."""


def columns(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def looks(text: str, command: list[str]) -> object:
    """What is the same of each answer to a command: the columns of a table's head, the sentence without its numbers,
    or the word before a task's own."""
    first = text.splitlines()[0]
    if {"redrive", "drop", "purge"} & set(command):
        return re.sub(r"\d[\d,]*", "7", first.strip().partition(" wait in ")[0])
    if {"pause", "resume"} & set(command):
        return re.sub(r"^\s*\S+|: .*", "", first)
    return columns(first)[0] if {"show", "task", "doctor"} & set(command) else columns(first)


async def stranded(site: Site) -> None:
    """A task that has waited for two hours, without a message."""
    ledger = await open_ledger(Settings(ledger_url=site.ledger_url))
    await ledger.record([Sent(uuid4(), "nap", b"")])
    await ledger.close()
    with closing(sqlite3.connect(site.ledger_url.removeprefix("sqlite:"))) as file, file:
        file.execute("UPDATE task SET lease_until = lease_until - 7200 WHERE state = 'waiting'")


async def test_every_command_of_the_page_answers_as_it_is_printed(fast: Site, broken: Path) -> None:
    await fast.worker("one", script=MOODY)
    (one,) = await buried(fast, 1)
    await stranded(fast)
    assert len(PRINTED) > 10
    for printed, answer in PRINTED:
        command = shlex.split(printed)
        if "--watch" in command or {"send", "edit", "cancel", "forget", "ledger"} & set(
            command
        ):  # which have tests of their own
            continue
        for flag, value in VARIES.items():
            if flag in command:
                command[command.index(flag) + 1] = value
        command = [one["id"] if re.fullmatch(r"[0-9a-f-]{36}", word) else word for word in command]
        command = [fast.queue if word == "task-queue" else word for word in command]
        told = await workqueue(fast, *command)
        assert told.code == (command[0] == "doctor"), (printed, told.err)  # it finds the letter
        if answer:
            assert looks(told.err if "--dry-run" in command else told.out, command) == looks(answer, command), printed
        if "drop" in command:
            (one,) = await buried(fast, 1)
        await until(lambda: fast.depth_is(1, fast.dead_queue), "it is dead, again or still")


async def test_status_goes_on_while_it_is_watched(fast: Site) -> None:
    process = await start(fast, "status", "--watch", "-o", "jsonl")
    assert process.stdout is not None
    for _ in range(2):
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert [queue["queue"] for queue in told["queues"]]
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130


async def test_a_task_is_sent_by_hand_and_its_result_is_shown(site: Site) -> None:
    await site.worker("one")
    fields = ("seconds=0", "failures=0")
    told = await workqueue(site, "send", "nap", *fields, *site.to, "--wait", "20")
    assert told.code == 0, told.err
    id, result = told.out.splitlines()
    assert json.loads(result) == {"kind": "nap", "attempt": 1}
    assert site.ended() == {id: 1}
    told = await workqueue(site, "send", "nap", *fields, *site.to, "--id", id)
    assert (told.code, told.out) == (0, f"{id}\n")
    for arguments, code, problem in (
        (["nap", "seconds=long", *site.to], 1, '/payload/seconds: "long" is not of type "number"'),
        (["nope", *site.to], 1, "/payload"),
        (["nap", "seconds", *site.to], 2, "'seconds' is no FIELD=VALUE"),
        (["nap", *fields, "seconds=1", *site.to], 2, "seconds is given twice"),
        (["nap", "kind=digest", *site.to], 2, "kind is given twice: give - in the place of 'nap'"),
        (["nap", *fields], 2, "several operations send tasks: name one by --to; the contract has "),
        (["nap", *fields, "--to", "nobody"], 2, "--to nobody: name one by --to; the contract has "),
        (["digest", "text=7", *site.to], 1, "has quotes of its own"),
    ):
        told = await workqueue(site, "send", *arguments)
        assert (told.code, told.out, told.err.count("\n")) == (code, "", 1), told.err
        assert problem in told.err


@pytest.mark.parametrize(
    ("kind", "to", "named"),
    [("mail", None, "post"), ("bill", None, None), ("else", None, None), ("-", None, None), ("bill", "pay", "pay")],
)
def test_a_kind_that_one_of_several_operations_sends_says_which(kind: str, to: str | None, named: str | None) -> None:
    (send, *_) = contract.load("tests.generated.producer").sends.values()
    post = replace(send, operation="post", kinds=frozenset(["mail", "bill"]))
    pay = replace(send, operation="pay", kinds=frozenset(["bill"]))
    project = SimpleNamespace(contracts={"some.package": SimpleNamespace(sends={"post": post, "pay": pay})})
    if named is None:
        with pytest.raises(UsageInvalid, match="name one by --to; the contract has post, pay"):
            _operation(cast(Project, project), kind, to)
    else:
        assert _operation(cast(Project, project), kind, to)[1].operation == named


async def test_what_operators_did_is_told_with_who_and_why(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    assert (await workqueue(fast, "audit")).out == "nothing was done\n"
    tasks = await buried(fast, 3)
    await workqueue(fast, "dead", "drop", "--all", "--max", "2", "--yes", "--why", "of no use")
    begins, ends = await ask(fast, "audit")
    assert (begins["what"], begins["why"], begins["told"]) == ("dead drop begins", "of no use", {"letters": 2})
    assert (ends["what"], ends["told"]) == ("dead drop ends", {"moved": 2, "unsure": 0, "left": 0, "gone": 0})
    assert "@" in ends["who"]
    assert "dead drop ends" in (await workqueue(fast, "audit")).out
    gone = []
    for one in tasks:
        found = await ask(fast, "task", one["id"])
        gone += [(removal["why"], removal["by"], removal["sent_as"]) for removal in found["removals"]]
        assert found["error"].endswith("; its letter was dropped") == bool(found["removals"])
        assert ("workqueue dead show" in (await workqueue(fast, "task", one["id"])).out) != bool(found["removals"])
    assert gone == [("of no use", ends["who"], None)] * 2


async def test_a_letter_is_mended_and_sent_as_one_new_task_however_often_that_is_asked_for(fast: Site) -> None:
    worker = await fast.worker("one")
    bad = task({"kind": "nap", "seconds": "long", "failures": 0})
    await fast.publish(json.dumps(bad).encode(), message_id=bad["id"])
    await until(lambda: fast.depth_is(1, fast.dead_queue), "it is dead")
    for arguments, code, problem in (
        (["seconds=longer"], 1, '/payload/seconds: "longer" is not of type "number"'),
        (["seconds"], 2, "'seconds' is no FIELD=VALUE"),
    ):
        told = await workqueue(fast, "dead", "edit", bad["id"], *arguments, "--yes")
        assert (told.code, told.out, told.err.count("\n")) == (code, "", 1), told.err
        assert problem in told.err
    told = await workqueue(fast, "dead", "edit", str(UUID(int=1)), "seconds=0", "--yes")
    assert (told.code, told.err) == (1, f"there is no dead letter {UUID(int=1)}\n")
    told = await workqueue(fast, "dead", "edit", bad["id"], "seconds=0", "--dry-run")
    assert (told.code, told.out) == (0, "")

    worker.process.send_signal(signal.SIGSTOP)  # so that nothing is done between the kills
    for attempt in range(5):
        process = await start(fast, "dead", "edit", bad["id"], "seconds=0", "--yes")
        await asyncio.sleep(0.9 + 0.15 * attempt)
        if process.returncode is None:
            process.kill()
        await process.communicate()
    told = await workqueue(fast, "dead", "edit", bad["id"], "seconds=0", "--yes", "--why", "a word for a number")
    assert told.code in (0, 1), told.err  # one that was killed may have been through
    worker.process.send_signal(signal.SIGCONT)
    await until(lambda: len(fast.ended()) == 1, "it is done")
    await until(lambda: fast.depth_is(0, fast.queue), "nothing is left")
    (done,) = fast.ended().items()
    assert done[1] == 1
    assert done[0] != bad["id"]
    assert await fast.depth_is(0, fast.dead_queue)
    told = await workqueue(fast, "task", bad["id"])
    assert f"; edited, and sent as {done[0]}  (workqueue task {done[0]})\n" in told.out
    (removal,) = (await ask(fast, "task", bad["id"]))["removals"]
    assert removal["sent_as"] == done[0]
    assert (await ask(fast, "task", done[0]))["state"] == "done"


@pytest.mark.parametrize("action", ["redrive", "drop"])
async def test_an_action_that_is_interrupted_says_what_it_did_and_the_audit_has_it(fast: Site, action: str) -> None:
    await fast.worker("one")
    letters = [letter(one, "no") for one in simulate(40)]
    async with fast.amqp() as channel:
        for message in letters:
            await channel.default_exchange.publish(message, routing_key=fast.dead_queue)
    process = await start(fast, "dead", action, "--all", "--yes", "--rate", "5")

    async def some_are_gone() -> bool:
        return "begins" in (await workqueue(fast, "audit")).out

    await until(some_are_gone, "it has begun", 30)
    await asyncio.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 130, err
    (moved,) = map(int, re.findall(rf"{action}: (\d+) of 40 letters", out.decode()))
    ends = next(one for one in await ask(fast, "audit") if one["what"] == f"dead {action} ends")
    told = ends["told"]
    assert (told["moved"], told["gone"]) == (moved, 0)
    assert 0 < moved + told["unsure"] < 40
    assert moved + told["unsure"] + told["left"] == 40


async def test_a_redrive_that_goes_slowly_leaves_the_letters_to_others_meanwhile(fast: Site, broken: Path) -> None:
    await fast.worker(script=MOODY)
    tasks = await buried(fast, 14)
    mend(broken)
    process = await start(fast, "dead", "redrive", "--all", "--yes", "--rate", "2")
    await until(lambda: fast.ended(), "the first is done")
    listed = await ask(fast, "dead", "list")
    assert process.returncode is None
    assert 0 < len(listed) < len(tasks)
    out, err = await process.communicate()
    assert err.decode().count("Traceback") == 0
    assert "14 of 14 letters" in out.decode()
    await fast.all_end(tasks)


async def test_a_redrive_whose_connection_is_cut_stops_says_so_and_is_asked_for_again(
    fast: Site, broken: Path, node: Broker
) -> None:
    worker = await fast.worker("one", script=MOODY)
    tasks = await buried(fast, 60)
    mend(broken)
    worker.process.send_signal(signal.SIGSTOP)

    async def in_queue() -> int:
        async with fast.amqp() as channel:
            return (await channel.declare_queue(fast.queue, passive=True)).declaration_result.message_count or 0

    async def some_are_sent() -> bool:
        return await in_queue() > 4

    async with Proxy(node.port) as proxy:
        uri = fast.uri.replace(f":{node.port}/", f":{proxy.port}/")
        process = await start(fast, "dead", "redrive", "--all", "--yes", "--rate", "4", AMQP_URI=uri)
        holding = f"desk-{process.pid}"
        await until(some_are_sent, "some are sent", 30)
        await until(lambda: proxy.named(holding), "it holds the letters", 30)
        for flow in proxy.named(holding):
            flow.cut()
        out, err = await process.communicate()
    assert process.returncode == 3, err
    moved = int(re.findall(rb"redrive: (\d+) of 60", out)[0])
    unsure = sum(map(int, re.findall(rb"(\d+) more, and these", err)))
    sent = await in_queue() + 1  # the worker has one in hand
    assert moved <= sent <= moved + unsure
    assert sent < 60
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes")
    assert told.code == 0, told.err
    worker.process.send_signal(signal.SIGCONT)
    await until(lambda: len(fast.ended()) == 60, "all are done")
    assert fast.ended() == {one["id"]: 1 for one in tasks}


async def test_who_waits_for_the_letters_and_is_cut_off_meanwhile_is_told_so_in_a_line_that_names_the_broker(
    fast: Site, node: Broker
) -> None:
    await fast.worker("one")
    async with for_itself(Settings(amqp_uri=(fast.uri,)), fast.dead_queue, "first"), Proxy(node.port) as proxy:
        uri = fast.uri.replace(f":{node.port}/", f":{proxy.port}/")
        nobody = fast.uri.replace(f":{node.port}/", ":1/")
        process = await start(fast, "dead", "list", AMQP_URI=f"{nobody},{uri}")
        waiting = f"desk-{process.pid} locks"
        await until(lambda: proxy.named(waiting), "it waits", 30)
        await asyncio.sleep(1.0)
        for flow in proxy.named(waiting):
            flow.cut()
        _, err = await process.communicate()
    assert process.returncode == 3
    assert b"fault of its own" not in err
    assert f"no broker: {hide_password(uri)}: ".encode() in err  # which answered, and not the first that is named


async def test_letters_that_are_the_same_are_all_moved(fast: Site) -> None:
    await fast.send(simulate(1))
    worker = await fast.worker("one")
    await until(lambda: len(fast.ended()) == 1, "its ledger is there")
    worker.process.send_signal(signal.SIGSTOP)
    (same,) = simulate(1)
    async with fast.amqp() as channel:
        for _ in range(3):
            await channel.default_exchange.publish(letter(same, "no"), fast.dead_queue)
    told = await workqueue(fast, "dead", "drop", "--id", same["id"], "--max", "1", "--yes")
    assert (told.code, told.out) == (0, "drop: 1 of 1 letters\n")
    told = await workqueue(fast, "dead", "redrive", "--id", same["id"], "--yes")
    assert (told.code, told.out) == (0, "redrive: 2 of 2 letters\n")
    assert await fast.depth_is(0, fast.dead_queue)
    worker.process.send_signal(signal.SIGCONT)
    await until(lambda: fast.ended().get(same["id"]) == 1, "it is done, once")
    await until(lambda: fast.depth_is(0), "nothing is left")


async def test_json_has_all_letters_and_a_pipe_cuts_nothing(fast: Site) -> None:
    await fast.send(simulate(1))
    await fast.worker("one")
    await until(lambda: len(fast.ended()) == 1, "its ledger is there")
    letters = [letter(one, f"RuntimeError: {'x' * 300} {number}") for number, one in enumerate(simulate(60))]
    async with fast.amqp() as channel:
        for one in letters:
            await channel.default_exchange.publish(one, fast.dead_queue)
    assert len(await ask(fast, "dead", "list")) == 60
    told = await workqueue(fast, "dead", "list")
    assert "the newest 50 of 60" in told.err
    assert told.out.count("x" * 300) == 50
    assert "\u2026" not in told.out


async def test_who_looks_with_another_ledger_than_the_workers_is_told(fast: Site) -> None:
    await fast.worker("one")
    other = fast.folder / "other.db"
    await (await open_ledger(Settings(ledger_url=f"sqlite:{other}"))).close()
    of_task = [[command, str(uuid4())] for command in ("task", "cancel")]
    of_queue = [[command, fast.queue] for command in ("pause", "resume")]
    for command in (["status"], ["dead", "list"], ["workers"], ["tasks"], ["audit"], *of_task, *of_queue):
        told = await workqueue(fast, *command, LEDGER_URL=f"sqlite:{other}")
        assert (told.code, told.out, told.err.count("\n")) == (2, "", 1), told
        assert "is worked on with another ledger" in told.err
    assert (await workqueue(fast, "audit", LEDGER_URL=f"sqlite:{other}", AMQP_URI=NOBODY)).out == "nothing was done\n"
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes", LEDGER_URL="none")
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1), told.err


async def test_who_looks_for_a_ledger_that_was_moved_away_is_told_what_a_worker_would_be(fast: Site) -> None:
    worker, one = await fast.worker("one"), str(uuid4())
    worker.process.send_signal(signal.SIGTERM)
    await until(lambda: worker.process.poll() is not None, "it ends, and leaves no log")
    (fast.folder / "ledger.db").rename(fast.folder / "away.db")
    for command in (["status"], ["workers"], ["task", one], ["cancel", one], ["pause", fast.queue], ["audit"]):
        told = await workqueue(fast, *command)
        assert (told.code, told.out, told.err.count("\n")) == (2, "", 1), told
        assert "is not there: put it back" in told.err
    told = await workqueue(fast, "doctor")
    assert "!!  ledger: queue" in told.out
    assert "is not there: put it back" in told.out


async def test_who_looks_for_a_ledger_whose_log_lies_there_without_it_is_told_so(fast: Site) -> None:
    (fast.folder / "ledger.db-wal").write_bytes(b"what was committed last")
    said = "it is gone, and its log"
    for command in (["workers"], ["task", str(uuid4())], ["resume", fast.queue]):
        told = await workqueue(fast, *command)
        assert (told.code, told.out, said in told.err) == (3, "", True), told
    for looks in ("status", "doctor"):
        told = await workqueue(fast, looks)
        assert (told.code, said in told.out) == (3, True), told


async def test_what_a_worker_that_is_gone_had_in_hand_is_told_until_somebody_else_has_it(tmp_path: Path) -> None:
    ledger = await open_ledger(Settings(ledger_url=f"sqlite:{tmp_path / 'ledger.db'}"))
    told = {
        "host": "a", "pid": 1, "version": "1", "contract": {"version": "1", "digest": "2"}, "state": "working",
        "at": time.time(), "started_at": time.time(), "queues": {},
    }  # fmt: skip
    held = []
    for worker in ("one", "two"):
        claimed = await ledger.claim(uuid4(), worker, 60.0, kind="nap", digest=b"1", alone=False)
        assert isinstance(claimed, Claimed)
    for worker in ("one", "two"):
        held.append(task_id := uuid4())
        await ledger.claim(task_id, worker, 60.0, kind="nap", digest=b"1", alone=False)
    in_hand = [{"id": str(id), "kind": "nap", "operation": "o", "attempt": 1, "since": 0.0} for id in held]
    await ledger.board.put(uuid4(), "one", json.dumps(told | {"in_hand": in_hand}))
    (seen,) = await workers(ledger, gone_s=-1.0)
    assert (seen.state, [one.id for one in seen.in_hand]) == ("gone", [str(held[0])])
    await ledger.board.put(uuid4(), "one", json.dumps(told | {"in_hand": []}))
    assert len(await workers(ledger)) == 2
    await ledger.close()
