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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest

from tests.generated.worker.messages.json import NapResult, Task
from tests.harness import RECEIVE
from workqueue import contract, delivery
from workqueue.codec import Undecodable, digest, named
from workqueue.contract import Queue, Receive
from workqueue.delivery import Delivery, Publisher
from workqueue.errors import BrokerUnreachable, LedgerLost, NotSent, SendUnknown
from workqueue.ledger import (
    Claimed,
    ClaimLost,
    Conflict,
    Crash,
    Finished,
    LedgerBusy,
    Outcome,
    Rows,
    Taken,
    Transaction,
)
from workqueue.ledger.none import NoLedger
from workqueue.settings import Settings
from workqueue.tasks import asking, copies, processor, story
from workqueue.tasks.context import TaskContext
from workqueue.tasks.events import Dead, Delayed, Done, Event, LostClaim, Retrying, Skipped, Told, What
from workqueue.tasks.processor import Guard
from workqueue.tasks.received import Runtime
from workqueue.tasks.scope import Cancellation, CutOff
from workqueue.verdicts import GiveUp, RetryAfter
from workqueue.worker.crew import Crew

WAIT_S = 20.0
CONTRACT = contract.load("tests.generated.worker")
DOCUMENT = json.loads(Path(__file__).parent.joinpath("generated/worker/contract.json").read_text())


def validator(schema: Mapping[str, Any]) -> Any:
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


STORY = validator({"$ref": "#/components/schemas/Story", "components": DOCUMENT["components"]})
HEADERS = validator(RECEIVE.message.headers_schema)

TASK = Task.model_validate(
    {
        "id": "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01",
        "created_at": "2026-11-25T09:30:00Z",
        "payload": {"kind": "nap", "seconds": 0},
    }
)
BODY = TASK.model_dump_json(indent=1).encode()  # not as our codec writes it
FAILED = {"worker": "w0", "at": "2026-11-25T09:30:00Z", "error": "ValueError: no"}
RETURNED = NapResult(kind="nap", attempt=1)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what is waited for may happen in a thread
            await asyncio.sleep(0.001)


def claimed(
    crashes: tuple[Crash, ...] | None = (), *, fence: int = 5, noticed: bool = False, attempts: int = 0
) -> Claimed:
    return Claimed(fence=fence, crashes=crashes, noticed=noticed, attempts=attempts)


async def no_statement(statement: str, values: Any) -> Rows:
    raise NotImplementedError


TRANSACTION = Transaction(no_statement)


class FakeLedger(NoLedger):
    """Answers what it is told to; `busy` counts how often each method is busy first."""

    keeps_requests = True

    identity, place = 7, "nowhere"

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.claim_answer: Claimed | Taken | Finished | Conflict = claimed()
        self.after_revival: Claimed | Finished = claimed()
        self.kept = True
        self.busy: dict[str, int] = {}
        self.goes: Exception | None = None
        self.commits = asyncio.Event()
        self.commits.set()
        self.values: list[tuple[Any, ...]] = []
        self.alone: list[bool] = []
        self.requests: list[UUID | None] = []
        self.adopted: list[UUID | None] = []

    def _asked(self, name: str, *values: Any) -> None:
        if self.busy.get(name, 0) > 0:
            self.busy[name] -= 1
            self.log.append(f"{name} busy")
            raise LedgerBusy("locked")
        self.log.append(name)
        self.values.append((name, *values))

    async def claim(
        self, task_id: UUID, worker: str, lease_s: float, *, kind: str, digest: bytes, alone: bool,
        request: UUID | None = None, adopts: UUID | None = None,
    ) -> Claimed | Taken | Finished | Conflict:  # fmt: skip
        self.requests.append(request)
        self.adopted.append(adopts)
        self._asked("claim", task_id, worker, lease_s)
        self.alone.append(alone)
        return self.claim_answer

    async def revive(self, task_id: UUID, fence: int, *, told: str = "") -> bool:
        self._asked("revive", task_id, fence)
        self.claim_answer = self.after_revival
        return True

    async def renew(self, task_id: UUID, fence: int, lease_s: float, *, alone: bool | None = None) -> bool:
        self._asked("renew", task_id, fence, lease_s)
        return self.kept

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        raise NotImplementedError

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        self._asked("complete", task_id, fence, attempts, result)
        return self.kept

    @asynccontextmanager
    async def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AsyncIterator[Transaction]:
        if not self.kept:
            raise ClaimLost
        yield TRANSACTION
        await self.commits.wait()
        if self.goes is not None:
            raise self.goes
        self._asked("complete", task_id, fence, attempts, result)

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str, *, failed: str = "") -> bool:
        self._asked("bury", task_id, fence, attempts, error)
        return self.kept

    async def release(
        self, task_id: UUID, fence: int, *, attempts: int | None = None, error: str | None = None, failed: str = "",
        next_s: float = 0.0,
    ) -> bool:  # fmt: skip
        self._asked("release", task_id, fence, attempts, error, next_s)
        return self.kept

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        self._asked("outcomes", *ids)
        return [Outcome(one, "dead", "w0", 1, None, "gave-up: no such file\nTraceback", 0.0) for one in ids]

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
        self.is_there = asyncio.Event()
        self.is_there.set()

    async def send(self, queue: Queue, body: bytes, **properties: Any) -> None:
        await self.is_there.wait()
        if self.errors:
            self.log.append("copy refused")
            raise self.errors.pop(0)
        for _ in range(3):
            await asyncio.sleep(0)
        self.copies.append({"queue": queue, "body": body, **properties})
        self.log.append(f"copy to {queue.name}")


