"""What the ledger says of a task whose dead letter was edited or dropped: on queues in memory."""

import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from tests.harness import ERRANDS, simulate
from tests.test_desk import given
from tests.test_ledger import claimed
from workqueue import codec, contract
from workqueue.amqp.frames import Arrival
from workqueue.cli.task import _state
from workqueue.client import asking
from workqueue.client.results import Results
from workqueue.delivery import Properties
from workqueue.errors import BrokerUnreachable, TaskDead
from workqueue.ledger import Claimed, Ledger, LedgerBusy, open_ledger
from workqueue.ops import desk, editing, moving
from workqueue.ops.audit import operator
from workqueue.ops.desk import Desk
from workqueue.ops.editing import Edit, carry_out, edit
from workqueue.ops.letters import Filter, key_of
from workqueue.ops.moving import Moved
from workqueue.ops.project import Project
from workqueue.ops.story import Story, story
from workqueue.settings import Settings

PACKAGE = "tests.generated.worker"
PROJECT = Project(Path(), {PACKAGE: contract.load(PACKAGE)}, Settings())
ERROR = "failed: RuntimeError: no\nTraceback (most recent call last):\n"
ALL = Filter(queues=frozenset([ERRANDS.queue.name]))


class Killed(BaseException):
    pass


class Steps:
    """Of a command: it is killed just before the `kill_at`th, or just after it; never with None."""

    kill_at: int | None = None
    after = False

    async def take(self, effect: Coroutine[Any, Any, Any]) -> Any:
        last, self.kill_at = self.kill_at == 0, None if self.kill_at is None else self.kill_at - 1
        if last and not self.after:
            effect.close()
            raise Killed
        done = await effect
        if last:
            raise Killed
        return done


class Queue:
    """The dead letters, held by whoever looks; and what was published."""

    def __init__(self) -> None:
        self.letters, self.sent = list[Arrival](), list[str]()
        self.steps, self.cut, self.is_open, self.untaken, self.read, self.ready = Steps(), False, True, 0, 0, 0

    @asynccontextmanager
    async def hold(self, *_: Any) -> AsyncIterator["Queue"]:
        yield self

    async def __aiter__(self) -> AsyncIterator[Arrival]:
        for arrived in list(self.letters):
            yield arrived

    async def done(self, arrived: Arrival) -> None:
        await self.steps.take(self._done(arrived))

    async def _done(self, arrived: Arrival) -> None:
        if self.cut:
            raise BrokerUnreachable("q", "the connection was lost")
        self.letters.remove(arrived)

    async def end(self) -> None:
        pass

    async def send(self, *_: Any, message_id: str, **__: Any) -> None:
        await self.steps.take(self._send(message_id))

    async def _send(self, message_id: str) -> None:
        self.sent.append(message_id)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    for module in (desk, editing, moving):
        monkeypatch.setattr(module, "hold", queue.hold)
    for module in (editing, moving):
        monkeypatch.setattr(module, "Publisher", lambda *_: queue)
    monkeypatch.setattr(Desk, "for_itself", lambda *_: given(None))
    return queue


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(Settings(ledger_url=f"sqlite:{tmp_path / 'ledger.db'}"))
    yield opened
    await opened.close()


async def buried(queue: Queue, ledger: Ledger) -> UUID:
    """A task that is dead, with its letter."""
    (task,) = simulate(1)
    task_id = UUID(task["id"])
    fence = (await claimed(ledger, task_id)).fence
    assert await ledger.bury(task_id, fence, 1, ERROR)
    headers = {"x-reason": "failed", "x-error": "RuntimeError: no", "x-died-at": str(fence), "x-burial": fence}
    body = json.dumps(task).encode()
    queue.letters.append(Arrival(1, False, Properties(headers=headers, message_id=task["id"]), len(body), body))
    return task_id


async def edited(at: Desk) -> Edit:
    (opened,) = await at.open(ALL)
    return edit(PROJECT, opened, {"seconds": 7})


async def drop(at: Desk, why: str = "of no use") -> Moved:
    selection = await at.select("drop", ALL, force=False)
    moved = Moved("drop", operator(), why)
    await at.move(selection, moved)
    return moved


async def told(ledger: Ledger, task_id: UUID) -> tuple[Story, str]:
    """The task's story, and the error that its status and result have, too."""
    found, results = await story(ledger, task_id), Results(ledger, {"send": cast(Any, None)})
    with pytest.raises(TaskDead) as caught:
        await results.result(task_id, timeout_s=9.0)
    assert (await results.status(task_id)).error == caught.value.error == found.error
    await results.close()
    return found, caught.value.error


async def test_who_asks_for_a_task_whose_letter_was_edited_learns_as_which_one_it_was_sent(
    queue: Queue, ledger: Ledger
) -> None:
    task_id, at = await buried(queue, ledger), Desk(PROJECT, ledger, "me")
    assert _state(await story(ledger, task_id)) == f"dead, failed: RuntimeError: no  (workqueue dead show {task_id})"
    wanted = await edited(at)
    await carry_out(PROJECT, at, "me", wanted, why="too short")
    found, error = await told(ledger, task_id)
    assert error == f"RuntimeError: no; edited, and sent as {wanted.id}"
    (removal,) = found.removals
    assert (removal.by, removal.why, removal.sent_as) == (operator(), "too short", wanted.id)
    assert _state(found) == f"dead, failed: {error}  (workqueue task {wanted.id})"
    new = await story(ledger, wanted.id)
    assert (new.state, new.kind) == ("waiting", "nap")
    answer = await ledger.claim(wanted.id, "w", 9.0, kind="nap", digest=codec.digest(wanted.body), alone=False)
    assert isinstance(answer, Claimed)
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.error == f"failed: {error}\n{ERROR.partition(chr(10))[2]}"


