"""What a ledger keeps beside its tasks, on every store: who works, what operators did, and a task's failed attempts."""

import asyncio
import time
from uuid import UUID, uuid4

import pytest

from tests.test_ledger import ASKED, LONG_S, Store, ledger, store
from workqueue.ledger import Claimed, Ledger, Sent
from workqueue.ledger.none import NoLedger
from workqueue.ledger.texts import STORY_LENGTH
from workqueue.ops.deaths import by_reason

__all__ = ["ledger", "store"]  # fixtures

WHO = "ops@host"


async def test_a_process_is_seen_with_what_it_told_last_until_it_ends(ledger: Ledger) -> None:
    one, two = uuid4(), uuid4()
    await ledger.board.put(two, "w2", "{}")
    await ledger.board.put(one, "w1", '{"done": 1}')
    await ledger.board.put(one, "w1", '{"done": 2}')
    seen = await ledger.board.seen(LONG_S)
    assert [(each.id, each.name, each.told) for each in seen] == [(one, "w1", '{"done": 2}'), (two, "w2", "{}")]
    assert all(0 <= each.seen_s < 10 for each in seen)
    await ledger.board.remove(one)
    await ledger.board.remove(one)
    assert [each.name for each in await ledger.board.seen(LONG_S)] == ["w2"]


async def test_a_process_that_tells_no_more_is_older_each_time_and_is_forgotten_in_the_end(ledger: Ledger) -> None:
    await ledger.board.put(uuid4(), "w1", "{}")
    await asyncio.sleep(0.3)
    (seen,) = await ledger.board.seen(LONG_S)
    assert 0.3 <= seen.seen_s < 10
    assert await ledger.board.seen(0.2) == []
    assert await ledger.board.forget(LONG_S) == 0
    assert await ledger.board.forget(0.2) == 1
    assert await ledger.board.seen(LONG_S) == []


async def test_what_operators_did_is_kept_the_newest_first(ledger: Ledger) -> None:
    for number in range(3):
        await ledger.board.note(WHO, "dead drop", f"why {number}", "{}")
        await asyncio.sleep(0.01)
    notes = await ledger.board.notes(2)
    assert [(note.who, note.what, note.why, note.told) for note in notes] == [
        (WHO, "dead drop", "why 2", "{}"), (WHO, "dead drop", "why 1", "{}"),
    ]  # fmt: skip
    assert abs(notes[0].at - time.time()) < 10


async def test_each_failed_attempt_is_a_line_of_the_story_and_stays_after_the_burial_and_the_revival(
    ledger: Ledger, store: Store
) -> None:
    task_id = uuid4()
    for number in (1, 2):
        answer = await ledger.claim(task_id, "w1", LONG_S, **ASKED)
        assert isinstance(answer, Claimed)
        assert await ledger.release(task_id, answer.fence, attempts=number, error="no", failed=f"line {number}\n")
    answer = await ledger.claim(task_id, "w1", LONG_S, **ASKED)
    assert isinstance(answer, Claimed)
    assert await ledger.release(task_id, answer.fence)  # of a drain: no attempt
    answer = await ledger.claim(task_id, "w1", LONG_S, **ASKED)
    assert isinstance(answer, Claimed)
    assert await ledger.bury(task_id, answer.fence, 3, "failed: no", failed="line 3 \0 \ud800\n")
    told = "line 1\nline 2\nline 3 \\x00 \\ud800\n"
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.story == told
    assert await ledger.revive(task_id, answer.fence, told="back\n")
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.story == f"{told}back\n"


async def test_a_task_that_never_failed_has_no_story(ledger: Ledger) -> None:
    task_id = uuid4()
    answer = await ledger.claim(task_id, "w1", LONG_S, **ASKED)
    assert isinstance(answer, Claimed)
    assert await ledger.bury(task_id, answer.fence, 0, "crashed: it killed them all")
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.story is None