class Bench:
    """A guard between fakes, and the log of all their effects in order."""

    def __init__(
        self, handle: Callable[..., Any] = lambda *_: RETURNED, receive: Receive = RECEIVE, *, single: bool = True
    ) -> None:
        self.log: list[str] = []
        self.ledger, self.publisher = FakeLedger(self.log), FakePublisher(self.log)
        self.runs: list[TaskContext[Any]] = []
        self.told: list[Told] = []
        self.fatal: list[BaseException] = []

        async def logged(task: Task, context: TaskContext[None]) -> Any:
            self.log.append("run")
            self.runs.append(context)
            answer = handle(task, context)
            return await answer if asyncio.iscoroutine(answer) else answer

        self.guard: Guard[Task] = Guard(logged, receive, self.runtime(single))

    def runtime(self, single: bool = True) -> Runtime:
        return Runtime(
            "w1", CONTRACT, self.ledger, self.publisher, Settings(), self.told.append, self.fatal.append, single=single
        )

    def arrives(
        self, headers: dict[str, Any] | None = None, delivery_count: int = 0, readable: bool = True
    ) -> Delivery:
        def settle(way: str) -> None:
            self.log.append(way)

        return Delivery(
            body=BODY, queue=RECEIVE.queue.name, message_id="m1", content_type="application/json",
            headers=headers or {}, readable=readable, redelivered=False, delivery_count=delivery_count, _settle=settle,
        )  # fmt: skip

    @property
    def became(self) -> list[What]:
        """What became of the messages that arrived."""
        return [told.what for told in self.told if isinstance(told, Event)]

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


DEAD, TASKS = copy_to(RECEIVE.dead), copy_to(RECEIVE.queue)
RUNGS = [copy_to(rung.queue) for rung in RECEIVE.rungs]
REFUSED = ["claim", DEAD, "bury", "ack"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "RETRY_CAP_S", 0.01)
    monkeypatch.setattr(copies, "COPY_RETRY_S", 0.01)


