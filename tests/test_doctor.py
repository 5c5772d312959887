"""`workqueue plan` and `doctor`: each seeded fault is found with its way out, and nothing on a healthy system."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from aio_pika.abc import AbstractChannel
from psycopg import errors

from tests.harness import ERRANDS, ROOT, Site, simulate
from tests.operators import ask, workqueue
from tests.test_ledger_postgres import run, url
from tests.test_refusals import user_of
from workqueue import contract
from workqueue.contract import Queue
from workqueue.dev.node import Node
from workqueue.ledger import Sent, open_ledger
from workqueue.ledger.board import Overdue
from workqueue.ledger.none import SilentLedger
from workqueue.ledger.postgres_server import Server
from workqueue.ops.doctor import MEND, OVERDUE_S, ROOM, _at_work, _gone, _ledger, _limits
from workqueue.ops.status import Status
from workqueue.ops.workers import Worker
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker

__all__ = ["url"]

LIMIT = "x-delivery-limit"
RECEIVE = contract.load("tests.generated.worker").receives[ERRANDS.queue.name]


async def findings(site: Site) -> dict[str, dict[str, Any]]:
    """What is not as it should be, by what it is about."""
    return {one["about"]: one for one in await ask(site, "doctor") if one["state"] in ("warning", "fault")}


async def plans(site: Site) -> dict[str, dict[str, Any]]:
    return {one["queue"]: one for one in (await ask(site, "plan"))["queues"]}


def queues(site: Site) -> dict[str, Queue]:
    document = json.loads((site.project / "tests/generated/worker/contract.json").read_bytes())
    return {queue.name: queue for queue in contract.read(document).queues}


async def declared(
    channel: AbstractChannel, queue: Queue, changed: Mapping[str, Any] | None = None, *, durable: bool = True
) -> None:
    """The queue as somebody else has made it. An argument that is None is left out."""
    whole = {**queue.arguments, **(changed or {})}
    arguments = {name: value for name, value in whole.items() if value is not None}
    await channel.declare_queue(queue.name, durable=durable, arguments=arguments)


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[None]:
    worker = await site.worker("one")
    try:
        yield
    finally:
        worker.process.terminate()
        await until(lambda: worker.process.poll() is not None, "it ends")


async def test_nothing_is_wrong_with_a_healthy_system(fast: Site) -> None:
    async with running(fast):
        await fast.send(simulate(1))
        await until(lambda: len(fast.ended()) == 1, "it is done")
        told = await workqueue(fast, "doctor")
        assert (told.code, told.err) == (0, ""), told.out
        assert "rabbitmq-queues grow" in told.out  # how many replicas there are AMQP doesn't tell
        assert {one["state"] for one in (await plans(fast)).values()} == {"same"}
        assert (await workqueue(fast, "plan")).code == 0


async def test_before_the_first_worker_everything_is_missing_and_nothing_is_made(fast: Site) -> None:
    for _ in range(2):
        told = await workqueue(fast, "plan")
        assert told.code == 1
        assert {one["state"] for one in (await plans(fast)).values()} == {"missing"}
    found = await findings(fast)
    assert found[f"queue {fast.queue}"]["way_out"] == "start a worker: it declares the queue"
    assert {one["state"] for one in found.values()} == {"warning"}


async def test_queues_that_differ_are_told_with_every_difference(fast: Site) -> None:
    ours = queues(fast)
    rung = fast.receive.rungs[0].queue
    async with fast.amqp() as channel:
        classic = {"x-queue-type": "classic", "x-dead-letter-strategy": None, "x-overflow": None, LIMIT: None}
        classic["x-quorum-initial-group-size"] = None
        await declared(channel, ours[fast.queue], classic)
    async with fast.amqp() as channel:
        await declared(channel, ours[fast.dead_queue], {LIMIT: None})
        await declared(channel, rung, {"x-message-ttl": 77_000, "x-max-length": 5})
    found = await plans(fast)
    tasks, dead, delay = found[fast.queue], found[fast.dead_queue], found[rung.name]
    assert (tasks["state"], dead["state"], delay["state"]) == ("new queue", "policy", "new queue")
    assert {"name": "x-queue-type", "contract": "quorum", "broker": "classic"} in tasks["differences"]
    assert dead["differences"] == [{"name": LIMIT, "contract": ours[fast.dead_queue].arguments[LIMIT], "broker": None}]
    assert sorted(one["name"] for one in delay["differences"]) == ["x-max-length", "x-message-ttl"]
    assert {"name": "x-message-ttl", "contract": rung.arguments["x-message-ttl"], "broker": 77_000} in delay[
        "differences"
    ]
    assert dead["steps"][0].startswith("rabbitmqctl set_policy ")

    sick = await findings(fast)
    assert "x-queue-type is classic, not quorum" in sick[f"queue {fast.queue}"]["said"]
    assert "x-message-ttl is 77000" in sick[f"queue {rung.name}"]["said"]
    assert sick[f"queue {fast.dead_queue}"]["state"] == "warning"
    assert sick[f"queue {fast.queue}"]["way_out"] == "workqueue plan has the steps"
    worker = await fast.worker("one", ready=False)
    await until(lambda: worker.process.poll() is not None, "it refuses")
    assert worker.process.returncode == 2
    assert "workqueue plan" in worker.text()


async def test_a_queue_that_is_not_durable_and_one_that_is_gone_are_found(fast: Site) -> None:
    rung = fast.receive.rungs[1].queue
    async with fast.amqp() as channel:
        await declared(channel, Queue(rung.name, False, False, False, {}), durable=False)
        await declared(channel, queues(fast)[fast.queue])
    sick = await findings(fast)
    assert "durable is False, not True" in sick[f"queue {rung.name}"]["said"]
    assert sick[f"queue {fast.dead_queue}"]["said"] == "it does not exist"
    assert sick[f"queue {fast.dead_queue}"]["state"] == "fault"


async def test_what_workers_tell_is_held_against_the_folder_and_the_clock(fast: Site) -> None:
    async with running(fast):
        ledger = await open_ledger(Settings(ledger_url=fast.ledger_url))
        (seen,) = await until(lambda: ledger.board.seen(60.0), "the worker tells of itself")
        told = json.loads(seen.told) | {"state": "working", "why": ""}  # it may have told that it starts
        older = told | {"contract": {"version": "0.9.0", "digest": "000000"}}
        await ledger.board.put(uuid4(), "older", json.dumps(older))
        ahead = {"at": time.time() + 60, "started_at": told["started_at"] + 60}
        await ledger.board.put(uuid4(), "ahead", json.dumps(told | ahead))
        sick = await findings(fast)
        await ledger.close()
    assert sick["worker ahead"]["said"] in {
        f"its clock is {seconds} s ahead of this machine's" for seconds in (59, 60, 61)
    }
    assert "older works by another contract (0.9.0, 000000)" in sick["contract"]["said"]
    assert set(sick) == {"worker ahead", "contract"}


async def test_tasks_that_nobody_takes_and_letters_that_nobody_looked_at_are_found(fast: Site) -> None:
    await fast.send(simulate(2))
    await fast.publish(b"not a task")
    sick = await findings(fast)
    assert sick[f"queue {fast.queue}"]["said"] == "3 tasks wait and nobody takes them"
    async with running(fast):
        await until(lambda: fast.depth_is(1, fast.dead_queue), "one is dead")
        sick = await findings(fast)
    assert sick == {f"queue {fast.dead_queue}": sick[f"queue {fast.dead_queue}"]}
    assert sick[f"queue {fast.dead_queue}"]["said"] == "1 dead letters"


async def test_tasks_whose_messages_are_gone_are_found(fast: Site) -> None:
    """As where a broker forwards nothing from a delay any more, or somebody has deleted a queue."""
    async with running(fast):
        lost, late = simulate(1)[0], simulate(1)[0]
        ledger = await open_ledger(Settings(ledger_url=fast.ledger_url))
        await ledger.record([Sent(UUID(one["id"]), "nap", b"") for one in (lost, late)])
        await ledger.close()
        assert not [one for one in await ask(fast, "doctor") if "wait in the ledger" in one["said"]]
        with closing(sqlite3.connect(fast.ledger_url.removeprefix("sqlite:"))) as file, file:
            file.execute("UPDATE task SET lease_until = lease_until - 7200 WHERE id = ?", (UUID(lost["id"]).bytes,))
        (found,) = [one for one in await ask(fast, "doctor") if "wait in the ledger" in one["said"]]
        assert found["state"] == "warning"
        assert f"tasks of kind nap wait in the ledger, for up to 2.0 h, such as {lost['id']} (1 in" in found["said"]
        assert "restart the node of its leader" in found["way_out"]
        command, _, _ = found["way_out"].partition(" lists them; ")
        assert command == "workqueue tasks --kind nap --older-than 300"
        assert [one["id"] for one in await ask(fast, *command.split()[1:])] == [lost["id"]]
    await fast.publish(json.dumps(simulate(1)[0]).encode())  # what waits behind others is not gone
    assert not [one for one in await ask(fast, "doctor") if "wait in the ledger" in one["said"]]


async def test_who_has_a_tasks_row_locked_is_named_and_the_worker_does_all_others(site: Site, url: str) -> None:
    site.environment["LEDGER_URL"] = url
    worker = await site.worker("one", "--concurrency", "4")
    (stuck,), others = simulate(1, seconds=0.5), simulate(20)
    await site.send([stuck])
    await until(site.record, "it has begun")
    with closing(psycopg.connect(url, application_name="the night's report")) as foreign:
        foreign.execute("SELECT 1 FROM workqueue_task WHERE id = %s FOR UPDATE", (stuck["id"],))
        await site.send(others)
        held = f"the row of task {stuck['id']} is locked by the night's report (role "
        await until(lambda: held in worker.text(), "its log says so")
        await until(lambda: len(site.ended()) == 21, "all others are done")

        async def told() -> Any:
            (one,) = (await ask(site, "status"))["workers"]
            return one if held in one["why"] else None

        one = await until(told, "the worker tells the ledger, too")
        assert (one["state"], one["why"].startswith(f"1 can't be recorded: {held}")) == ("working", True)
        found = [one for one in await ask(site, "doctor") if "locked" in one["said"]]
        assert all("the night's report" in one["said"] for one in found)  # and not the worker, which waits
        assert [one["about"] for one in found] == ["worker one", "ledger"]
        assert found[1]["way_out"].endswith(f"SELECT pg_terminate_backend({foreign.info.backend_pid})")
        run(url, f"SELECT pg_terminate_backend({foreign.info.backend_pid})")
    await until(lambda: worker.says(f"done  nap  {stuck['id']}"), "it is recorded")

    async def healthy() -> bool:
        return not [one for one in await ask(site, "doctor") if "locked" in one["said"]]

    await until(healthy, "the worker has told of itself since")


def test_the_page_says_after_how_long_a_task_without_a_message_is_told() -> None:
    assert (OVERDUE_S, "five minutes" in (ROOT / "docs/operate.md").read_text()) == (300, True)


LIMITS: dict[str, Mapping[str | None, float]] = {"of each kind": {"nap": 60.0}, "of all": {None: 60.0}, "none": {}}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_stranded_tasks_are_found_whatever_limits_their_kind_has(limits: Mapping[str | None, float]) -> None:
    receive = replace(RECEIVE, time_limits_s=limits)
    now: Any = SimpleNamespace(at=datetime.now(UTC), queues=[SimpleNamespace(queue=receive.queue.name, ready=0)])
    project: Any = SimpleNamespace(receives={receive.queue.name: receive})
    (found,) = _gone(project, now, [Overdue("nap", 7, time.time() - 7200, "x"), Overdue("another's", 7, 0.0, "y")])
    assert found.said.startswith("tasks of kind nap wait in the ledger, for up to 2.0 h")


@pytest.mark.parametrize(("limits", "may"), [({"nap": 3600.0}, "take 3600 s"), ({}, "run for ever")])
def test_a_kind_without_a_limit_is_told_of_as_a_long_one_is_where_there_is_no_ledger(
    limits: Mapping[str | None, float], may: str
) -> None:
    receive = replace(RECEIVE, time_limits_s={**dict.fromkeys(RECEIVE.kinds - {"nap"}, 1800.0), **limits})
    project: Any = SimpleNamespace(receives={receive.queue.name: receive}, has_ledger=False)
    (found,) = _limits(project)
    assert found.said.startswith(f"a task of kind nap may {may}; RabbitMQ delivers again")


async def test_a_ledger_that_the_workers_do_not_share_and_none_at_all_are_found(fast: Site) -> None:
    told = await workqueue(fast, "doctor", LEDGER_URL="none")
    assert "!   ledger: none: a task that is delivered twice may be done twice" in told.out
    async with running(fast):
        other = fast.folder / "other.db"
        await (await open_ledger(Settings(ledger_url=f"sqlite:{other}"))).close()
        told = await workqueue(fast, "doctor", LEDGER_URL=f"sqlite:{other}")
        assert told.code == 1
        assert "!!  ledger: queue" in told.out
        assert "is worked on with another ledger" in told.out
        told = await workqueue(fast, "doctor", LEDGER_URL="none")
        assert "!!  ledger: queue" in told.out


@pytest.mark.parametrize("notes", [(), ("no ledger: postgresql://there/: {}",)], ids=["read-only", "away"])
async def test_of_a_full_disk_the_way_out_is_room(notes: tuple[str, ...]) -> None:
    refusal = Server("postgresql://there/").words(errors.DiskFull("could not extend file"))
    assert refusal == "the server's disk is full, make room there: could not extend file"
    ledger, project = SilentLedger("postgresql://there/", refusal), cast(Any, SimpleNamespace(has_ledger=True))
    now = Status(datetime.now(UTC), "b", "l", (), (), tuple(n.format(refusal) for n in notes), refusal=refusal)
    found = _ledger(project, ledger, now)
    assert (found.state, found.way_out, refusal in found.said) == ("fault", ROOM, True)


async def test_a_ledger_that_can_be_read_and_lets_nobody_claim_a_task_is_found() -> None:
    ledger = SilentLedger("postgresql://there/", "permission denied for table workqueue_task")
    project: Any = SimpleNamespace(has_ledger=True)
    refusal = "permission denied for table workqueue_task"
    found = _ledger(project, ledger, Status(datetime.now(UTC), "b", "l", (), (), (), refusal=refusal))
    assert (found.state, found.way_out) == ("fault", MEND)
    assert found.said == f"{ledger.place}: no task could be claimed: permission denied for table workqueue_task"


async def test_a_user_who_may_not_declare_is_told_so(fast: Site, node: Broker) -> None:
    async with running(fast):
        fast.uri = user_of(node, fast.uri, configure="^$", write=".*", read=".*")
        found = {one["about"]: one for one in await ask(fast, "doctor")}
    assert found["permissions"]["state"] == "warning"
    assert "may not declare a queue" in found["permissions"]["said"]
    assert found[f"queue {fast.queue}"]["state"] == "unseen"


@pytest.fixture
def alarmed(own_node: Node, tmp_path: Path, fast_project: Path) -> Iterator[Site]:
    here = Site(tmp_path, vhost(own_node), fast_project)
    yield here
    own_node.ctl("set_vm_memory_high_watermark", "0.4")
    here.stop()


async def test_an_alarm_is_found_and_told_by_status_too(alarmed: Site, own_node: Node) -> None:
    async with running(alarmed):
        assert (await ask(alarmed, "status"))["notes"] == []
        await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.0000001")
        found = await findings(alarmed)
        told = await workqueue(alarmed, "status")
    assert found["alarm"]["state"] == "fault"
    assert "low on memory" in found["alarm"]["said"]
    assert f"! {found['alarm']['said']}; free memory" in told.out, told.out
    assert told.code == 0


async def test_exported_definitions_make_a_fresh_vhost_the_same(fast: Site, own_node: Node) -> None:
    told = await workqueue(fast, "plan", "--export", "definitions", AMQP_URI=own_node.uri)
    assert told.code == 0
    file = fast.folder / "definitions.json"
    file.write_text(told.out)
    await asyncio.to_thread(own_node.ctl, "import_definitions", str(file))
    told = await workqueue(fast, "plan", AMQP_URI=own_node.uri)
    assert told.code == 0, told.out
    assert "queues are as the contract has them" in told.out
    assert (await workqueue(fast, "plan", "--export", "all")).code == 2


def test_a_worker_that_is_gone_is_not_taken_for_one_of_another_contract_by_its_name() -> None:
    when = datetime.now(UTC)
    gone = Worker("contract-1", "a", 1, "gone", 60.0, 0.0, when, "1", "1.0.0", "000000", {}, ())
    project: Any = SimpleNamespace(digests={})
    found = list(_at_work(project, Status(when, "b", "l", (), (gone,), (f"{gone.name} was last heard of 60 s ago",))))
    assert [(one.about, one.state) for one in found] == [("worker contract-1", "warning")]


async def test_more_consumers_than_a_low_delivery_limit_stands_are_told_of(fast: Site) -> None:
    async with fast.amqp() as channel:
        await declared(channel, queues(fast)[fast.queue], {LIMIT: 12})
    await fast.worker("one")
    assert not [one for one in await ask(fast, "doctor") if "consumers, and" in one["said"]]
    await fast.worker("two", "--concurrency", "3")
    (found,) = [one for one in await ask(fast, "doctor") if "consumers, and" in one["said"]]
    assert (found["about"], found["state"]) == (f"queue {fast.queue}", "warning")
    assert found["said"].startswith(f"4 consumers, and {LIMIT} 12: ")


@pytest.mark.parametrize(
    ("rights", "state", "said"),
    [
        (("^$", ".*", ".*"), "warning", "may not declare a queue"),
        ((".*", "^$", ".*"), "fault", "may not publish"),
        ((".*", ".*", "^$"), "fault", "may not read"),
    ],
)
async def test_a_right_that_the_user_lacks_is_told_by_its_name(
    fast: Site, node: Broker, rights: tuple[str, str, str], state: str, said: str
) -> None:
    await fast.send(simulate(1))
    fast.uri = user_of(node, fast.uri, *rights)
    (found,) = [one for one in await ask(fast, "doctor") if one["about"] == "permissions"]
    assert (found["state"], said in found["said"]) == (state, True), found