async def test_of_a_long_story_the_latest_part_is_kept(ledger: Ledger) -> None:
    task_id, line = uuid4(), "x" * 2_499 + "\n"
    for number in range(STORY_LENGTH // len(line) + 3):
        answer = await ledger.claim(task_id, "w1", LONG_S, **ASKED)
        assert isinstance(answer, Claimed)
        assert await ledger.release(task_id, answer.fence, attempts=number, error="no", failed=f"{number}{line}")
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.story is not None
    assert len(entry.story) == STORY_LENGTH
    assert entry.story.endswith(f"{number}{line}")


@pytest.mark.parametrize("minor", [0, 1, 2])
async def test_a_ledger_of_the_version_before_gains_what_it_lacks(store: Store, minor: int) -> None:
    """`minor`: as that version would have left it, with a task in it."""
    ledger = await store.open()
    task_id = uuid4()
    answer = await ledger.claim(task_id, "w1", LONG_S, **ASKED)
    assert isinstance(answer, Claimed)
    await ledger.close()
    without = [] if store.table == "task" else ["request", "requested"]
    if minor < 2:
        without += ["story", "checkpoint", "cancel"]
        for table in ("worker", "audit", "pause"):
            store.run(f"DROP TABLE workqueue_{table}")
    if minor < 1:
        without += ["kind", "digest", "alone", "next_at", "created_at", "claimed_at", "last_error"]
        without += ["ends_at"] if store.table == "task" else []
    for column in without:
        store.run(f"ALTER TABLE {store.table} DROP COLUMN {column}")
    store.run(f"UPDATE workqueue_meta SET value = '1.{minor}' WHERE key = 'schema_version'")
    if minor == 0:
        store.run("DELETE FROM workqueue_meta WHERE key = 'schema_version'")
    ledger = await store.open()
    await ledger.board.put(uuid4(), "w1", "{}")
    assert len(await ledger.board.seen(LONG_S)) == 1
    assert await ledger.board.pauses() == []
    assert await ledger.save(task_id, answer.fence, "1")
    assert await ledger.release(task_id, answer.fence, failed="line\n")
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert entry.story == "line\n"
    await ledger.close()


async def test_without_a_ledger_nothing_is_known_and_nothing_kept() -> None:
    board = NoLedger().board
    await board.put(uuid4(), "w1", "{}")
    await board.note(WHO, "dead drop", "", "{}")
    await board.remove(uuid4())
    assert (await board.seen(LONG_S), await board.notes(9), await board.forget(0.0)) == ([], [], 0)
    assert (await board.pause("q", WHO, ""), await board.resume("q"), await board.pauses()) == (False, False, [])


async def test_what_tasks_died_of_is_counted_by_kind_and_reason(ledger: Ledger, store: Store) -> None:
    old = [("nap", "failed: no\nTraceback: it has colons"), ("nap", "gave-up: no"), ("mail", "crashed: 3 workers died")]
    for kind, error in [*old, *old[:1], ("nap", "an error: of a version that kept no reason")]:
        task_id = uuid4()
        claim = await ledger.claim(task_id, "w1", LONG_S, **{**ASKED, "kind": kind})
        assert isinstance(claim, Claimed)
        assert await ledger.bury(task_id, claim.fence, 1, error)
    await ledger.cancel(uuid4(), "cancelled: by ops")
    found = by_reason(await ledger.board.deaths())
    assert [(one.reason, one.kind, one.count, one.hour) for one in found] == [
        ("failed", "nap", 3, 3), ("crashed", "mail", 1, 1), ("gave-up", "nap", 1, 1),
    ]  # fmt: skip
    assert all(abs(one.newest.timestamp() - time.time()) < 10 for one in found)
    past = "finished_at - 7200" if store.mark == "?" else "finished_at - interval '2 hours'"
    store.run(f"UPDATE {store.table} SET finished_at = {past}")
    assert [(one.count, one.hour) for one in by_reason(await ledger.board.deaths())] == [(3, 0), (1, 0), (1, 0)]


async def test_tasks_that_nobody_has_for_long_are_counted_by_kind(ledger: Ledger, store: Store) -> None:
    ids = [uuid4() for _ in range(4)]
    await ledger.record([Sent(task_id, "nap", b"") for task_id in ids[:2]])
    for task_id in ids[2:]:
        assert isinstance(await ledger.claim(task_id, "w", 30, kind="mail", digest=b"", alone=True), Claimed)
    assert await ledger.complete(ids[3], 1, 0, None)
    assert await ledger.board.overdue(300) == []
    past = "lease_until - 7200, ends_at = 0" if store.mark == "?" else "lease_until - interval '2 hours'"
    store.run(f"UPDATE {store.table} SET lease_until = {past}")
    found = {one.kind: one for one in await ledger.board.overdue(300)}
    assert {kind: one.tasks for kind, one in found.items()} == {"nap": 2, "mail": 1}
    assert {UUID(found["nap"].example), UUID(found["mail"].example)} <= set(ids[:3])
    assert abs(time.time() - 7200 - found["nap"].since) < 60


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_a_task_that_runs_is_not_overdue_though_the_wall_clock_was_set_ahead(
    ledger: Ledger, store: Store
) -> None:
    assert isinstance(await ledger.claim(uuid4(), "w", LONG_S, **ASKED), Claimed)
    store.run("UPDATE task SET lease_until = lease_until - 7200")
    assert await ledger.board.overdue(300) == []
    store.run("UPDATE task SET holder = 'of a process that was killed'")
    assert [one.tasks for one in await ledger.board.overdue(300)] == [1]