async def test_what_cannot_be_settled_is_in_hand_and_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its handler has run or not: nothing of it runs any more."""
    monkeypatch.setattr(copies, "STUCK_S", 0.3)
    bench, crew = Bench(raising(RuntimeError("no"))), Crew()
    crew._guards[RECEIVE.operation] = bench.guard
    bench.publisher.is_there.clear()
    taking = [asyncio.ensure_future(bench.take(task)) for task in (TASK, Undecodable("invalid", "no"))]
    await asyncio.sleep(0.01)
    assert (crew.stuck(), crew.running()) == ([], [])  # that may take a moment
    stuck = f"2 of {RECEIVE.queue.name} can't be settled: "
    await until(lambda: crew.stuck() == [f"{stuck}the broker has not confirmed their copies"])
    assert (crew.settling(RECEIVE.operation), crew.late(RECEIVE.operation), len(crew.held_s())) == (2, 2, 2)
    assert all(operation == RECEIVE.operation and age_s > 0.1 for operation, age_s in crew.held_s())
    bench.publisher.errors = [NotSent("m1", "no right to write") for _ in range(1000)]
    bench.publisher.is_there.set()
    await until(lambda: crew.stuck() == [f"{stuck}{NotSent('m1', 'no right to write')}"])
    bench.publisher.errors.clear()
    await asyncio.gather(*taking)
    assert (crew.stuck(), crew.held_s(), crew.settling(RECEIVE.operation)) == ([], [], 0)


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
    assert await bench.take(Undecodable(reason, "not JSON: no")) == REFUSED
    assert story_of(bench, reason, attempts=0)["x-error"] == "not JSON: no"


@pytest.mark.parametrize("by", ["body", "headers"])
async def test_a_task_that_can_not_be_run_is_dead_for_whoever_waits_for_it(by: str) -> None:
    bench = Bench()
    bench.ledger.claim_answer = claimed(attempts=2)
    if by == "body":
        log = await bench.take(Undecodable("invalid", "/payload: no such field"))
        error = "/payload: no such field"
    else:
        log = await bench.take(headers={"x-attempts": "x"})
        error = 'headers: /x-attempts: "x" is not of type "array"'
    assert log == REFUSED
    assert bench.ledger.values[-1] == ("bury", TASK.id, 5, 2, f"invalid: {error}")
    assert story_of(bench, "invalid", attempts=0)["x-burial"] == 5


@pytest.mark.parametrize("answer", [Conflict(), Finished("dead", 4), Finished("done", 4)])
async def test_what_can_not_be_run_and_is_no_longer_open_is_just_a_dead_letter(answer: Any) -> None:
    bench = Bench()
    bench.ledger.claim_answer = answer
    assert await bench.take(Undecodable("invalid", "no")) == ["claim", DEAD, "ack"]


async def test_what_can_not_be_run_goes_back_where_the_worker_drains_and_the_ledger_is_silent() -> None:
    bench = Bench()
    bench.ledger.busy["claim"] = 1
    bench.guard.drain()
    assert await bench.take(Undecodable("invalid", "no")) == ["claim busy", TASKS, "ack"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"7", b"{}", b'{"id": 7}', b'{"id": "x", "payload": 1}', b'{"id": [], "payload": 1}', b"\xff",
     b'{"id": "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01"}', b"[" * 100_000],
)  # fmt: skip
def test_a_body_that_names_no_task_names_none(body: bytes) -> None:
    assert named(body, "kind") is None


def test_a_body_that_is_not_the_contracts_may_name_its_task() -> None:
    assert named(BODY, "kind") == (TASK.id, digest(BODY), "nap")
    assert named(BODY.replace(b'"nap"', b"7"), "kind") == (TASK.id, digest(BODY.replace(b'"nap"', b"7")), "")
    assert named(BODY, None) == (TASK.id, digest(BODY), "")


@pytest.mark.parametrize("attempts", [["x"], "x", 7, [{**FAILED, "at": "now"}], [{**FAILED, "x": 1}]])
async def test_headers_that_are_not_the_contracts_become_a_dead_letter(attempts: Any) -> None:
    bench = Bench()
    assert await bench.take(headers={"x-attempts": attempts}) == REFUSED
    assert story_of(bench, "invalid", attempts=0)["x-error"].startswith("headers: /x-attempts")


@pytest.mark.parametrize("name", story.READ)
async def test_each_header_that_is_read_again_is_looked_at_first(name: str) -> None:
    bench = Bench()
    assert await bench.take(headers={name: story.READ[name]}) == ["claim", "run", "complete", "ack"]
    assert await bench.take(headers={name: "x"}) == ["claim", "run", "complete", "ack", *REFUSED]
    assert bench.publisher.copies[0]["headers"]["x-error"].startswith(f"headers: /{name}")


@pytest.mark.parametrize("attempts", [None, 0, False])
async def test_headers_that_are_null_become_a_dead_letter_and_do_not_end_the_worker(attempts: Any) -> None:
    assert await Bench().take(headers={"x-attempts": attempts}) == REFUSED


NO_JSON = {"a date": datetime(2026, 1, 1, tzinfo=UTC), "bytes": b"\xff", "half a character": "\ud800"}


@pytest.mark.parametrize("what", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("wrong", [{"x-crashes": "no"}, {"x-returns": -1}, {"x-attempts": ["x"]}], ids=str)
async def test_headers_that_are_wrong_and_no_json_either_become_a_dead_letter(what: Any, wrong: dict[str, Any]) -> None:
    for headers in ({**wrong, "x-story": what}, {"x-story": what, **wrong}, {**wrong, "x-story": [{"died_at": what}]}):
        bench = Bench()
        assert await bench.take(headers=headers) == REFUSED
        assert bench.publisher.copies[0]["headers"]["x-error"].startswith("headers: ")


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
async def test_a_task_that_is_finished_and_sent_again_is_acked_and_nothing_else(state: Any) -> None:
    bench = Bench()
    bench.ledger.claim_answer = Finished(state, 5)
    assert await bench.take(headers={"x-contract": "1.0.0"}) == ["claim", "ack"]


async def test_a_dead_task_that_comes_by_its_body_alone_is_a_dead_letter_again_since_it_may_be_the_last_copy() -> None:
    bench = Bench()
    bench.ledger.claim_answer = Finished("dead", 5)
    assert await bench.take() == ["claim", "outcomes", DEAD, "ack"]
    told = story_of(bench, "gave-up", attempts=0)
    assert (told["x-error"], told["x-burial"]) == ("no such file", 5)


@pytest.mark.parametrize(("left_s", "rung"), [(0.0, 0), (0.15, 1), (0.2, 2), (10**6, -1)])
async def test_a_task_that_somebody_has_waits_as_long_and_no_attempt_is_counted(left_s: float, rung: int) -> None:
    bench = Bench()
    bench.ledger.claim_answer = Taken(left_s)
    assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", RUNGS[rung], "ack"]
    (copy,) = bench.publisher.copies
    assert copy["headers"] == {"x-attempts": [FAILED]}
    assert (copy["body"], copy["message_id"], copy["message_type"]) == (BODY, "m1", RECEIVE.message.type)


CRASHES = tuple(Crash(f"w{number}", "2026-11-25T09:30:00Z", True) for number in range(RECEIVE.crash_limit))


async def test_a_task_that_keeps_killing_workers_is_not_run_but_buried_with_the_names_of_the_dead() -> None:
    bench = Bench()
    bench.ledger.claim_answer = claimed(CRASHES)
    assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", DEAD, "bury", "ack"]
    told = story_of(bench, "crashed", attempts=1 + len(CRASHES))
    assert [attempt["worker"] for attempt in told["x-attempts"]] == ["w0", *(crash.worker for crash in CRASHES)]


async def test_one_crash_less_is_one_more_chance() -> None:
    bench = Bench()
    bench.ledger.claim_answer = claimed(CRASHES[1:])
    assert await bench.take() == ["claim", "run", "complete", "ack"]


async def test_where_nobody_counts_crashes_each_time_that_a_message_comes_again_is_one() -> None:
    limit = RECEIVE.crash_limit
    for headers, count, expected in (
        ({"x-crashes": limit - 1}, 1, [DEAD, "bury"]),
        ({"x-crashes": limit - 2}, 1, ["release", RUNGS[limit - 2]]),
        ({"x-crashes": limit - 1}, 0, ["run", "complete"]),
    ):
        bench = Bench()
        bench.ledger.claim_answer = claimed(None, fence=0)
        assert await bench.take(headers=headers, delivery_count=count) == ["claim", *expected, "ack"]
        if expected[0] == "release":
            assert bench.publisher.copies[0]["headers"] == {"x-crashes": limit - 1}


async def test_a_message_that_went_from_one_dead_consumer_to_the_next_counts_as_one_crash() -> None:
    bench = Bench()
    bench.ledger.claim_answer = claimed(None, fence=0)
    assert await bench.take(delivery_count=RECEIVE.crash_limit + 5) == ["claim", "release", RUNGS[0], "ack"]
    assert bench.publisher.copies[0]["headers"] == {"x-crashes": 1}


async def test_a_task_whose_worker_died_waits_before_it_is_tried_again_and_longer_each_time() -> None:
    for deaths in (1, 2):
        bench = Bench()
        bench.ledger.claim_answer = claimed(CRASHES[:deaths], noticed=True)
        assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", "release", RUNGS[deaths - 1], "ack"]
        assert bench.publisher.copies[0]["headers"] == {"x-attempts": [FAILED]}


async def test_a_death_that_others_in_the_process_may_have_caused_convicts_nobody() -> None:
    bench = Bench()
    bench.ledger.claim_answer = claimed(tuple(replace(crash, alone=False) for crash in CRASHES * 3))
    assert await bench.take() == ["claim", "run", "complete", "ack"]


@pytest.mark.parametrize(("deaths", "alone"), [(1, [False]), (2, [False, True])])
async def test_from_the_second_death_on_a_task_runs_alone(deaths: int, alone: list[bool]) -> None:
    release, beside, together = asyncio.Event(), asyncio.Event(), 0

    async def handle(task: Task, context: TaskContext[None]) -> NapResult:
        nonlocal together
        together = max(together, len(bench.guard.in_hand))
        if not beside.is_set():
            beside.set()
            await release.wait()
        return RETURNED

    bench = Bench(handle, single=False)
    first = asyncio.ensure_future(bench.take())
    await beside.wait()
    bench.ledger.claim_answer = claimed(CRASHES[:deaths])
    second = asyncio.ensure_future(bench.take())
    if deaths > 1:
        await until(lambda: "release" in bench.log)
        assert bench.log.count("run") == 1
    else:
        await second
    release.set()
    await asyncio.gather(first, second)
    assert bench.ledger.alone == [False, *alone]
    assert bench.log.count("run") == 2


async def test_a_task_that_is_to_run_alone_and_can_not_soon_waits_on_a_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "ALONE_WAIT_S", 0.02)
    bench, release = Bench(lambda *_: release.wait(), single=False), asyncio.Event()
    first = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    bench.ledger.claim_answer = claimed(CRASHES[:2])
    await bench.take()
    assert bench.log == ["claim", "run", "claim", "release", RUNGS[0], "ack"]
    assert bench.became == [Delayed("alone", RECEIVE.rungs[0].delay_s)]
    first.cancel()


async def test_a_task_that_has_not_begun_when_the_worker_drains_goes_back_and_is_not_claimed() -> None:
    bench = Bench()
    bench.guard.drain()
    assert await bench.take(headers={"x-attempts": [FAILED]}) == [TASKS, "ack"]
    assert bench.publisher.copies[0]["headers"] == {"x-attempts": [FAILED]}
    assert (bench.guard.settling.finished, bench.guard.settling.handed_back) == (0, 1)


async def test_a_task_that_waits_for_a_ledger_out_of_reach_goes_back_when_the_worker_drains() -> None:
    bench = Bench()
    bench.ledger.busy = {"claim": 10**6}
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: len(bench.log) > 3)
    bench.guard.drain()
    assert [effect for effect in await taking if effect != "claim busy"] == [TASKS, "ack"]


async def test_a_message_that_was_delivered_very_often_is_copied_before_the_broker_drops_it() -> None:
    bench = Bench()
    assert await bench.take(delivery_count=processor.DELIVERIES) == [RUNGS[0], "ack"]


async def test_an_id_that_is_known_with_another_payload_becomes_a_dead_letter() -> None:
    bench = Bench()
    bench.ledger.claim_answer = Conflict()
    assert await bench.take(headers={"x-attempts": [FAILED]}) == ["claim", DEAD, "ack"]
    assert bench.publisher.copies[0]["headers"]["x-reason"] == "conflict"


async def test_attempts_that_the_ledger_knows_of_count_where_a_copy_does_not_tell_them() -> None:
    for attempts, expected in ((3, [RUNGS[3], "release"]), (5, [DEAD, "bury"])):
        bench = Bench(raising(ValueError("no")))
        bench.ledger.claim_answer = claimed(attempts=attempts)
        assert await bench.take(headers={"x-waited-for": attempts}) == ["claim", "run", *expected, "ack"]


@pytest.mark.parametrize("headers", [{}, {"x-attempts": [FAILED]}, {"x-waited-for": 2}], ids=str)
async def test_a_copy_that_tells_fewer_attempts_waits_once_for_the_one_that_tells_all(headers: dict[str, Any]) -> None:
    bench = Bench(raising(ValueError("no")))
    bench.ledger.claim_answer = claimed(attempts=3)
    assert await bench.take(headers=headers) == ["claim", "release", RUNGS[2], "ack"]
    assert bench.publisher.copies[0]["headers"] == {**headers, "x-waited-for": 3}
    bench = Bench(raising(ValueError("no")))
    bench.ledger.claim_answer = claimed(attempts=3)
    assert await bench.take(headers={"x-attempts": [FAILED] * 3}) == ["claim", "run", RUNGS[3], "release", "ack"]


SENT_BACK = {"x-reason": "failed", "x-died-at": "2026-11-25T09:30:00Z", "x-attempts": [FAILED] * 6, "x-burial": 5}


@pytest.mark.parametrize("burial", [{}, {"x-burial": 5}], ids=["of the version before", "of this version"])
async def test_a_dead_letter_that_is_sent_back_is_revived_and_begins_anew(burial: dict[str, int]) -> None:
    bench = Bench()
    bench.ledger.claim_answer = Finished("dead", 5)
    headers = {name: value for name, value in SENT_BACK.items() if name != "x-burial"} | burial
    assert await bench.take(headers=headers) == ["claim", "revive", "claim", "run", "complete", "ack"]
    assert bench.runs[0].attempt == 1


async def test_crashes_begin_anew_too_where_nobody_counts_them() -> None:
    bench, letter = Bench(), SENT_BACK | {"x-reason": "crashed", "x-crashes": RECEIVE.crash_limit}
    bench.ledger.claim_answer = claimed(None, fence=0)
    assert await bench.take(headers=letter) == ["claim", "run", "complete", "ack"]


async def test_a_letter_of_another_burial_revives_nothing() -> None:
    bench = Bench()
    bench.ledger.claim_answer = Finished("dead", 5)
    assert await bench.take(headers={**SENT_BACK, "x-burial": 4}) == ["claim", "ack"]


async def test_a_dead_letter_that_is_sent_back_too_often_waits_for_the_longest_delay_first() -> None:
    bench = Bench()
    assert await bench.take(headers={**SENT_BACK, "x-returns": processor.RETURNS_AT_ONCE}) == [RUNGS[-1], "ack"]
    (copy,) = bench.publisher.copies
    assert copy["headers"]["x-returns"] == processor.RETURNS_AT_ONCE + 1
    bench.log.clear()
    assert await bench.take(headers=copy["headers"]) == ["claim", "run", "complete", "ack"]


async def test_a_task_that_returns_is_recorded_with_its_result_and_then_acked() -> None:
    bench = Bench()
    assert await bench.take(headers={"x-attempts": [FAILED, FAILED]}) == ["claim", "run", "complete", "ack"]
    assert bench.ledger.values[0] == ("claim", TASK.id, "w1", RECEIVE.lease_s)
    assert bench.ledger.values[1] == ("complete", TASK.id, 5, 3, '{"kind":"nap","attempt":1}')
    assert (bench.runs[0].worker, bench.runs[0].attempt) == ("w1", 3)
    assert bench.publisher.copies == []
    assert (bench.guard.settling.finished, len(bench.guard.in_hand), bench.guard.settling.handed_back) == (1, 0, 0)


async def test_a_handler_may_record_its_completion_itself_and_it_is_recorded_once() -> None:
    async def complete(_: Task, context: TaskContext[None]) -> None:
        async with context.completion(RETURNED) as db:
            assert db is TRANSACTION

    bench = Bench(complete)
    assert await bench.take() == ["claim", "run", "complete", "ack"]
    assert bench.ledger.values[1] == ("complete", TASK.id, 5, 1, '{"kind":"nap","attempt":1}')


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
    delay_s = RECEIVE.rungs[failed].delay_s
    assert bench.ledger.values[-1] == ("release", TASK.id, 5, failed + 1, "ValueError: no", 0.8 * delay_s)


async def test_a_task_that_asks_for_later_waits_on_a_long_enough_rung() -> None:
    bench = Bench(raising(RetryAfter(0.2, "busy")))
    assert await bench.take() == ["claim", "run", RUNGS[2], "release", "ack"]


@pytest.mark.parametrize("ledger", [True, False])
async def test_a_task_that_asks_for_longer_than_any_rung_is_held_back_by_the_ledger(ledger: bool) -> None:
    bench, longest_s = Bench(raising(RetryAfter(60.0, "busy"))), RECEIVE.rungs[-1].delay_s
    bench.ledger.claim_answer = claimed(() if ledger else None)
    assert await bench.take() == ["claim", "run", RUNGS[-1], "release", "ack"]
    *_, next_s = bench.ledger.values[-1]
    assert next_s == (60.0 if ledger else pytest.approx(0.8 * longest_s))
    assert bench.became == [Retrying(1, 60.0 if ledger else longest_s, "busy")]


async def test_a_task_that_has_failed_on_every_rung_becomes_a_dead_letter_then_recorded_then_acked() -> None:
    bench = Bench(raising(ValueError("no")))
    headers = {"x-attempts": [FAILED] * len(RUNGS)}
    assert await bench.take(headers=headers) == ["claim", "run", DEAD, "bury", "ack"]
    assert story_of(bench, "failed", attempts=RECEIVE.max_attempts)["x-error"] == "ValueError: no"
    *said, error = bench.ledger.values[-1]
    assert said == ["bury", TASK.id, 5, RECEIVE.max_attempts]
    line, *trace = error.splitlines()
    assert line == "failed: ValueError: no"
    assert trace[-1] == "ValueError: no"
    assert bench.publisher.copies[0]["headers"]["x-traceback"].splitlines() == trace
    (became,) = bench.became
    assert isinstance(became, Dead)
    assert any("raise error" in line for line in became.trace)


async def test_a_task_that_is_given_up_becomes_a_dead_letter_at_once() -> None:
    bench = Bench(raising(GiveUp("no such file")))
    assert await bench.take() == ["claim", "run", DEAD, "bury", "ack"]
    assert story_of(bench, "gave-up", attempts=1)["x-error"] == "no such file"


async def test_a_result_that_breaks_the_contract_is_of_no_use_to_try_again() -> None:
    bench = Bench(lambda *_: NapResult.model_construct(kind="nap", attempt=0))
    assert await bench.take() == ["claim", "run", DEAD, "bury", "ack"]
    assert "breaks the contract: /attempt" in story_of(bench, "gave-up", attempts=1)["x-error"]


async def test_a_task_that_is_cut_off_goes_back_to_the_broker_once_its_claim_is_free() -> None:
    bench = Bench(never)
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    assert not await bench.guard.idle(0.01)
    bench.guard.end()
    began = time.monotonic()
    assert await bench.guard.idle(WAIT_S)
    assert time.monotonic() - began < WAIT_S / 2  # it is told, and does not just wait
    assert await taking == ["claim", "run", "release", TASKS, "ack"]
    assert (bench.guard.settling.finished, bench.guard.settling.handed_back) == (0, 1)
    (copy,) = bench.publisher.copies
    assert (copy["body"], copy["headers"], copy["message_id"]) == (BODY, {}, "m1")


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
    bench.guard.end()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert bench.log == ["claim", "run", "release"]
    assert bench.fatal == []


async def test_a_body_too_large_to_be_held_is_moved_by_the_broker_itself() -> None:
    bench = Bench()
    arrived = bench.arrives()
    arrived.oversized_bytes = 20_000_000
    delivery.current.set(arrived)
    await bench.guard.take(TASK)
    assert bench.log == ["reject"]
    assert bench.guard.settling.finished == 1
    said = "20000000 bytes, too large to be held in memory; moved by the broker itself"
    assert bench.became == [Dead("undecodable", said, RECEIVE.dead.name)]


async def test_a_dead_task_that_comes_again_with_no_header_of_ours_is_a_dead_letter_once_more() -> None:
    bench = Bench()
    bench.ledger.claim_answer = Finished("dead", 5)
    await bench.take()
    assert bench.became == [Skipped("dead", buried=True)]
    assert bench.log[-2:] == [DEAD, "ack"]


async def test_what_could_not_be_recorded_before_the_end_is_told_and_nothing_else() -> None:
    bench = Bench()
    await bench.take()
    assert bench.guard.execution.ends.open == {}
    bench.ledger.busy["complete"] = 1_000_000
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["complete busy"])
    bench.guard.end()
    taking.cancel()
    with suppress(asyncio.CancelledError):
        await taking
    (told,) = bench.guard.execution.ends.open
    assert str(TASK.id) in told


@pytest.mark.parametrize(
    "why", [CutOff(), Cancellation("by ops"), ValueError("no")], ids=["cut off", "called off", "failed"]
)
async def test_a_claim_is_known_until_the_end_of_its_handler_is_recorded_whichever_it_was(why: Exception) -> None:
    """Another handler may block the loop meanwhile: then only what is known is given back."""
    bench = Bench(never)
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.guard.execution.running)
    (scope,) = bench.guard.execution.running
    bench.ledger.busy = dict.fromkeys(["release", "bury"], 1_000_000)
    scope.stop(why)
    await until(lambda: bench.log[-1].endswith("busy"))
    assert list(bench.guard.execution.ends.open.values()) == [scope.claim]
    bench.ledger.busy.clear()
    await taking
    assert bench.guard.execution.ends.open == {}


async def test_what_keeps_copies_waiting_is_told_once_for_each_queue_and_reason_and_not_for_each_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(raising(RetryAfter(0.0, "busy")))
    refused, unknown = NotSent("m1", "no queue"), SendUnknown("m2", 2.0)
    bench.publisher.errors = [refused, unknown] * 30
    await asyncio.gather(*(bench.take() for _ in range(3)))
    bench.publisher.errors = [refused]  # nobody has waited for that meanwhile
    await bench.take()
    assert bench.log.count("copy refused") == 61
    lines = [line for line in caplog.messages if "can't copy to" in line]
    told = [line.partition("keeps trying: ")[2] for line in lines]
    assert told == [str(refused), str(unknown), str(refused)]


@pytest.mark.parametrize(
    ("given", "settled"),
    [(RetryAfter(0.0, "busy"), copy_to(RECEIVE.rungs[0].queue)), (GiveUp("no"), DEAD)],
    ids=["later", "dead"],
)
async def test_a_failed_attempt_is_held_until_it_is_settled_however_long_the_broker_is_away(
    given: Exception, settled: str
) -> None:
    async def handle(*_: Any) -> None:
        raise given

    bench = Bench(handle, replace(RECEIVE, lease_s=0.06))
    bench.publisher.is_there.clear()
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log.count("renew") > 3)
    assert bench.guard.execution.ends.open
    bench.publisher.is_there.set()
    await taking
    assert settled in bench.log
    assert bench.log[-1] == "ack"
    assert not bench.guard.execution.ends.open
    count = len(bench.log)
    await asyncio.sleep(0.1)
    assert len(bench.log) == count


async def test_a_claim_that_is_lost_while_the_broker_is_away_buries_nothing() -> None:
    async def handle(*_: Any) -> None:
        raise GiveUp("no")

    bench = Bench(handle, replace(RECEIVE, lease_s=0.06))
    bench.publisher.is_there.clear()
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: "renew" in bench.log)
    bench.ledger.kept = False
    count = bench.log.count("renew")
    await until(lambda: bench.log.count("renew") > count)
    bench.publisher.is_there.set()
    await taking
    assert DEAD not in bench.log
    assert bench.became == [LostClaim(RECEIVE.rungs[0].delay_s)]
    assert not bench.guard.execution.ends.open


async def test_one_that_is_buried_as_crashed_is_held_until_it_is_settled_too() -> None:
    bench = Bench(receive=replace(RECEIVE, lease_s=0.06))
    alone = Crash("w", "2026-11-26T00:00:00Z", alone=True)
    bench.ledger.claim_answer = claimed((alone,) * RECEIVE.crash_limit)
    bench.publisher.is_there.clear()
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log.count("renew") > 3)
    bench.publisher.is_there.set()
    await taking
    assert bench.log[-3:] == [DEAD, "bury", "ack"]


# --- what can't answer is asked again ---------------------------------------------------------------------------------


async def test_a_busy_ledger_is_asked_until_it_answers_and_nothing_runs_meanwhile() -> None:
    bench = Bench()
    bench.ledger.busy = {"claim": 5, "complete": 4}
    assert await bench.take() == [*["claim busy"] * 5, "claim", "run", *["complete busy"] * 4, "complete", "ack"]


async def test_a_claim_is_asked_for_again_by_the_same_request_and_the_next_delivery_s_by_another() -> None:
    bench = Bench()
    for _ in range(2):
        bench.ledger.busy = {"claim": 2}
        await bench.take()
    first, second = bench.ledger.requests[:3], bench.ledger.requests[3:]
    assert None not in first
    assert (len(set(first)), len(set(second)), len(set(first + second))) == (1, 1, 2)


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
    assert len(bench.guard.in_hand) == 0


# --- the time limit, and plain functions ------------------------------------------------------------------------------


async def test_a_task_that_takes_longer_than_its_contract_allows_has_failed() -> None:
    bench = Bench(never, replace(RECEIVE, time_limits_s={"nap": 0.02}))
    assert await bench.take() == ["claim", "run", RUNGS[0], "release", "ack"]
    (attempt,) = bench.publisher.copies[0]["headers"]["x-attempts"]
    assert attempt["error"] == "TimeoutError: it took longer than its limit of 0.02 s"


async def test_the_time_limit_is_that_of_the_tasks_own_kind() -> None:
    receive = replace(RECEIVE, time_limits_s={"digest": 0.001, "nap": 20.0})
    assert await Bench(lambda *_: asyncio.sleep(0.1, RETURNED), receive).take() == ["claim", "run", "complete", "ack"]
    receive = replace(RECEIVE, time_limits_s={"digest": 20.0, "nap": 0.02})
    assert await Bench(never, receive).take() == ["claim", "run", RUNGS[0], "release", "ack"]


async def test_a_plain_function_runs_in_a_thread_while_its_claim_is_renewed() -> None:
    bench, go = Bench(receive=replace(RECEIVE, lease_s=0.03)), threading.Event()

    def handle(task: Task, context: TaskContext[None]) -> NapResult:
        assert go.wait(WAIT_S)
        return RETURNED

    guard: Guard[Task] = Guard(handle, replace(RECEIVE, lease_s=0.03), bench.runtime())
    bench.guard = guard
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log.count("renew") >= 3)
    go.set()
    assert [effect for effect in await taking if effect != "renew"] == ["claim", "complete", "ack"]


# --- the end of a handler ---------------------------------------------------------------------------------------------


async def test_a_handler_that_answers_its_cut_off_with_another_error_is_handed_back_all_the_same() -> None:
    async def wrap(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ConnectionError("interrupted") from error

    bench = Bench(wrap)
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    bench.guard.end()
    assert await taking == ["claim", "run", "release", TASKS, "ack"]


async def test_a_story_tells_no_more_attempts_than_the_contract_allows_and_the_latest_of_them() -> None:
    bench = Bench(raising(ValueError("the last straw")))
    await bench.take(headers={"x-attempts": [FAILED] * 100})
    story = story_of(bench, "failed", attempts=100)
    assert "the last straw" in story["x-attempts"][-1]["error"]


async def test_a_handler_that_fails_after_its_own_completion_has_done_its_task() -> None:
    async def complete_and_fail(_: Task, context: TaskContext[None]) -> None:
        async with context.completion(RETURNED):
            pass
        raise ValueError("too late")

    assert await Bench(complete_and_fail).take() == ["claim", "run", "complete", "ack"]


STOPS = [TimeoutError("too long"), CutOff(), Cancellation("by ops")]


@pytest.mark.parametrize("why", STOPS, ids=lambda why: type(why).__name__)
async def test_a_task_that_is_stopped_while_its_completion_is_committed_is_done(why: Exception) -> None:
    bench = Bench(completing)
    await stop_in_commit(bench, why)
    assert bench.log == ["claim", "run", "complete", "ack"]
    assert bench.became == [Done(len(RUNGS) + 1)]


@pytest.mark.parametrize("why", STOPS, ids=lambda why: type(why).__name__)
async def test_where_the_ledger_goes_in_that_commit_the_next_claim_decides(why: Exception) -> None:
    bench = Bench(completing)
    bench.ledger.goes = LedgerBusy("lost in a completion")
    await stop_in_commit(bench, why)
    assert bench.log == ["claim", "run", "release", RUNGS[0], "ack"]


async def completing(_: Task, context: TaskContext[None]) -> None:
    async with context.completion(RETURNED):
        pass
    await asyncio.sleep(0)


async def stop_in_commit(bench: Bench, why: Exception) -> None:
    """On the last attempt."""
    bench.ledger.commits.clear()
    taking = asyncio.ensure_future(bench.take(headers={"x-attempts": [FAILED] * len(RUNGS)}))
    await until(lambda: bench.log[-1:] == ["run"])
    for _ in range(5):
        await asyncio.sleep(0)
    (scope,) = bench.guard.execution.running
    scope.stop(why)
    for _ in range(5):
        await asyncio.sleep(0)
    bench.ledger.commits.set()
    await taking


async def test_a_ledger_that_is_lost_within_a_completion_is_no_failed_attempt() -> None:
    async def complete(_: Task, context: TaskContext[None]) -> None:
        async with context.completion(RETURNED):
            pass

    bench = Bench(complete)
    bench.ledger.goes = LedgerLost("/l.db", "another file is in its place")
    with pytest.raises(LedgerLost):
        await bench.take()
    assert bench.log == ["claim", "run"]
    assert isinstance(bench.fatal[0], LedgerLost)


async def test_a_ledger_that_goes_in_the_middle_of_a_completion_is_no_failed_attempt_not_even_the_last() -> None:
    async def complete(_: Task, context: TaskContext[None]) -> None:
        async with context.completion(RETURNED):
            pass

    bench = Bench(complete)
    bench.ledger.goes = LedgerBusy("lost in a completion")
    headers = {"x-attempts": [FAILED] * len(RUNGS)}
    assert await bench.take(headers=headers) == ["claim", "run", "release", RUNGS[0], "ack"]
    assert bench.ledger.values[-1][:3] == ("release", TASK.id, 5)
    (copy,) = bench.publisher.copies
    assert copy["headers"]["x-attempts"] == headers["x-attempts"]
    assert isinstance(bench.became[0], LostClaim)


async def test_a_busy_ledger_of_which_the_handler_speaks_itself_is_a_failed_attempt() -> None:
    bench = Bench(raising(LedgerBusy("mine")))
    assert await bench.take() == ["claim", "run", RUNGS[0], "release", "ack"]


async def test_a_plain_function_that_is_over_when_the_drain_ends_is_done() -> None:
    def work(*_: Any) -> NapResult:
        threads.append(threading.current_thread())
        assert may_end.wait(WAIT_S)
        return RETURNED

    threads, may_end, bench = list[threading.Thread](), threading.Event(), Bench()
    bench.guard = Guard(work, RECEIVE, bench.runtime())
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: threads)
    may_end.set()
    threads[0].join(WAIT_S)  # and this loop has not seen it
    bench.guard.drain()
    bench.guard.end()
    await taking
    assert bench.log == ["claim", "complete", "ack"]


async def test_a_busy_ledger_does_not_hide_that_the_process_ends() -> None:
    bench = Bench(never)
    bench.ledger.busy["release"] = 1
    taking = asyncio.ensure_future(bench.take())
    await until(lambda: bench.log[-1:] == ["run"])
    bench.guard.end()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not bench.fatal
