"""`workqueue forget`: tasks erased from the ledger and from the dead letters, on a real broker and on every store."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.harness import Site, simulate
from tests.operators import ask, start, workqueue
from tests.test_ledger import Store, claimed, ledger, store
from tests.test_operating import MOODY, broken, buried, mend
from workqueue.errors import BrokerUnreachable, WorkQueueError
from workqueue.ledger import Ledger, Sent
from workqueue.ops.desk import Selection
from workqueue.ops.forgetting import Forgotten, LettersStay, forget
from workqueue.ops.letters import Filter, Letter
from workqueue.ops.moving import Moved
from workqueue.testing import until

__all__ = ["broken", "ledger", "store"]  # fixtures

SECRET = "somebody's name"


async def ended(ledger: Ledger) -> dict[str, UUID]:
    made = {state: uuid4() for state in ("done", "dead", "cancelled")}
    done, dead = await claimed(ledger, made["done"]), await claimed(ledger, made["dead"])
    assert await ledger.complete(made["done"], done.fence, 1, f'"{SECRET}"')
    assert await ledger.bury(made["dead"], dead.fence, 1, SECRET, failed=SECRET)
    await ledger.cancel(made["cancelled"], SECRET)
    return made


async def test_what_is_finished_is_forgotten_and_nothing_else(ledger: Ledger) -> None:
    sent, runs = uuid4(), uuid4()
    await ledger.record([Sent(sent, "simulate", b"one")])
    await claimed(ledger, runs)
    for task_id in (sent, runs, uuid4()):
        assert not await ledger.forget(task_id)
    assert await ledger.entry(sent) is not None
    made = await ended(ledger)
    for task_id in made.values():
        assert await ledger.forget(task_id)
        assert not await ledger.forget(task_id)
        assert await ledger.entry(task_id) is None
    assert await ledger.outcomes(list(made.values())) == []
    assert (await claimed(ledger, made["done"])).fence == 1  # a copy that comes later is a new task


async def test_its_bytes_do_not_stay_in_the_file(tmp_path: Path) -> None:
    store = Store(f"sqlite:{tmp_path / 'ledger.db'}")
    opened = await store.open()
    made = await ended(opened)
    await opened.close()
    assert SECRET.encode() in (tmp_path / "ledger.db").read_bytes()
    opened = await store.open()
    for task_id in made.values():
        assert await opened.forget(task_id)
    await opened.close()
    assert SECRET.encode() not in (tmp_path / "ledger.db").read_bytes()


class FakeDesk:
    """Has a letter of each of these tasks; `fails` in place of dropping them."""

    def __init__(self, ids: list[UUID], fails: WorkQueueError | None = None, unsure: int = 0) -> None:
        self.ids, self.fails, self.unsure = list(ids), fails, unsure

    async def letters(self, wanted: Filter) -> list[Letter]:
        return [
            Letter(str(id), str(id), "q", "nap", "failed", SECRET, None, "w", 1, 0, "1", 1, None)
            for id in self.ids if str(id) in wanted.ids
        ]  # fmt: skip

    async def select(self, action: Any, wanted: Filter, *, force: bool) -> Selection:
        letters = tuple(await self.letters(wanted))
        return Selection(action, len(letters), letters, ())

    async def move(self, selection: Selection, moved: Moved) -> None:
        moved.ended_by, moved.unsure = self.fails, self.unsure
        if self.fails is None and not self.unsure:
            self.ids = [id for id in self.ids if str(id) not in {letter.id for letter in selection.letters}]


async def erase(ledger: Ledger, desk: FakeDesk, ids: list[UUID]) -> list[Forgotten]:
    return await forget(ledger, desk, ids, why="request 7")  # type: ignore[arg-type]


async def test_the_ledger_knows_a_task_until_its_letters_are_gone(ledger: Ledger) -> None:
    """Or one that somebody sends back would be a new task."""
    made = await ended(ledger)
    for desk, error in (
        (FakeDesk([made["dead"]], BrokerUnreachable("q", "it is away")), BrokerUnreachable),
        (FakeDesk([made["dead"]], unsure=1), LettersStay),
    ):
        with pytest.raises(error):
            await erase(ledger, desk, list(made.values()))
        assert await ledger.entry(made["dead"]) is not None
    desk = FakeDesk([made["dead"]])
    found = await erase(ledger, desk, list(made.values()))
    assert [(one.state, one.row, one.letters) for one in found] == [
        ("done", True, 0), ("dead", True, 1), ("cancelled", True, 0),
    ]  # fmt: skip
    assert desk.ids == []
    (note,) = await ledger.board.notes(9)
    assert (note.what, note.why, note.told) == ("forget", "request 7", '{"tasks": 3, "rows": 3, "letters": 1}')


async def test_what_a_killed_worker_told_of_the_task_is_erased_too(ledger: Ledger) -> None:
    """Its id, and what its handler said of its progress; the next row of a worker that lives replaces its last."""
    made = await ended(ledger)
    for name, held in (("killed", [made["cancelled"]]), ("other", [uuid4()]), ("idle", [])):
        told = {"in_hand": [{"id": str(id), "text": SECRET} for id in held]}
        await ledger.board.put(uuid4(), name, json.dumps(told))
    await erase(ledger, FakeDesk([]), [made["done"]])
    assert len(await ledger.board.seen(9.0)) == 3
    await ledger.forget(made["cancelled"])  # and then it was killed
    await erase(ledger, FakeDesk([]), [made["cancelled"]])
    assert [seen.name for seen in await ledger.board.seen(9.0)] == ["idle", "other"]


async def test_one_that_was_called_off_and_whose_worker_died_is_erased_though_nothing_came_to_end_it(
    ledger: Ledger,
) -> None:
    """Its message is gone, too: it was purged."""
    task_id = uuid4()
    await claimed(ledger, task_id, 0.5)
    assert await ledger.cancel(task_id, SECRET) == "asked"
    (found,) = await erase(ledger, FakeDesk([]), [task_id])
    assert (found.state, found.row) == ("running", False)
    await asyncio.sleep(0.6)
    (found,) = await erase(ledger, FakeDesk([]), [task_id])
    assert (found.state, found.row) == ("cancelled", True)
    assert await ledger.entry(task_id) is None


async def test_a_letter_that_was_left_when_its_task_was_forgotten_goes_at_the_next_time(ledger: Ledger) -> None:
    desk = FakeDesk([uuid4()])
    (found,) = await erase(ledger, desk, list(desk.ids))
    assert (found.state, found.row, found.letters, desk.ids) == ("unknown", False, 1, [])


async def test_one_that_is_sent_back_in_between_stays_and_is_said(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = (await ended(ledger))["dead"]
    desk, select = FakeDesk([]), FakeDesk.select

    async def revived(self: FakeDesk, *given: Any, **named: Any) -> Selection:
        assert await ledger.revive(dead, 1)
        return await select(self, *given, **named)

    monkeypatch.setattr(FakeDesk, "select", revived)
    (found,) = await erase(ledger, desk, [dead])
    assert (found.state, found.row) == ("waiting", False)


async def test_a_task_is_erased_with_its_letter_and_a_copy_that_comes_later_is_run(fast: Site, broken: Path) -> None:
    await fast.worker("one", script=MOODY)
    one, other = await buried(fast, 2)
    told = await workqueue(fast, "forget", one["id"])
    assert (told.code, "nobody can be asked" in told.err) == (2, True)
    told = await workqueue(fast, "forget", one["id"], "--dry-run")
    assert (told.code, told.err, one["id"] in told.out) == (0, "", True)
    assert await fast.depth_is(2, fast.dead_queue)
    told = await workqueue(fast, "forget", one["id"], "--yes", "--why", "request 7")
    assert (told.code, told.err) == (0, "a copy of a message that comes later is a new task, and is run\n")
    assert told.out.splitlines()[1].split() == [one["id"], "dead", "erased", "1"]
    assert await fast.depth_is(1, fast.dead_queue)
    assert [letter["id"] for letter in await ask(fast, "dead", "list")] == [other["id"]]
    assert (await ask(fast, "task", one["id"]))["state"] == "unknown"
    notes = await ask(fast, "audit")
    assert (notes[-1]["what"], notes[-1]["why"]) == ("forget", "request 7")
    assert one["id"] not in str(notes)
    told = await workqueue(fast, "forget", "-", "--yes", given=one["id"])
    assert (told.code, told.err.startswith(f"nothing is kept of {one['id']}")) == (0, True)
    mend(broken)
    await fast.send([one])
    await until(lambda: fast.ended()[one["id"]] == 1, "it is done")


async def test_one_that_runs_or_waits_is_left_alone(site: Site) -> None:
    await site.worker("one")
    runs, done, waits = *simulate(1, seconds=60), *simulate(1), {"id": str(uuid4())}
    await site.send([done])
    await site.all_end([done])
    await site.send([runs])
    await until(lambda: state_is(site, runs, "running"), "it runs")
    sent = await workqueue(site, "send", "nap", "seconds=0", "failures=0", "--id", waits["id"], *site.to)
    assert sent.code == 0, sent.err
    told = await workqueue(site, "forget", runs["id"], waits["id"], done["id"], "--yes", "-o", "json")
    assert told.code == 1
    assert [(one["state"], one["row"]) for one in told.value] == [
        ("running", False),
        ("waiting", False),
        ("done", True),
    ]
    assert f"{runs['id']} is running, and is left alone: workqueue cancel {runs['id']}" in told.err
    assert (await ask(site, "task", waits["id"]))["state"] == "waiting"
    assert (await workqueue(site, "cancel", waits["id"])).code == 0
    told = await workqueue(site, "forget", waits["id"], "--yes")
    assert told.code == 0
    assert f"if no worker has taken the message of {waits['id']} from its queue since it was cancelled" in told.err
    for arguments, problem in ((("forget", "7", "--yes"), "'7' is no id of a task"), (("forget",), "ID...")):
        told = await workqueue(site, *arguments)
        assert (told.code, problem in told.err) == (2, True), told.err
    told = await workqueue(site, "forget", done["id"], "--yes", LEDGER_URL="none")
    assert (told.code, "needs a ledger" in told.err) == (2, True)


async def test_an_id_in_capitals_is_the_same_id(fast: Site) -> None:
    """Of a body that no worker could take, as its sender has written it."""
    await fast.worker("one", script=MOODY)
    id = str(uuid4())
    await fast.publish(json.dumps({"id": id.upper(), "payload": {}}).encode())
    await until(lambda: fast.depth_is(1, fast.dead_queue), "it is a dead letter")
    (letter,) = await ask(fast, "dead", "list", "--id", id.upper())
    assert letter["id"] == id
    assert (await workqueue(fast, "dead", "show", id.upper())).code == 0
    told = await workqueue(fast, "forget", id.upper(), "--yes")
    assert (told.code, told.out.split()[-4:]) == (0, [id, "dead", "erased", "1"])
    assert await fast.depth_is(0, fast.dead_queue)


async def state_is(site: Site, one: dict[str, Any], state: str) -> bool:
    return bool((await ask(site, "task", one["id"]))["state"] == state)


async def test_killed_again_and_again_and_asked_for_again_it_ends_right(fast: Site, broken: Path) -> None:
    await fast.worker("one", script=MOODY)
    ids = [one["id"] for one in await buried(fast, 12)]
    opened = await Store(fast.ledger_url).open()
    for _ in range(6):
        process = await start(fast, "forget", *ids, "--yes")
        await asyncio.sleep(random.uniform(0.5, 1.5))
        if process.returncode is None:
            process.kill()
        await process.communicate()
        letters = {letter["id"] for letter in await ask(fast, "dead", "list")}
        assert all([await opened.entry(UUID(id)) is not None for id in letters])
    told = await workqueue(fast, "forget", *ids, "--yes")
    assert told.code == 0, told.err
    assert await fast.depth_is(0, fast.dead_queue)
    assert [await opened.entry(UUID(id)) for id in ids] == [None] * len(ids)
    await opened.close()