async def test_who_asks_for_a_task_whose_letter_was_dropped_learns_that_it_is_gone(
    queue: Queue, ledger: Ledger
) -> None:
    task_id, at = await buried(queue, ledger), Desk(PROJECT, ledger, "me")
    assert (await drop(at)).moved == 1
    found, error = await told(ledger, task_id)
    assert error == "RuntimeError: no; its letter was dropped"
    assert [(one.by, one.why, one.sent_as) for one in found.removals] == [(operator(), "of no use", None)]
    assert _state(found) == f"dead, failed: {error}"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kill_at", range(5))
async def test_an_edit_that_is_killed_at_any_step_and_asked_for_again_leaves_nothing_doubled_or_untold(
    queue: Queue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, kill_at: int, after: bool
) -> None:
    task_id, at = await buried(queue, ledger), Desk(PROJECT, ledger, "me")
    wanted = await edited(at)
    record, tell, note, steps = ledger.record, ledger.tell, ledger.board.note, queue.steps
    monkeypatch.setattr(ledger, "record", lambda *given: steps.take(record(*given)))
    monkeypatch.setattr(ledger, "tell", lambda *given: steps.take(tell(*given)))
    monkeypatch.setattr(ledger.board, "note", lambda *given: steps.take(note(*given)))
    steps.kill_at, steps.after = kill_at, after
    with pytest.raises(Killed):
        await carry_out(PROJECT, at, "me", wanted, why="too short")
    steps.kill_at = None
    if queue.letters:
        await carry_out(PROJECT, at, "me", await edited(at), why="too short")
    assert queue.letters == []
    assert set(queue.sent) == {str(wanted.id)}
    assert (await story(ledger, wanted.id)).state == "waiting"
    found, error = await told(ledger, task_id)
    assert error == f"RuntimeError: no; edited, and sent as {wanted.id}"
    assert [one.sent_as for one in found.removals] == [wanted.id]
    assert {one.what for one in await ledger.board.notes(9)} == {"dead edit"}


async def test_a_drop_that_is_cut_off_and_asked_for_again_tells_it_once(queue: Queue, ledger: Ledger) -> None:
    task_id, at = await buried(queue, ledger), Desk(PROJECT, ledger, "me")
    queue.cut = True
    assert len((await drop(at)).left) == 1
    queue.cut = False
    assert (await drop(at)).moved == 1
    found, error = await told(ledger, task_id)
    assert (error, len(found.removals)) == ("RuntimeError: no; its letter was dropped", 1)


async def test_no_letter_is_taken_away_of_which_the_ledger_can_not_be_told(
    queue: Queue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = Desk(PROJECT, ledger, "me")
    for _ in range(moving.AT_ONCE + 9):
        await buried(queue, ledger)
    asks = 0

    async def silent(*_: Any) -> bool:
        nonlocal asks
        asks += 1
        raise LedgerBusy("locked")

    monkeypatch.setattr(ledger, "tell", silent)
    monkeypatch.setattr(asking, "PATIENCE_S", 0.0)
    moved = await drop(at)
    assert (moved.moved, len(queue.letters)) == (0, moving.AT_ONCE + 9)
    assert "locked" in str(moved.ended_by)
    assert asks < 3 * moving.AT_ONCE  # not one after the other, each with its patience


async def test_a_letter_that_was_to_be_dropped_and_was_sent_back_is_one_again(queue: Queue, ledger: Ledger) -> None:
    task_id, at = await buried(queue, ledger), Desk(PROJECT, ledger, "me")
    queue.cut = True
    await drop(at)
    queue.cut, (letter,) = False, queue.letters
    moved = Moved("redrive", operator(), "after all")
    await at.move(await at.select("redrive", ALL, force=False), moved)
    assert (moved.moved, queue.sent) == (1, [str(task_id)])
    fence = (await claimed(ledger, task_id)).fence
    assert await ledger.bury(task_id, fence, 1, ERROR)
    found, error = await told(ledger, task_id)
    assert error == "RuntimeError: no"
    assert [len(found.removals), len(found.returns)] == [1, 1]
    assert _state(found).endswith(f"(workqueue dead show {task_id})")
    queue.letters.append(letter)  # a copy of the one before, which is not the task's any more
    await drop(at)
    assert (await told(ledger, task_id))[1] == "RuntimeError: no"


async def test_a_letter_that_is_no_tasks_tells_nothing(queue: Queue, ledger: Ledger) -> None:
    task_id, at = await buried(queue, ledger), Desk(PROJECT, ledger, "me")
    (letter,) = queue.letters
    assert letter.properties is not None
    without = {name: value for name, value in letter.properties.headers.items() if name != "x-burial"}
    queue.letters[:] = [
        Arrival(2, False, letter.properties._replace(headers=without), letter.size, letter.body),
        Arrival(3, False, letter.properties._replace(message_id="x"), 2, b"no"),
    ]
    assert len({key_of(arrived) for arrived in queue.letters}) == 2
    assert (await drop(at)).moved == 2
    assert (await told(ledger, task_id))[1] == "RuntimeError: no"
