"""What became of tasks: the status for each state of the ledger, and many who wait for results at once."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from tests.generated.producer.messages import json as models
from tests.generated.producer.messages.json import NapResult
from workqueue import contract
from workqueue.client import waiting
from workqueue.client.results import Handle, Results
from workqueue.client.status import Status, status_of
from workqueue.client.waiting import Waiting
from workqueue.codec.results import ResultReader
from workqueue.errors import LedgerLost, ResultInvalid, SettingInvalid, TaskDead, TaskInvalid, TaskUnfinished
from workqueue.ledger import Cancelling, Entry, LedgerBusy, Outcome
from workqueue.ledger.none import NoLedger
from workqueue.testing import until

ID = UUID(int=7)
AT = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
AT_S = AT.timestamp()
SENT = Entry(ID, "waiting", "nap", b"one", "", held=False, attempts=0, created_at=AT_S, claimed_at=None, next_at=None,
             finished_at=None, result=None, error=None, last_error=None)  # fmt: skip
TAKEN = replace(SENT, state="running", worker="w", held=True, claimed_at=AT_S)
(SEND, *_) = contract.load("tests.generated.producer").sends.values()


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (None, Status(ID, "unknown")),
        (SENT, Status(ID, "waiting", "nap", since=AT)),
        (TAKEN, Status(ID, "running", "nap", "w", 1, since=AT)),
        (replace(TAKEN, attempts=2, last_error="E: x"), Status(ID, "running", "nap", "w", 3, since=AT, error="E: x")),
        (replace(TAKEN, held=False), Status(ID, "waiting", "nap", since=AT)),  # its worker died
        (
            replace(TAKEN, state="waiting", held=False, attempts=1, last_error="E: x", next_at=AT_S),
            Status(ID, "retrying", "nap", "w", 1, next_at=AT, error="E: x"),
        ),
        (replace(TAKEN, held=False, attempts=1, last_error="E"), Status(ID, "retrying", "nap", "w", 1, error="E")),
        (
            replace(TAKEN, state="done", held=False, attempts=1, finished_at=AT_S, result="{}"),
            Status(ID, "done", "nap", "w", 1, since=AT),
        ),
        (
            replace(TAKEN, state="dead", held=False, attempts=1, finished_at=AT_S, error="gave-up: no: file\nT"),
            Status(ID, "dead", "nap", "w", 1, since=AT, reason="gave-up", error="no: file"),
        ),
    ],
)  # fmt: skip
def test_a_status_for_each_state(entry: Entry | None, status: Status) -> None:
    assert status_of(ID, entry) == status
    assert status_of(ID, entry, b"one") == status


def test_another_payload_under_the_same_id_is_a_conflict_and_none_of_its_status() -> None:
    status = status_of(ID, replace(TAKEN, state="done"), b"two")
    assert (status.state, status.reason, status.worker) == ("dead", "conflict", None)


class Told(NoLedger):
    """Knows what is in `finished`; `errors` come first. Notes how it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.finished = list(errors), dict[UUID, Outcome]()
        self.asked: list[int] = []
        self.at_once = self.most_at_once = 0
        self.slow_s = 0.0

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        self.asked.append(len(ids))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(self.slow_s)
        self.at_once -= 1
        if self.errors:
            raise self.errors.pop(0)
        return [self.finished[id] for id in ids if id in self.finished]

    async def entry(self, task_id: UUID) -> Entry | None:
        return replace(TAKEN, state="done", held=False, attempts=1) if task_id in self.finished else None

    def finish(self, id: UUID, result: str | None = '{"kind": "nap", "attempt": 1}', kind: str | None = "nap") -> None:
        self.finished[id] = Outcome(id, "done", "w", 1, result, None, 0.0, kind, digest=b"one")


async def test_any_number_who_wait_share_one_poll() -> None:
    ledger, ids = Told(), [uuid4() for _ in range(3000)]
    waits = Waiting(ledger)
    waiters = [asyncio.create_task(waits.outcome(id, 60)) for id in ids for _ in range(2)]
    await asyncio.sleep(0.05)
    for id in ids:
        ledger.finish(id)
    assert [outcome.id for outcome in await asyncio.gather(*waiters)] == [id for id in ids for _ in range(2)]
    assert ledger.most_at_once == 1
    assert max(ledger.asked) <= 2 * waiting.LOOK_AT
    asked = len(ledger.asked)
    await asyncio.sleep(0.3)
    assert len(ledger.asked) <= asked + 1  # nobody waits, nobody is asked


