"""What `workqueue status` makes of what the broker and the ledger tell."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tests.harness import ERRANDS, Site, simulate
from tests.operators import ask, workqueue
from tests.test_http import address_of, asked, numbers
from tests.test_operating import MOODY
from tests.test_refusals import user_of
from workqueue.amqp.lane import Depth
from workqueue.amqp.probe import Probe
from workqueue.cli.task import _state
from workqueue.ledger import LedgerBusy, open_ledger
from workqueue.ledger.board import Deaths, NoBoard, Seen
from workqueue.ledger.none import AbsentLedger, NoLedger
from workqueue.ops import doctor, status
from workqueue.ops.doctor import _at_work, _ledger
from workqueue.ops.status import Status
from workqueue.ops.story import story
from workqueue.ops.workers import InHand
from workqueue.settings import Settings
from workqueue.testing import until
from workqueue.testing.given import Broker

QUEUE, DEAD = ERRANDS.queue.name, ERRANDS.dead.name
PROJECT: Any = SimpleNamespace(
    settings=Settings(ledger_url="sqlite:/there"), receives={QUEUE: ERRANDS}, sends={}, digests={}, has_ledger=True
)


class There(NoLedger):
    """A ledger with this board."""

    place = "there"

    def __init__(self, board: NoBoard) -> None:
        self.board = board


Look = Callable[..., Any]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """`status`, where the broker has these queues."""

    async def status_of(ledger: NoLedger, **depths: tuple[int, int]) -> Status:
        async def seen(*_: object) -> dict[str, Depth]:
            return {name: Depth(*depth) for name, depth in depths.items()}

        async def takes_all(*_: object) -> None:
            pass

        monkeypatch.setattr(status, "look", seen)
        monkeypatch.setattr(status, "blocked", takes_all)
        return await status.status(PROJECT, ledger, "me")

    return status_of


async def test_what_tasks_died_of_is_told_or_why_it_cannot_be_read(look: Look) -> None:
    class Board(NoBoard):
        locked = False

        async def deaths(self) -> list[Deaths]:
            if self.locked:
                raise LedgerBusy("lock timeout")
            return [Deaths("nap", "failed", 2, 1, 0.0)]

    board = Board()
    found = await look(There(board), **{QUEUE: (0, 1), DEAD: (2, 0)})
    assert (found.ledger_answers, len(found.deaths), found.notes) == (True, 1, ())
    board.locked = True
    found = await look(There(board), **{QUEUE: (0, 1), DEAD: (2, 0)})
    assert (found.ledger_answers, found.deaths) == (False, ())
    assert found.notes == ("what tasks died of can't be read: there does not answer: lock timeout",)


def worker(**told: Any) -> Seen:
    """One that was heard of a second ago, unless `seen_s` says otherwise."""
    seen_s, name, more = told.pop("seen_s", 1.0), told.pop("name", "one"), told.pop("work", {})
    work = {"concurrency": 1, "rate": 2.0, "done": 1, "failed": 0, "dead": 0, "handed_back": 0}
    whole = {
        "host": "a", "pid": 1, "version": "1", "contract": {"version": "1", "digest": "2"}, "state": "working",
        "at": time.time() - seen_s, "started_at": time.time() - 60, "in_hand": [], "queues": {QUEUE: work},
    }  # fmt: skip
    return Seen(uuid4(), name, seen_s, json.dumps(whole | {"queues": {QUEUE: work | more}} | told))


class Crowd(NoBoard):
    def __init__(self, *workers: Seen) -> None:
        self.workers = list(workers)

    async def seen(self, within_s: float) -> list[Seen]:
        return self.workers


async def test_a_worker_that_waits_says_what_for_and_what_it_cannot_settle_is_in_hand(look: Look) -> None:
    waits = worker(state="waiting", why=f"3 of {QUEUE} can't be settled: no", work={"settling": 3})
    found = await look(There(Crowd(waits)), **{QUEUE: (0, 1), DEAD: (0, 0)})
    assert found.notes == (f"one on a takes no tasks: 3 of {QUEUE} can't be settled: no",)
    assert (found.queues[0].in_hand, found.workers[0].all_held) == (3, 3)


@pytest.mark.parametrize("state", ["working", "paused"])
async def test_of_a_worker_that_is_held_up_in_part_it_is_not_said_that_it_takes_no_tasks(
    look: Look, state: str
) -> None:
    here = worker(state=state, why="1 of mails can't be settled: no")
    found = await look(There(Crowd(here)), **{QUEUE: (0, 1), DEAD: (0, 0)})
    assert found.notes == ("one on a: 1 of mails can't be settled: no",)
    told = [(one.state, one.said) for one in _at_work(PROJECT, found) if one.about == "worker one"]
    assert told == [("fault", "on a: 1 of mails can't be settled: no")]


@pytest.mark.parametrize(("ago_s", "said"), [(3, ()), (60, ("one on a takes no tasks: it starts",))])
async def test_a_worker_that_has_not_reached_its_broker_starts_and_is_noted_when_that_takes_long(
    look: Look, ago_s: float, said: tuple[str, ...]
) -> None:
    starts = worker(state="starting", why="it starts", started_at=time.time() - ago_s)
    found = await look(There(Crowd(starts)), **{QUEUE: (0, 1), DEAD: (0, 0)})
    assert (found.workers[0].state, found.notes) == ("starting", said)


async def test_since_when_a_worker_is_gone_is_told_as_the_table_has_it(look: Look) -> None:
    found = await look(There(Crowd(worker(seen_s=353.0))), **{QUEUE: (0, 0), DEAD: (0, 0)})
    assert found.notes == ("one on a was last heard of 5 min 53 s ago",)


READ_ONLY = "the server is read-only, as a standby is"


class Closed(There):
    """A ledger that lets nobody write."""

    async def check(self) -> None:
        raise LedgerBusy(READ_ONLY)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PATIENCE_S", 0.0)


async def test_where_nobody_can_write_to_the_ledger_that_is_said_and_no_worker_is_gone_whose_consumers_are_there(
    look: Look, impatient: None
) -> None:
    crowd = Crowd(worker(name="one", seen_s=16.0), worker(name="two", seen_s=17.0), worker(name="killed", seen_s=900.0))
    found = await look(Closed(crowd), **{QUEUE: (3, 2), DEAD: (0, 0)})
    assert [one.state for one in found.workers] == ["silent", "silent", "gone"]
    assert found.notes == (
        f"nothing can be claimed or told: {READ_ONLY}; what is said of workers is as of 16 s ago",
        "killed on a was last heard of 15 min ago",
    )
    assert (found.ledger_answers, found.queues[0].workers, found.queues[0].backlog_s) == (False, 2, None)
    told = _ledger(PROJECT, Closed(crowd), found)
    assert (told.state, told.said) == ("fault", f"there: no task could be claimed: {READ_ONLY}")
    assert [one.about for one in _at_work(PROJECT, found) if one.about.startswith("worker")] == ["worker killed"]


async def test_where_others_tell_the_ledger_of_themselves_it_is_this_command_that_can_not_write(
    look: Look, impatient: None
) -> None:
    found = await look(Closed(Crowd(worker())), **{QUEUE: (0, 1), DEAD: (0, 0)})
    assert found.notes == (
        f"nothing can be claimed or told from here: {READ_ONLY}; what is said of workers is as of 1.0 s ago",
    )
    assert (found.ledger_answers, found.workers[0].state) == (True, "working")


async def test_workers_that_are_shut_out_of_a_ledger_that_answers_here_are_not_gone(look: Look) -> None:
    found = await look(There(Crowd(worker(seen_s=16.0))), **{QUEUE: (0, 1), DEAD: (0, 0)})
    assert found.notes == (
        "no worker could tell the ledger anything for 16 s, and the broker has their consumers: see their logs",
    )
    told = _ledger(PROJECT, There(NoBoard()), found)
    assert (told.state, "one could tell it nothing for 16 s" in told.said) == ("fault", True)
    gone = await look(There(Crowd(worker(seen_s=16.0))), **{QUEUE: (0, 0), DEAD: (0, 0)})
    assert [one.state for one in gone.workers] == ["gone"]


async def test_a_ledger_that_is_locked_for_a_moment_is_no_reason(look: Look) -> None:
    class Locked(There):
        looks = 0

        async def check(self) -> None:
            self.looks += 1
            if self.looks == 1:
                raise LedgerBusy("database is locked")

    assert (await look(Locked(Crowd(worker())), **{QUEUE: (0, 1), DEAD: (0, 0)})).notes == ()


async def test_the_ledger_that_lets_nobody_write_is_told_before_what_follows_from_it(
    look: Look, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"id": str(uuid4()), "kind": "nap", "operation": "o", "attempt": 1, "since": 0.0}
    now = await look(Closed(Crowd(worker(seen_s=16.0, in_hand=[held]))), **{QUEUE: (0, 0), DEAD: (0, 0)})
    now = replace(
        now, workers=tuple(replace(one, in_hand=(InHand("i", "nap", "o", 1, now.at),)) for one in now.workers)
    )
    plain = SimpleNamespace(queues=(), version="RabbitMQ 4.0", broker="b", unseen="")
    for name, given in (("plan", plain), ("probe", Probe()), ("status", now)):

        async def gives(*_: object, given: object = given) -> object:
            return given

        monkeypatch.setattr(doctor, name, gives)
    found = [one for one in await doctor.doctor(PROJECT, Closed(NoBoard()), "me") if one.about.startswith(("l", "w"))]
    assert [one.about for one in found] == ["ledger", "worker one"]
    assert found[1].said.endswith("with 1 tasks in hand")


@pytest.mark.parametrize(("consumers", "why"), [(0, "a worker makes it"), (1, "the workers have another one")])
async def test_of_a_ledger_that_is_not_there_no_more_is_told_than_is_known(
    look: Look, consumers: int, why: str
) -> None:
    """It may never have been made, or somebody has deleted it."""
    found = await look(AbsentLedger("sqlite:/there"), **{QUEUE: (0, consumers), DEAD: (0, 0)})
    assert found.notes == (f"there is no ledger at sqlite:/there now: {why}",)


@pytest.mark.parametrize(
    ("depth", "left_s"), [((4, 1), 2.0), ((4, 0), None), ((0, 0), 0.0)], ids=["taken", "by nobody", "empty"]
)
async def test_a_queue_is_empty_in_a_while_only_if_somebody_takes_from_it(
    look: Look, depth: tuple[int, int], left_s: float | None
) -> None:
    found = await look(There(Crowd(worker())), **{QUEUE: depth, DEAD: (0, 0)})
    assert found.queues[0].backlog_s == left_s


async def test_a_worker_whose_place_another_has_taken_counts_no_more(look: Look) -> None:
    now = time.time()
    killed = worker(seen_s=4.0, at=now - 4)
    anew = worker(started_at=now - 2)
    elsewhere, beside = worker(host="b"), worker(name="two")
    found = await look(There(Crowd(killed, anew, elsewhere, beside)), **{QUEUE: (4, 3), DEAD: (0, 0)})
    assert (found.queues[0].workers, found.queues[0].rate, len(found.workers)) == (3, 6.0, 3)
    alone = await look(There(Crowd(worker(started_at=now, at=now - 0.05, seen_s=0.0))), **{QUEUE: (4, 3), DEAD: (0, 0)})
    assert alone.queues[0].workers == 1  # nobody takes its own place, whose first word is at its start
    both = await look(There(Crowd(killed, worker())), **{QUEUE: (4, 3), DEAD: (0, 0)})  # neither began after the other
    assert both.queues[0].workers == 2


@pytest.mark.parametrize("state", ["waiting", "working"])
async def test_a_task_whose_end_waits_to_be_settled_says_so_and_one_that_runs_does_not(
    tmp_path: Path, state: str
) -> None:
    ledger, ended, runs = await open_ledger(Settings(ledger_url=f"sqlite:{tmp_path / 'ledger.db'}")), uuid4(), uuid4()
    for task_id in (ended, runs):
        await ledger.claim(task_id, "one", 60.0, kind="nap", digest=b"", alone=False)
    held = {"id": str(runs), "kind": "nap", "operation": "o", "attempt": 1, "since": 0.0}
    seen = worker(state=state, why="1 of errands can't be settled: no", in_hand=[held])
    await ledger.board.put(seen.id, seen.name, seen.told)
    found = await story(ledger, ended)
    assert (found.state, found.why) == ("running", "1 of errands can't be settled: no")
    assert "; its handler does not run, and one waits: 1 of errands can't be settled: no" in _state(found)
    assert (await story(ledger, runs)).why == ""
    await ledger.close()


async def test_a_worker_that_may_not_publish_is_told_to_hold_what_it_cannot_settle(fast: Site, node: Broker) -> None:
    broken, uri = fast.folder / "broken", fast.uri
    broken.touch()
    fast.uri = user_of(node, uri, ".*", ".*", ".*")
    one = await fast.worker("one", script=MOODY, BROKEN=str(broken), WORKQUEUE_HTTP="127.0.0.1:0")
    vhost, user = uri.rpartition("/")[2], fast.uri.partition("//")[2].partition(":")[0]
    fast.uri = uri
    await asyncio.to_thread(node.ctl, "set_permissions", "-p", vhost, user, ".*", "^$", ".*")
    await fast.send(simulate(1))
    said = rf"! one on \S+: 1 of {fast.queue} can't be settled: .*"

    async def is_told() -> bool:
        return re.search(said, (await workqueue(fast, "status")).out) is not None

    await until(is_told, "it is told", 30.0)
    (queue,) = [queue for queue in (await ask(fast, "status"))["queues"] if queue["queue"] == fast.queue]
    assert queue["in_hand"] == 1
    address = address_of(one)
    code, text = await asked(address, "/readyz")
    assert (code, f"1 of {fast.queue} can't be settled: " in text) == (503, True), text
    found = numbers((await asked(address, "/metrics"))[1])
    assert found[f'workqueue_in_hand{{queue="{fast.queue}"}}'] == 1
    assert found[f'workqueue_oldest_in_hand_seconds{{queue="{fast.queue}"}}'] > 5


async def test_status_needs_no_right_to_publish(fast: Site, node: Broker) -> None:
    await fast.worker("one")
    told = await workqueue(fast, "status", AMQP_URI=user_of(node, fast.uri, ".*", "^$", ".*"))
    assert (told.code, told.err, "!" in told.out) == (0, "", False), told
