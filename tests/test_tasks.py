"""`workqueue tasks`: what waits, runs or has ended, by the ledger, on every store; and the command, as a process."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.harness import Site, simulate
from tests.operators import ask, workqueue
from tests.test_ledger import LONG_S, NOW_S, Store, claimed, ledger, store
from workqueue.cli.tasks import listed
from workqueue.client.status import status_of
from workqueue.ledger import Ledger, Sent, open_ledger
from workqueue.ledger.none import NoLedger
from workqueue.ops.tasks import State, Task, tasks
from workqueue.settings import Settings

__all__ = ["ledger", "store"]  # fixtures

TOLD = "by ops@host: too late"
ANY: dict[str, Any] = {"kind": None, "older_than_s": None}


def age(store: Store, task_id: UUID, seconds: int) -> None:
    """Let a task that waits have waited for so much longer."""
    id, past = (f"'{task_id}'", f"interval '{seconds} s'") if store.mark == "%s" else (f"x'{task_id.hex}'", seconds)
    store.run(f"UPDATE {store.table} SET lease_until = lease_until - {past} WHERE id = {id}")


async def of_every_sort(ledger: Ledger) -> list[UUID]:
    """Tasks in all states, by all ways to them."""
    ids = [uuid4() for _ in range(14)]
    await ledger.record([Sent(task_id, "nap", b"") for task_id in ids[:2]])
    await ledger.cancel(ids[1], TOLD)
    assert await ledger.release(ids[2], (await claimed(ledger, ids[2])).fence, attempts=1, error="no", next_s=LONG_S)
    assert await ledger.release(ids[3], (await claimed(ledger, ids[3])).fence)
    await claimed(ledger, ids[4])
    await claimed(ledger, ids[5], NOW_S)  # whose worker died
    await claimed(ledger, ids[6])
    assert await ledger.cancel(ids[6], TOLD) == "asked"
    claim = await claimed(ledger, ids[7])
    assert await ledger.cancel(ids[7], TOLD) == "asked"
    assert await ledger.renew(ids[7], claim.fence, NOW_S)  # whose worker was asked to stop it, and died
    assert await ledger.complete(ids[8], (await claimed(ledger, ids[8])).fence, 1, '"x"')
    claim = await claimed(ledger, ids[9])
    assert await ledger.cancel(ids[9], TOLD) == "asked"
    assert await ledger.complete(ids[9], claim.fence, 1, '"x"')
    assert await ledger.bury(ids[10], (await claimed(ledger, ids[10])).fence, 1, "failed: no\nTraceback")
    claim = await claimed(ledger, ids[11])
    assert await ledger.bury(ids[11], claim.fence, 1, "failed: no")
    assert await ledger.revive(ids[11], claim.fence)
    await ledger.cancel(ids[12], TOLD)  # which it knows nothing of
    claim = await claimed(ledger, ids[13])
    assert await ledger.cancel(ids[13], TOLD) == "asked"
    assert await ledger.release(ids[13], claim.fence)
    return ids


async def test_each_task_is_listed_once_and_in_the_state_that_its_story_has(ledger: Ledger) -> None:
    expected = {}
    for task_id in await of_every_sort(ledger):
        state = status_of(task_id, await ledger.entry(task_id)).state
        expected[task_id] = "waiting" if state == "retrying" else state
    assert set(expected.values()) == set(State)
    found = [(one.id, state.value) for state in State for one in await ledger.board.tasks(state, 99, **ANY)]
    assert sorted(found) == sorted(expected.items())


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_one_whose_worker_was_killed_waits_where_that_is_seen_at_once(ledger: Ledger, store: Store) -> None:
    task_id = uuid4()
    await claimed(ledger, task_id)
    assert [one.id for one in await ledger.board.tasks("running", 9, **ANY)] == [task_id]
    store.run("UPDATE task SET holder = 'gone'")
    (one,) = await ledger.board.tasks("waiting", 9, **ANY)
    assert (one.id, one.worker, one.since) == (task_id, "w", None)
    assert await ledger.board.tasks("running", 9, **ANY) == []
    assert await ledger.board.tasks("waiting", 9, kind=None, older_than_s=0) == []


async def test_those_that_wait_for_long_are_those_that_are_overdue(ledger: Ledger, store: Store) -> None:
    ids = await of_every_sort(ledger)
    await ledger.record([Sent(task_id := uuid4(), "nap", b"")])
    for one in ids:
        age(store, one, 7200)
    for kind in ("nap", "simulate"):
        (overdue,) = [one for one in await ledger.board.overdue(300) if one.kind == kind]
        found = await ledger.board.tasks("waiting", 99, kind=kind, older_than_s=300)
        assert len(found) == overdue.tasks > 0
        assert overdue.since == min(one.since for one in found if one.since is not None)
        assert UUID(overdue.example) in {one.id for one in found}
        assert {one.kind for one in found} == {kind}
        assert task_id not in {one.id for one in found}
    assert await ledger.board.tasks("waiting", 99, kind="another", older_than_s=None) == []
    assert await ledger.board.tasks("waiting", 99, kind="\udce4 \0", older_than_s=None) == []


async def test_the_oldest_come_first_and_no_more_than_so_many(ledger: Ledger, store: Store) -> None:
    ids = [uuid4() for _ in range(5)]
    await ledger.record([Sent(task_id, "nap", b"") for task_id in ids])
    for number, task_id in enumerate(ids):
        age(store, task_id, 1000 * (number + 1))
    found = await ledger.board.tasks("waiting", 3, **ANY)
    assert [one.id for one in found] == ids[:1:-1]
    assert [one.id for one in await ledger.board.tasks("waiting", 9, kind="nap", older_than_s=3500)] == ids[:2:-1]
    assert found == await ledger.board.tasks("waiting", 3, **ANY)


async def test_what_is_told_of_each(ledger: Ledger, store: Store) -> None:
    now, ids = datetime.now(UTC), await of_every_sort(ledger)
    age(store, ids[0], 60)
    told = {one.id: one for state in State for one in await tasks(ledger, state, 99)}
    by = "by ops@host: too late"

    def seen(at: datetime | None) -> bool:
        return at is not None and abs(at - now) < timedelta(seconds=60)

    for number, state, attempts, worker, reason, error in [
        (2, State.WAITING, 1, "w", None, None), (4, State.RUNNING, 0, "w", None, None),
        (6, State.RUNNING, 0, "w", None, None), (7, State.CANCELLED, 0, "w", None, by),
        (8, State.DONE, 1, "w", None, None), (10, State.DEAD, 1, "w", "failed", "no"),
        (12, State.CANCELLED, 0, None, None, by),
    ]:  # fmt: skip
        one = told[ids[number]]
        assert (one.state, one.attempts, one.worker, one.reason, one.error) == (state, attempts, worker, reason, error)
        assert seen(one.since) is (number != 2)
    one = told[ids[0]]
    assert (one.kind, one.state, one.worker, one.next_at) == ("nap", State.WAITING, None, None)
    assert one.since is not None
    assert timedelta(seconds=50) < now - one.since < timedelta(seconds=120)
    next_at = told[ids[2]].next_at
    assert next_at is not None
    assert seen(next_at - timedelta(seconds=LONG_S))
    assert [one.id for one in told.values() if one.next_at] == [ids[2]]


async def test_without_a_ledger_there_are_none() -> None:
    assert await tasks(NoLedger(), State.WAITING, 9) == []


def test_columns_that_no_task_needs_are_left_out() -> None:
    def columns(*found: Task) -> list[str]:
        return [str(column.header) for column in listed(found).columns]

    one = Task(uuid4(), "nap", State.WAITING, 0, datetime.now(UTC), None, None, None, None)
    always = ["id", "kind", "state", "attempts", "since"]
    assert columns(one) == always
    late = Task(uuid4(), None, State.WAITING, 1, None, "w", datetime.now(UTC) + timedelta(seconds=60), None, None)
    assert columns(one, late) == [*always, "worker", "next"]
    dead = Task(uuid4(), "nap", State.DEAD, 1, datetime.now(UTC), "w", None, "failed", "no")
    assert columns(dead) == [*always, "worker", "error"]


async def given(site: Site, number: int) -> list[str]:
    """Tasks that the ledger has waiting, and nobody else."""
    ids = [one["id"] for one in simulate(number)]
    ledger = await open_ledger(Settings(ledger_url=site.ledger_url))
    await ledger.record([Sent(UUID(one), "nap", b"") for one in ids])
    await ledger.close()
    return ids


async def test_what_is_listed_can_be_called_off(fast: Site) -> None:
    ids = await given(fast, 5)
    told = await workqueue(fast, "tasks")
    assert (told.code, told.err) == (0, "")
    assert told.out.split("\n")[0].split() == ["id", "kind", "state", "attempts", "since"]
    assert {line.split()[0] for line in told.out.splitlines()[1:]} == set(ids)
    assert {one["id"] for one in await ask(fast, "tasks", "--kind", "nap")} == set(ids)
    assert await ask(fast, "tasks", "--older-than", "300") == []
    told = await workqueue(fast, "tasks", "--kind", "nap", "-o", "jsonl")
    found = [json.loads(line)["id"] for line in told.out.splitlines()]
    assert (await workqueue(fast, "cancel", "-", given="\n".join(found))).code == 0
    told = await workqueue(fast, "tasks")
    assert (told.code, told.out, told.err) == (0, "no task is waiting\n", "")
    called_off = await ask(fast, "tasks", "--state", "cancelled")
    assert {one["id"] for one in called_off} == set(ids)
    assert all(one["state"] == "cancelled" and one["error"].startswith("by ") for one in called_off)


@pytest.mark.parametrize("form", ["table", "json", "jsonl"])
async def test_that_there_are_more_is_said(fast: Site, form: str) -> None:
    ids = await given(fast, 3)
    more = "the oldest 2, and there are more; --limit shows them\n"
    for limit, said in ((2, more), (3, ""), (4, "")):
        told = await workqueue(fast, "tasks", "--limit", str(limit), "-o", form)
        assert (told.code, told.err) == (0, said)
        assert sum(told.out.count(one) for one in ids) == min(limit, 3)


async def test_what_can_not_be_meant_is_refused_in_a_line(fast: Site) -> None:
    await given(fast, 1)
    for flags in (
        ["--state", "retrying"], ["--older-than", "-1"], ["--older-than", "nan"], ["--older-than", f"{10**30}"],
        ["--limit", "0"], ["--limit", f"{10**30}"], ["--kind"], ["one"],
    ):  # fmt: skip
        told = await workqueue(fast, "tasks", *flags)
        assert (told.code, told.out, told.err.count("\n")) == (2, "", 1), told
        assert told.err.startswith("workqueue tasks: ")
    told = await workqueue(fast, "tasks", LEDGER_URL="none")
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("workqueue tasks: tasks needs a ledger, and LEDGER_URL is none")
    told = await workqueue(fast, "tasks", "--kind", "another")
    assert (told.code, told.out) == (0, "no task that is meant by these options is waiting\n")