async def test_who_waits_no_longer_is_forgotten_and_the_others_are_not() -> None:
    ledger = Told()
    waits = Waiting(ledger)
    other = asyncio.create_task(waits.outcome(ID, 60))
    with pytest.raises(TimeoutError):
        await waits.outcome(ID, 0.01)
    cancelled = asyncio.create_task(waits.outcome(uuid4(), None))
    await until(lambda: ledger.asked[-1:] == [2], "both who wait are asked for")
    cancelled.cancel()
    await asyncio.wait([cancelled])
    ledger.finish(ID)
    assert (await other).id == ID


async def test_a_ledger_that_is_busy_is_asked_again_and_that_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "BUSY_S", 0.0)
    ledger = Told(LedgerBusy("locked"), LedgerBusy("locked"))
    ledger.finish(ID)
    with caplog.at_level(logging.WARNING):
        assert (await Waiting(ledger).outcome(ID, 20)).id == ID
    assert "the ledger none does not answer: locked" in caplog.text


async def test_a_ledger_that_is_lost_is_told_to_all_who_wait_and_not_for_ever() -> None:
    ledger = Told(LedgerLost("x", "deleted"))
    waits = Waiting(ledger)
    told = await asyncio.gather(waits.outcome(ID, 60), waits.outcome(uuid4(), 60), return_exceptions=True)
    assert [type(one) for one in told] == [LedgerLost, LedgerLost]
    ledger.finish(ID)
    assert (await waits.outcome(ID, 60)).id == ID


async def test_who_waits_when_the_client_is_closed_is_told() -> None:
    waits = Waiting(Told())
    waiter = asyncio.create_task(waits.outcome(ID, None))
    await asyncio.sleep(0.05)
    await waits.close()
    with pytest.raises(RuntimeError, match="the client was closed"):
        await waiter


async def test_a_quick_result_is_seen_soon_and_a_slow_one_costs_little() -> None:
    ledger = Told()
    waits = Waiting(ledger)
    waiter = asyncio.create_task(waits.outcome(ID, 60))
    await asyncio.sleep(2.0)
    assert len(ledger.asked) < 30
    soon = asyncio.create_task(waits.outcome(other := uuid4(), 60))
    await asyncio.sleep(0)
    ledger.finish(other)
    began_s = time.monotonic()
    await soon
    assert time.monotonic() - began_s < 1.0
    waiter.cancel()


@pytest.mark.parametrize("errors", [[], [LedgerBusy("no answer")]], ids=["slow", "silent"])
async def test_after_a_ledger_was_slow_or_silent_results_come_as_quickly_as_before(errors: list[Exception]) -> None:
    ledger = Told(*errors)
    ledger.slow_s = 2.0
    waits = Waiting(ledger)
    waiter = asyncio.create_task(waits.outcome(ID, 60))
    await until(lambda: ledger.at_once, "it is asked")
    ledger.slow_s = 0.0
    await until(lambda: not ledger.at_once, "it has answered")
    ledger.finish(ID)
    began_s = time.monotonic()
    await waiter
    assert time.monotonic() - began_s < 5.0


async def test_a_task_that_is_done_when_the_time_is_over_is_not_called_unfinished() -> None:
    """The poll of all who wait may be a slow one just then."""
    ledger = Told()
    results = Results(ledger, {SEND.operation: ResultReader(SEND, models)})
    ledger.slow_s = 60.0
    waiter = asyncio.create_task(results.result(ID, timeout_s=0.2))
    await until(lambda: ledger.at_once, "it is asked")
    ledger.slow_s = 0.0
    ledger.finish(ID)
    assert await waiter == NapResult(kind="nap", attempt=1)
    await results.close()


async def test_a_result_is_of_the_contracts_model_or_none() -> None:
    ledger, other = Told(), uuid4()
    results = Results(ledger, {SEND.operation: ResultReader(SEND, models)})
    ledger.finish(ID)
    ledger.finish(other, None)
    handle: Handle[NapResult] = Handle(ID, SEND.operation, b"one", results)
    assert await handle.result(timeout_s=5) == NapResult(kind="nap", attempt=1)
    assert await results.result(other) is None


