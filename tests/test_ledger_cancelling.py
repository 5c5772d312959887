"""A cancellation in the ledger, on every store: no claim on the task is granted any more, whatever comes when."""

import asyncio
import time
from uuid import uuid4

from tests.test_ledger import ASKED, LONG_S, NOW_S, Store, claimed, ledger, store
from workqueue.ledger import Finished, Ledger, Sent

__all__ = ["ledger", "store"]  # fixtures

TOLD = "by ops@host: a mistake"
ERROR = f"cancelled: {TOLD}"


async def test_a_task_that_waits_is_cancelled_at_once_and_for_good(ledger: Ledger) -> None:
    task_id = uuid4()
    await ledger.record([Sent(task_id, "simulate", b"one")])
    assert await ledger.cancel(task_id, TOLD) == "cancelled"
    assert await ledger.cancel(task_id, "by another: later") == "cancelled"
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("cancelled", 1)
    entry, (outcome,) = await ledger.entry(task_id), await ledger.outcomes([task_id])
    assert entry is not None
    assert (entry.state, entry.error, entry.kind) == ("cancelled", ERROR, "simulate")
    assert entry.finished_at is not None
    assert abs(entry.finished_at - time.time()) < 10
    assert (outcome.state, outcome.error) == ("cancelled", ERROR)
    assert not await ledger.revive(task_id, 1)


async def test_a_task_between_two_attempts_keeps_its_story(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    await ledger.release(task_id, claim.fence, attempts=1, error="no", failed='{"attempt": 1}\n', next_s=LONG_S)
    assert await ledger.cancel(task_id, TOLD) == "cancelled"
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.attempts, entry.story, entry.last_error) == ("cancelled", 1, '{"attempt": 1}\n', "no")
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("cancelled", claim.fence + 1)


async def test_a_task_that_nobody_knows_is_cancelled_should_it_come(ledger: Ledger) -> None:
    task_id = uuid4()
    assert await ledger.cancel(task_id, TOLD) == "cancelled"
    await ledger.record([Sent(task_id, "simulate", b"one")])
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("cancelled", 0)


async def test_what_is_finished_stays_so(ledger: Ledger) -> None:
    done, dead = uuid4(), uuid4()
    assert await ledger.complete(done, (await claimed(ledger, done)).fence, 1, None)
    assert await ledger.bury(dead, (await claimed(ledger, dead)).fence, 6, "failed: no")
    assert await ledger.cancel(done, TOLD) == "done"
    assert await ledger.cancel(dead, TOLD) == "dead"
    for task_id, state in ((done, "done"), (dead, "dead")):
        entry = await ledger.entry(task_id)
        assert entry is not None
        assert (entry.state, entry.cancel) == (state, None)


async def test_of_a_task_that_runs_the_worker_is_asked_and_may_end_it_as_cancelled(ledger: Ledger) -> None:
    task_id, other = uuid4(), uuid4()
    claim = await claimed(ledger, task_id)
    await claimed(ledger, other)
    assert await ledger.to_cancel([task_id, other]) == {}
    assert await ledger.cancel(task_id, TOLD) == "asked"
    assert await ledger.cancel(task_id, "by another: later") == "asked"
    assert await ledger.to_cancel([task_id, other]) == {task_id: ERROR}
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.held, entry.cancel) == ("running", True, ERROR)
    assert await ledger.bury(task_id, claim.fence, 1, ERROR)
    assert await ledger.to_cancel([task_id]) == {}
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.error) == ("cancelled", ERROR)


async def test_one_that_is_done_before_its_worker_heard_of_it_is_done(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    assert await ledger.cancel(task_id, TOLD) == "asked"
    assert await ledger.complete(task_id, claim.fence, 1, '{"a":1}')
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.result) == ("done", '{"a":1}')
    assert await ledger.cancel(task_id, TOLD) == "done"


async def test_one_that_died_for_another_reason_is_dead_and_may_be_revived(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    assert await ledger.cancel(task_id, TOLD) == "asked"
    assert await ledger.bury(task_id, claim.fence, 6, "failed: no")
    (outcome,) = await ledger.outcomes([task_id])
    assert outcome.state == "dead"
    assert await ledger.cancel(task_id, TOLD) == "dead"


async def test_an_attempt_that_fails_after_it_was_asked_is_the_last(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    assert await ledger.cancel(task_id, TOLD) == "asked"
    assert await ledger.release(task_id, claim.fence, attempts=1, error="no")
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("cancelled", claim.fence + 1)
    (outcome,) = await ledger.outcomes([task_id])
    assert outcome.error == ERROR


async def test_a_claim_that_ended_with_its_worker_is_ended_by_the_cancellation(ledger: Ledger) -> None:
    """Its message may be gone by then, so that nobody would come to end it: it could not be forgotten either."""
    task_id = uuid4()
    claim = await claimed(ledger, task_id, NOW_S)
    assert await ledger.cancel(task_id, TOLD) == "cancelled"
    assert await ledger.cancel(task_id, TOLD) == "cancelled"
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.error) == ("cancelled", ERROR)
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("cancelled", claim.fence + 1)
    assert not await ledger.complete(task_id, claim.fence, 1, None)


async def test_a_claim_that_ends_with_its_worker_after_it_was_asked_is_the_last_too(ledger: Ledger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id, 0.5)
    assert await ledger.cancel(task_id, TOLD) == "asked"
    assert await ledger.board.overdue(-LONG_S) == []  # nobody need look for it
    await asyncio.sleep(0.6)
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("cancelled", claim.fence + 1)


async def test_a_checkpoint_is_for_the_next_attempt_and_only_its_own_claim_saves_one(
    ledger: Ledger, store: Store
) -> None:
    task_id = uuid4()
    first = await claimed(ledger, task_id)
    assert first.checkpoint is None
    assert await ledger.save(task_id, first.fence, "1")
    assert await ledger.save(task_id, first.fence, '{"line": 2}')
    assert await ledger.release(task_id, first.fence)
    second = await claimed(ledger, task_id)
    assert second.checkpoint == '{"line": 2}'
    assert not await ledger.save(task_id, first.fence, "3")
    assert store.run(f"SELECT checkpoint FROM {store.table}") == [('{"line": 2}',)]


async def test_a_task_that_is_done_keeps_no_checkpoint_and_one_that_is_dead_does(ledger: Ledger, store: Store) -> None:
    for text in ("done", "dead"):
        task_id = uuid4()
        claim = await claimed(ledger, task_id)
        assert await ledger.save(task_id, claim.fence, f'"{text}"')
        if text == "done":
            assert await ledger.complete(task_id, claim.fence, 1, None)
        else:
            assert await ledger.bury(task_id, claim.fence, 1, "failed: no")
            assert await ledger.revive(task_id, claim.fence)
            assert (await claimed(ledger, task_id)).checkpoint == '"dead"'
    assert {row[0] for row in store.run(f"SELECT checkpoint FROM {store.table}")} == {None, '"dead"'}


async def test_a_pause_is_kept_until_it_is_taken_back(ledger: Ledger) -> None:
    board = ledger.board
    assert await board.pause("b", "ops@host", "deploy")
    assert await board.pause("a", "ops@host", "")
    assert not await board.pause("b", "another", "no")
    pauses = await board.pauses()
    assert [(each.queue, each.who, each.why) for each in pauses] == [("a", "ops@host", ""), ("b", "ops@host", "deploy")]
    assert all(abs(each.at - time.time()) < 10 for each in pauses)
    assert await board.resume("b")
    assert not await board.resume("b")
    assert [each.queue for each in await board.pauses()] == ["a"]
