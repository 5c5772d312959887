"""The guard around a handler: the exact order of its effects for each row of its table, and the leash.

The ledger, the publisher and the broker's side of a delivery are fakes that write down what is asked of them.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest

from generated.worker.messages.json import SimulateResult, Task
from workqueue import contract, delivery
from workqueue.codec import Undecodable
from workqueue.contract import Queue, Receive
from workqueue.delivery import Delivery, Publisher
from workqueue.errors import BrokerUnreachable, GiveUp, NotSent, RetryAfter, SendUnknown
from workqueue.ledger import Claimed, ClaimLost, Crash, Finished, LedgerBusy, Outcome, Taken
from workqueue.settings import Settings
from workqueue.tasks import processor
from workqueue.tasks.context import Run
from workqueue.tasks.processor import Guard
from workqueue.tasks.scope import CutOff, Leash

WAIT_S = 20.0
CONTRACT = contract.load("generated.worker")
(RECEIVE,) = CONTRACT.receives.values()
DOCUMENT = json.loads(Path(__file__).parent.parent.joinpath("generated/worker/contract.json").read_text())


def validator(schema: Mapping[str, Any]) -> Any:
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


STORY = validator({"$ref": "#/components/schemas/Story", "components": DOCUMENT["components"]})
HEADERS = validator(RECEIVE.message.headers_schema)

TASK = Task.model_validate(
    {
        "id": "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01",
        "created_at": "2026-11-25T09:30:00Z",
        "payload": {"kind": "simulate", "seconds": 0},
    }
)
BODY = b"the body, untouched"
FAILED = {"worker": "w0", "at": "2026-11-25T09:30:00Z", "error": "ValueError: no"}
RETURNED = SimulateResult(kind="simulate", attempt=1)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what is waited for may happen in a thread
            await asyncio.sleep(0.001)


class FakeLedger:
    """Answers what it is told to; `busy` counts how often each method is busy first."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.claim_answer: Claimed | Taken | Finished = Claimed(fence=5, crashes=())
        self.kept = True
        self.busy: dict[str, int] = {}
        self.values: list[tuple[Any, ...]] = []

    def _asked(self, name: str, *values: Any) -> None:
        if self.busy.get(name, 0) > 0:
            self.busy[name] -= 1
            self.log.append(f"{name} busy")
            raise LedgerBusy("locked")
        self.log.append(name)
        self.values.append((name, *values))

    async def claim(self, task_id: UUID, worker: str, lease_s: float) -> Claimed | Taken | Finished:
        self._asked("claim", task_id, worker, lease_s)
        return self.claim_answer

    async def renew(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        self._asked("renew", task_id, fence, lease_s)
        return self.kept

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        self._asked("complete", task_id, fence, attempts, result)
        return self.kept

    @asynccontextmanager
    async def completion(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> AsyncIterator[Any]:
        if not self.kept:
            raise ClaimLost
        yield "the connection"
        self._asked("complete", task_id, fence, attempts, result)

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str) -> bool:
        self._asked("bury", task_id, fence, attempts, error)
        return self.kept

    async def release(self, task_id: UUID, fence: int) -> bool:
        self._asked("release", task_id, fence)
        return self.kept

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        raise NotImplementedError

    async def prune(self, older_than_s: float) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class FakePublisher(Publisher):
    """Confirms a copy some turns of the loop after it was published, unless it is told to refuse it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.copies: list[dict[str, Any]] = []
        self.errors: list[Exception] = []

    async def send(self, queue: Queue, body: bytes, **properties: Any) -> None:
        if self.errors:
            self.log.append("copy refused")
            raise self.errors.pop(0)
        for _ in range(3):
            await asyncio.sleep(0)
        self.copies.append({"queue": queue, "body": body, **properties})
        self.log.append(f"copy to {queue.name}")


class Bench:
    """A guard between fakes, and the log of all their effects in order."""

    def __init__(self, handle: Callable[..., Any] = lambda *_: RETURNED, receive: Receive = RECEIVE) -> None:
        self.log: list[str] = []
        self.ledger, self.publisher = FakeLedger(self.log), FakePublisher(self.log)
        self.runs: list[Run] = []
        self.said: list[str] = []
        self.fatal: list[BaseException] = []

        async def logged(task: Task, run: Run) -> Any:
            self.log.append("run")
            self.runs.append(run)
            answer = handle(task, run)
            return await answer if asyncio.iscoroutine(answer) else answer

        self.guard: Guard[Task] = Guard(
            logged,
            CONTRACT,
            receive,
            self.ledger,
            self.publisher,
            "w1",
            Settings(),
            self.said.append,
            self.fatal.append,
        )

    def arrives(
        self, headers: dict[str, Any] | None = None, delivery_count: int = 0, readable: bool = True
    ) -> Delivery:
        def settle(ack: bool) -> None:
            self.log.append("ack" if ack else "requeue")

        return Delivery(
            body=BODY, queue=RECEIVE.queue.name, message_id="m1", content_type="application/json",
            headers=headers or {}, readable=readable, redelivered=False, delivery_count=delivery_count, _settle=settle,
        )  # fmt: skip

    async def take(self, task: Any = TASK, headers: dict[str, Any] | None = None, delivery_count: int = 0) -> list[str]:
        """The effects of one message, in order."""
        delivery.current.set(self.arrives(headers, delivery_count))
        async with asyncio.timeout(WAIT_S):
            await self.guard.take(task)
        return self.log


def raising(error: BaseException) -> Callable[..., Any]:
    def handle(*_: Any) -> Any:
        raise error

    return handle


async def never(*_: Any) -> Any:
    await asyncio.Event().wait()


def copy_to(queue: Queue) -> str:
    return f"copy to {queue.name}"


DEAD = copy_to(RECEIVE.dead)
RUNGS = [copy_to(rung.queue) for rung in RECEIVE.rungs]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "LEDGER_RETRY_CAP_S", 0.01)
    monkeypatch.setattr(processor, "COPY_RETRY_S", 0.01)


def story_of(bench: Bench, reason: str, *, attempts: int) -> dict[str, Any]:
    """The headers of the one dead letter, after a look at all that every dead letter must have."""
    (copy,) = bench.publisher.copies
    told: dict[str, Any] = copy["headers"]
    STORY.validate(told)
    assert (copy["queue"], copy["body"], copy["message_id"]) == (RECEIVE.dead, BODY, "m1")
    assert copy["message_type"] == RECEIVE.dead_message_type
    assert (told["x-reason"], len(told["x-attempts"])) == (reason, attempts)
    assert (told["x-queue"], told["x-contract"]) == (RECEIVE.queue.name, CONTRACT.version)
    return told


# --- the rows of the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["undecodable", "invalid"])
async def test_a_body_that_is_not_the_contracts_becomes_a_dead_letter(reason: Any) -> None:
    bench = Bench()
    assert await bench.take(Undecodable(reason, "not JSON: no")) == [DEAD, "ack"]
    assert story_of(bench, reason, attempts=0)["x-error"] == "not JSON: no"


@pytest.mark.parametrize("attempts", [["x"], "x", 7, [{**FAILED, "at": "now"}], [{**FAILED, "x": 1}]])
async def test_headers_that_are_not_the_contracts_become_a_dead_letter(attempts: Any) -> None:
    bench = Bench()
    assert await bench.take(headers={"x-attempts": attempts}) == [DEAD, "ack"]
    assert story_of(bench, "invalid", attempts=0)["x-error"].startswith("headers: /x-attempts")


@pytest.mark.parametrize("attempts", [None, 0, False])
async def test_headers_that_are_null_become_a_dead_letter_and_do_not_end_the_worker(attempts: Any) -> None:
    assert await Bench().take(headers={"x-attempts": attempts}) == [DEAD, "ack"]


async def test_a_message_whose_properties_cannot_be_read_becomes_a_dead_letter() -> None:
    bench = Bench()
    delivery.current.set(bench.arrives(readable=False))
    await bench.guard.take(TASK)
    assert bench.log == [DEAD, "ack"]
    assert story_of(bench, "undecodable", attempts=0)["x-error"] == "its properties can't be read"


@pytest.mark.parametrize("attempts", ["x" * 5000, [FAILED] * 101])
async def test_the_story_of_headers_that_are_not_the_contracts_keeps_the_contract(attempts: Any) -> None:
    bench = Bench()
    await bench.take(headers={"x-attempts": attempts})
    story_of(bench, "invalid", attempts=0)


@pytest.mark.parametrize("state", ["done", "dead"])
async def test_a_task_that_is_finished_is_acked_and_nothing_else(state: Any) -> None:
    bench = Bench()
    bench.ledger.claim_answer = Finished(state)
    assert await bench.take() == ["claim", "ack"]


@pytest.mark.parametrize(("left_s", "rung"), [(0.0, 0), (1.5, 1), (20.0, 2), (10**6, -1)])
async def test_a_task_that_somebody_has_waits_as_long_and_no_attempt_is_counted(left_s: float, rung: int) -> None:
    bench = Bench()
    bench.ledger.claim_answer = Taken(left_s)
    assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", RUNGS[rung], "ack"]
    (copy,) = bench.publisher.copies
    assert copy["headers"] == {"x-attempts": [FAILED]}
    assert (copy["body"], copy["message_id"], copy["message_type"]) == (BODY, "m1", RECEIVE.message.type)


CRASHES = tuple(Crash(f"w{number}", "2026-11-25T09:30:00Z") for number in range(RECEIVE.crash_limit))


async def test_a_task_that_keeps_killing_workers_is_not_run_but_buried_with_the_names_of_the_dead() -> None:
    bench = Bench()
    bench.ledger.claim_answer = Claimed(5, CRASHES)
    assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", DEAD, "bury", "ack"]
    told = story_of(bench, "crashed", attempts=1 + len(CRASHES))
    assert [attempt["worker"] for attempt in told["x-attempts"]] == ["w0", *(crash.worker for crash in CRASHES)]


async def test_one_crash_less_is_one_more_chance() -> None:
    bench = Bench()
    bench.ledger.claim_answer = Claimed(5, CRASHES[1:])
    assert await bench.take() == ["claim", "run", "complete", "ack"]


async def test_where_nobody_counts_crashes_the_brokers_count_is_taken() -> None:
    for count, expected in ((RECEIVE.crash_limit, [DEAD, "bury"]), (RECEIVE.crash_limit - 1, ["run", "complete"])):
        bench = Bench()
        bench.ledger.claim_answer = Claimed(0, None)
        assert await bench.take(delivery_count=count) == ["claim", *expected, "ack"]


async def test_a_task_that_returns_is_recorded_with_its_result_and_then_acked() -> None:
    bench = Bench()
    assert await bench.take(headers={"x-attempts": [FAILED, FAILED]}) == ["claim", "run", "complete", "ack"]
    assert bench.ledger.values[0] == ("claim", TASK.id, "w1", RECEIVE.lease_s)
    assert bench.ledger.values[1] == ("complete", TASK.id, 5, 3, '{"kind":"simulate","attempt":1}')
    assert (bench.runs[0].worker, bench.runs[0].attempt) == ("w1", 3)
    assert bench.publisher.copies == []
    assert (bench.guard.finished, bench.guard.in_hand, bench.guard.handed_back) == (1, 0, 0)


async def test_a_handler_may_record_its_completion_itself_and_it_is_recorded_once() -> None:
    async def complete(_: Task, run: Run) -> None:
        async with run.completion(RETURNED) as connection:
            assert connection == "the connection"

    bench = Bench(complete)
    assert await bench.take() == ["claim", "run", "complete", "ack"]
    assert bench.ledger.values[1] == ("complete", TASK.id, 5, 1, '{"kind":"simulate","attempt":1}')


@pytest.mark.parametrize("failed", range(len(RUNGS)))
async def test_a_task_that_fails_goes_to_the_next_rung_then_its_claim_back_then_the_ack(failed: int) -> None:
    bench = Bench(raising(ValueError("no")))
    before = [FAILED] * failed
    headers = {"x-attempts": before, "x-contract": "0.9", "x-death": [1], "x-delivery-count": 3, "x-acquired-count": 4}
    assert await bench.take(headers=headers) == ["claim", "run", RUNGS[failed], "release", "ack"]
    (copy,) = bench.publisher.copies
    assert set(copy["headers"]) == {"x-attempts", "x-contract"}  # what the broker noted was of another message
    HEADERS.validate(copy["headers"])
    *kept, added = copy["headers"]["x-attempts"]
    assert kept == before
    assert (added["worker"], added["error"]) == ("w1", "ValueError: no")
    assert (copy["body"], copy["message_id"], copy["message_type"]) == (BODY, "m1", RECEIVE.message.type)
    assert bench.ledger.values[-1] == ("release", TASK.id, 5)


async def test_a_task_that_asks_for_later_waits_on_a_long_enough_rung() -> None:
    bench = Bench(raising(RetryAfter(20, "busy")))
    assert await bench.take() == ["claim", "run", RUNGS[2], "release", "ack"]


async def test_a_task_that_has_failed_on_every_rung_becomes_a_dead_letter_then_recorded_then_acked() -> None:
    bench = Bench(raising(ValueError("no")))
    headers = {"x-attempts": [FAILED] * len(RUNGS)}
    assert await bench.take(headers=headers) == ["claim", "run", DEAD, "bury", "ack"]
    assert story_of(bench, "failed", attempts=RECEIVE.max_attempts)["x-error"] == "ValueError: no"
    assert bench.ledger.values[-1] == ("bury", TASK.id, 5, RECEIVE.max_attempts, "failed: ValueError: no")


async def test_a_task_that_is_given_up_becomes_a_dead_letter_at_once() -> None:
    bench = Bench(raising(GiveUp("no such file")))
    assert await bench.take() == ["claim", "run", DEAD, "bury", "ack"]
    assert story_of(bench, "gave-up", attempts=1)["x-error"] == "no such file"


async def test_a_result_that_breaks_the_contract_is_of_no_use_to_try_again() -> None:
    bench = Bench(lambda *_: SimulateResult.model_construct(kind="simulate", attempt=0))
    assert await bench.take() == ["claim", "run", DEAD, "bury", "ack"]
    assert "breaks the contract: /attempt" in story_of(bench, "gave-up", attempts=1)["x-error"]


async def test_a_task_that_is_cut_off_goes_back_to_the_broker_once_its_claim_is_free() -> None:
    bench = Bench(never)
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    assert not await bench.guard.idle(0.01)
    bench.guard.cut_off()
    began = time.monotonic()
    assert await bench.guard.idle(WAIT_S)
    assert time.monotonic() - began < WAIT_S / 2  # it is told, and does not just wait
    assert await taking == ["claim", "run", "release", "requeue"]
    assert (bench.guard.finished, bench.guard.handed_back, bench.publisher.copies) == (0, 1, [])


async def test_a_task_whose_claim_was_lost_while_it_ran_waits_on_a_rung_and_no_attempt_is_counted() -> None:
    bench = Bench(never, replace(RECEIVE, lease_s=0.03))
    bench.ledger.kept = False
    assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", "run", "renew", RUNGS[0], "ack"]
    assert bench.publisher.copies[0]["headers"] == {"x-attempts": [FAILED]}


async def test_a_task_whose_claim_turns_out_to_be_lost_at_its_end_is_not_acked_as_done() -> None:
    bench = Bench()
    bench.ledger.kept = False
    assert await bench.take() == ["claim", "run", "complete", RUNGS[0], "ack"]
    assert bench.publisher.copies[0]["headers"] == {}


async def test_a_process_that_ends_gives_the_claim_back_and_settles_nothing() -> None:
    bench = Bench(never)
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert bench.log == ["claim", "run", "release"]
    assert bench.fatal == []


# --- what can't answer is asked again ---------------------------------------------------------------------------------


async def test_a_busy_ledger_is_asked_until_it_answers_and_nothing_runs_meanwhile() -> None:
    bench = Bench()
    bench.ledger.busy = {"claim": 5, "complete": 4}
    assert await bench.take() == [*["claim busy"] * 5, "claim", "run", *["complete busy"] * 4, "complete", "ack"]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (raising(ValueError("no")), [RUNGS[0], "release busy", "release busy", "release", "ack"]),
        (raising(GiveUp("no")), [DEAD, "bury busy", "bury busy", "bury", "ack"]),
    ],
)
async def test_a_busy_ledger_delays_the_ack_and_not_the_copy_which_is_made_once(
    run: Callable[..., Any], expected: list[str]
) -> None:
    bench = Bench(run)
    bench.ledger.busy = {"release": 2, "bury": 2}
    assert await bench.take() == ["claim", "run", *expected]


@pytest.mark.parametrize("error", [NotSent("m1", "queue full"), SendUnknown("m1", 60)])
async def test_a_copy_that_is_not_confirmed_is_made_again_before_anything_else_happens(error: Exception) -> None:
    bench = Bench(raising(ValueError("no")))
    bench.publisher.errors = [error] * 3
    assert await bench.take() == ["claim", "run", *["copy refused"] * 3, RUNGS[0], "release", "ack"]


async def test_an_error_of_the_guards_own_ends_the_worker_and_leaves_the_message_unsettled() -> None:
    bench = Bench(raising(ValueError("no")))
    bench.publisher.errors = [BrokerUnreachable("amqp://host", "refused")]
    with pytest.raises(BrokerUnreachable):
        await bench.take()
    assert bench.log == ["claim", "run", "copy refused"]
    assert [type(error) for error in bench.fatal] == [BrokerUnreachable]
    assert bench.guard.in_hand == 0


# --- the time limit, and plain functions ------------------------------------------------------------------------------


async def test_a_task_that_takes_longer_than_its_contract_allows_has_failed() -> None:
    bench = Bench(never, replace(RECEIVE, time_limits_s={"simulate": 0.02}))
    assert await bench.take() == ["claim", "run", RUNGS[0], "release", "ack"]
    (attempt,) = bench.publisher.copies[0]["headers"]["x-attempts"]
    assert attempt["error"] == "TimeoutError: it took longer than its limit of 0.02 s"


async def test_a_plain_function_runs_in_a_thread_while_its_claim_is_renewed() -> None:
    bench, go = Bench(receive=replace(RECEIVE, lease_s=0.03)), threading.Event()

    def handle(task: Task, run: Run) -> SimulateResult:
        assert go.wait(WAIT_S)
        return RETURNED

    guard: Guard[Task] = Guard(
        handle,
        CONTRACT,
        replace(RECEIVE, lease_s=0.03),
        bench.ledger,
        bench.publisher,
        "w",
        Settings(),
        bench.said.append,
        bench.fatal.append,
    )
    bench.guard = guard
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log.count("renew") >= 3)
    go.set()
    assert [effect for effect in await taking if effect != "renew"] == ["claim", "complete", "ack"]


# --- the leash --------------------------------------------------------------------------------------------------------


async def kept() -> bool:
    return True


async def held(leash: Leash, inside: Any = None) -> None:
    async with asyncio.timeout(WAIT_S):
        with leash:
            await (inside or asyncio.Event().wait())


async def test_a_leash_lets_what_ends_in_time_go_and_leaves_nothing_running() -> None:
    for limit_s in (None, 10.0):
        await held(Leash(limit_s, 0.003, kept), asyncio.sleep(0.01))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_leash_that_was_left_in_time_touches_nothing_any_more() -> None:
    renewals: list[float] = []

    async def renew() -> bool:
        renewals.append(time.monotonic())
        return False

    await held(Leash(0.02, 0.03, renew), asyncio.sleep(0))
    await held(Leash(None, 0.03, renew), asyncio.sleep(0))
    await asyncio.sleep(0.06)
    assert renewals == []


async def test_a_leash_ends_what_takes_too_long_and_says_how_long_that_is() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^it took longer than its limit of 0\.02 s$"):
        await held(Leash(0.02, 10, kept))
    assert time.monotonic() - began < WAIT_S / 2


async def test_a_leash_passes_on_what_the_handler_raises_itself() -> None:
    async def slow() -> None:
        raise TimeoutError("the other side")

    with pytest.raises(TimeoutError, match=r"^the other side$"):
        await held(Leash(10, 10, kept), slow())


async def test_a_handler_may_answer_a_time_limit_but_not_a_pull() -> None:
    async def stubborn(error: Exception | None) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    await held(Leash(0.01, 10, kept), stubborn(None))
    with pytest.raises(ValueError, match="mine"):
        await held(Leash(0.01, 10, kept), stubborn(ValueError("mine")))
    for error in (None, ValueError("mine")):
        leash = Leash(10, 10, kept)
        asyncio.get_running_loop().call_soon(leash.pull, CutOff())
        with pytest.raises(CutOff):
            await held(leash, stubborn(error))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_task_that_somebody_else_cancels_too_stays_cancelled() -> None:
    leash = Leash(0.01, 10, kept)
    holding = asyncio.ensure_future(held(leash))
    await asyncio.sleep(0)
    leash.pull(CutOff())
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding


async def test_a_pulled_leash_raises_what_it_was_pulled_with_first() -> None:
    leash = Leash(10, 10, kept)
    asyncio.get_running_loop().call_soon(leash.pull, CutOff())
    asyncio.get_running_loop().call_soon(leash.pull, ClaimLost())
    with pytest.raises(CutOff):
        await held(leash)


async def test_a_leash_renews_the_claim_several_times_in_a_lease_and_survives_a_busy_ledger() -> None:
    renewals: list[float] = []
    enough = asyncio.Event()

    async def renew() -> bool:
        renewals.append(time.monotonic())
        if len(renewals) == 8:
            enough.set()
        if len(renewals) % 2:
            raise LedgerBusy("locked")
        return True

    lease_s, began = 0.15, time.monotonic()
    await held(Leash(None, lease_s, renew), enough.wait())
    assert renewals[0] - began >= lease_s / 4  # a short task is not renewed at all
    assert min(after - before for before, after in pairwise(renewals)) >= lease_s / 4


async def test_a_leash_whose_claim_is_lost_ends_the_handler() -> None:
    async def lost() -> bool:
        return False

    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    with pytest.raises(ClaimLost):
        await held(Leash(None, 0.01, lost), work())
    assert ended


async def test_a_drain_that_ends_while_a_handler_cleans_up_after_its_time_limit_is_no_error() -> None:
    cleaning, clean = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()

    leash = Leash(0.01, 10, kept)
    holding = asyncio.ensure_future(held(leash, work()))
    await cleaning.wait()
    try:
        leash.pull(CutOff())
    finally:
        clean.set()
        with suppress(TimeoutError, CutOff):
            await holding


async def test_a_handler_that_answers_its_cut_off_with_another_error_is_handed_back_all_the_same() -> None:
    async def wrap(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ConnectionError("interrupted") from error

    bench = Bench(wrap)
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    bench.guard.cut_off()
    assert await taking == ["claim", "run", "release", "requeue"]


async def test_a_renewal_that_fails_in_a_way_nobody_expected_is_tried_again() -> None:
    tried: list[int] = []

    async def renew() -> bool:
        tried.append(1)
        if len(tried) < 3:
            raise OSError("the disk is on fire")
        return True

    await held(Leash(None, 0.01, renew), until(lambda: len(tried) >= 4))


async def test_a_story_tells_no_more_attempts_than_the_contract_allows_and_the_latest_of_them() -> None:
    bench = Bench(raising(ValueError("the last straw")))
    await bench.take(headers={"x-attempts": [FAILED] * 100})
    story = story_of(bench, "failed", attempts=100)
    assert "the last straw" in story["x-attempts"][-1]["error"]


async def test_a_handler_that_fails_after_its_own_completion_has_done_its_task() -> None:
    async def complete_and_fail(_: Task, run: Run) -> None:
        async with run.completion(RETURNED):
            pass
        raise ValueError("too late")

    assert await Bench(complete_and_fail).take() == ["claim", "run", "complete", "ack"]


async def test_a_busy_ledger_does_not_hide_that_the_process_ends() -> None:
    bench = Bench(never)
    bench.ledger.busy["release"] = 1
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not bench.fatal