async def test_a_task_that_has_no_result_says_why() -> None:
    ledger, unfit, another, slow = Told(), uuid4(), uuid4(), uuid4()
    results = Results(ledger, {SEND.operation: ResultReader(SEND, models)})
    ledger.finished[ID] = Outcome(ID, "dead", "w", 3, None, "failed: ValueError: no\nTraceback", 0.0)
    ledger.finish(unfit, '{"kind": "nap", "attempt": 0}')
    ledger.finish(another)
    with pytest.raises(TaskDead, match=f"task {ID} is dead, failed: ValueError: no$") as dead:
        await results.result(ID)
    assert (dead.value.reason, dead.value.error, dead.value.worker, dead.value.attempts) == (
        "failed", "ValueError: no", "w", 3,
    )  # fmt: skip
    with pytest.raises(ResultInvalid, match="attempt"):
        await results.result(unfit)
    with pytest.raises(TaskDead, match="conflict"):
        await Handle(another, SEND.operation, b"two", results).result()
    with pytest.raises(TaskUnfinished, match=r"did not finish within 0\.05 s, it is unknown") as unfinished:
        await results.result(slow, timeout_s=0.05)
    assert isinstance(unfinished.value, TimeoutError)


def reader(kind: str, result: Mapping[str, object]) -> ResultReader:
    """Of an operation that sends tasks of this kind."""
    schema = {**SEND.message.schema, "allOf": [result]}
    return ResultReader(
        replace(SEND, kinds=frozenset([kind]), message=replace(SEND.message, result_schema=schema)), models
    )


@pytest.fixture
async def several() -> AsyncIterator[tuple[Told, Results]]:
    """Of two operations: what fits the results of the second fits those of the first."""
    ledger = Told()
    readers = {
        "send_any": reader("any", {"type": "object"}),
        "send_nap": reader("nap", {"$ref": "#/components/schemas/NapResult"}),
    }
    results = Results(ledger, readers)
    yield ledger, results
    await results.close()


async def test_a_result_by_id_is_read_as_the_operations_that_sends_its_kind(several: tuple[Told, Results]) -> None:
    ledger, results = several
    ledger.finish(ID)
    assert await results.result(ID) == NapResult(kind="nap", attempt=1)
    ledger.finish(ID, kind="any")
    assert await results.result(ID) == {"kind": "nap", "attempt": 1}
    ledger.finish(ID, '{"kind": "nap", "attempt": 0}')
    with pytest.raises(ResultInvalid, match="its result breaks the contract: /attempt"):
        await results.result(ID)


async def test_a_result_that_may_be_that_of_several_operations_is_no_guess(several: tuple[Told, Results]) -> None:
    ledger, results = several
    for kind in (None, "another"):
        ledger.finish(ID, kind=kind)
        with pytest.raises(ResultInvalid, match=r"any of send_any, send_nap; say which, with to=$") as told:
            await results.result(ID)
        assert told.value.text == '{"kind": "nap", "attempt": 1}'
        assert await results.result(ID, operation="send_nap") == NapResult(kind="nap", attempt=1)
        assert await results.result(ID, operation="send_any") == {"kind": "nap", "attempt": 1}
    ledger.finish(ID, '{"only": "any"}', kind=None)
    assert await results.result(ID) == {"only": "any"}
    ledger.finish(ID, "[]", kind=None)
    with pytest.raises(ResultInvalid, match="breaks the contract: "):
        await results.result(ID)


async def test_operations_that_read_a_result_alike_need_not_be_told_apart() -> None:
    ledger = Told()
    ledger.finish(ID)
    results = Results(ledger, {name: ResultReader(SEND, models) for name in ("send_errand", "send_chore")})
    assert await results.result(ID) == NapResult(kind="nap", attempt=1)
    await results.close()


async def test_the_name_of_no_operation_is_told_at_once_and_not_after_the_task(several: tuple[Told, Results]) -> None:
    _, results = several
    async with asyncio.timeout(20):
        with pytest.raises(
            TaskInvalid, match=r"to='nope': no such send operation; the contract has send_any, send_nap$"
        ):
            await results.result(ID, operation="nope")
        with pytest.raises(TaskInvalid, match="this application sends nothing"):
            await Results(Told(), {}).result(ID)


@pytest.mark.parametrize("method", ["status", "cancel"])
async def test_a_ledger_that_is_busy_for_a_moment_is_asked_again(method: str) -> None:
    class Restarting(NoLedger):
        busy = 2

        async def entry(self, task_id: UUID) -> Entry | None:
            self.busy -= 1
            if self.busy >= 0:
                raise LedgerBusy("it restarts")
            return SENT

        async def cancel(self, task_id: UUID, told: str) -> Cancelling:
            await self.entry(task_id)
            return "cancelled"

    results = Results(Restarting(), {})
    if method == "status":
        assert (await results.status(ID)).state == "waiting"
    else:
        assert await results.cancel(ID, "") == "cancelled"
    await results.close()


async def test_without_a_ledger_there_is_no_status() -> None:
    handle: Handle[None] = Handle(ID, SEND.operation, b"", None)
    with pytest.raises(SettingInvalid, match="need a ledger"):
        await handle.status()
