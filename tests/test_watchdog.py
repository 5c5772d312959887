"""The thread that watches the event loop: what it says, whose claims it renews, and how it ends a process."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from workqueue.delivery import Delivery
from workqueue.ledger import Ledger
from workqueue.settings import Settings
from workqueue.tasks import watchdog as watchdogs
from workqueue.tasks.attempt import Attempts
from workqueue.tasks.context import TaskContext
from workqueue.tasks.progress import Progress
from workqueue.tasks.received import Received
from workqueue.tasks.scope import HeldClaim, Holder
from workqueue.tasks.watchdog import Watchdog

TASK = SimpleNamespace(id=UUID(int=7))
RECEIVED: Received[Any] = Received(TASK, TASK.id, cast(Delivery, None), "resize", str(TASK.id))


class Renewing:
    """A ledger that does nothing but renew."""

    def __init__(self) -> None:
        self.renewals: list[float] = []
        self.errors: list[Exception] = []

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        assert (task_id, fence) == (TASK.id, 5)
        if self.errors:
            raise self.errors.pop()
        self.renewals.append(time.monotonic())
        return True

    async def renew(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        return True


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdogs, "LOOK_S", 0.1)
    monkeypatch.setattr(watchdogs, "BLOCKED_S", 0.4)


def held(holder: Holder) -> HeldClaim:
    return HeldClaim(holder, TASK.id, 5, f"resize  {TASK.id}", Progress())


@contextmanager
def watched(attempts: Attempts, *unrecorded: HeldClaim) -> Iterator[Watchdog]:
    watchdog = Watchdog("w1", lambda: attempts.running, lambda: unrecorded, lambda _: None)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.rest()


async def run(act: Callable[[], Any], ledger: Renewing, limit_s: float | None, lease_s: float = 0.6) -> None:
    async def handle(*_: Any) -> None:
        act()

    attempts = Attempts(handle, Holder("w1", "resize", cast(Ledger, ledger), lease_s, lambda _: None))
    with watched(attempts):
        await attempts.run(RECEIVED, TaskContext("w1", 1, Settings(), None, cast(Any, None)), 5, limit_s)
        await asyncio.sleep(0.5)  # it looks once more


def blocking(seconds: float) -> Callable[[], None]:
    def sleep_here() -> None:
        time.sleep(seconds)

    return sleep_here


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == watchdogs.__name__]


async def test_a_loop_that_is_blocked_is_told_once_with_task_and_place_and_again_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await run(blocking(2.0), Renewing(), None)
    blocked, goes_on = [line for line in lines(caplog) if "event loop" in line]
    assert f"w1  the event loop is blocked, since 0 s, in  resize  {TASK.id}: " in blocked
    assert "test_watchdog.py:" in blocked
    assert "sleep_here" in blocked
    assert "in_thread" in blocked
    assert "goes on, after 2 s" in goes_on


async def test_a_line_about_a_beginning_that_nobody_reads_leaves_a_watchdog_that_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(*_: Any) -> None:
        pass

    holder = Holder("w1", "resize", cast(Ledger, Renewing()), 60.0, lambda _: time.sleep(1.0))
    attempts = Attempts(handle, holder, tell_begin=True)
    with watched(attempts):
        for _ in range(2):
            await attempts.run(RECEIVED, TaskContext("w1", 1, Settings(), None, cast(Any, None)), 5, None)
            await asyncio.sleep(0.5)
    blocked = [line for line in lines(caplog) if f"is blocked, since 0 s, in  resize  {TASK.id}: " in line]
    assert len(blocked) == 2
    assert "can't look" not in caplog.text


async def test_what_it_cannot_look_at_is_said_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(set[Any]):
        def __iter__(self) -> Any:
            raise LookupError("no such task")

    attempts = Attempts(cast(Any, None), Holder("w1", "resize", cast(Ledger, None), 60.0, lambda _: None))
    attempts.running = Odd()
    with watched(attempts):
        blocking(2.0)()
    assert "w1  can't look at the event loop: LookupError: no such task" in lines(caplog)
    assert any("can't look" in line for line in lines(caplog)[1:])


async def test_claims_are_renewed_while_the_loop_is_blocked_also_after_a_renewal_failed() -> None:
    ledger = Renewing()
    ledger.errors.append(OSError("the disk is on fire"))
    await run(blocking(2.0), ledger, None)
    assert len(ledger.renewals) >= 3
    assert max(b - a for a, b in zip(ledger.renewals, ledger.renewals[1:], strict=False)) < 0.6


async def test_the_claim_of_what_has_ended_and_is_not_recorded_is_renewed_too() -> None:
    """What another task's handler blocks is also the record of its end."""
    ledger = Renewing()
    holder = Holder("w1", "resize", cast(Ledger, ledger), 0.6, lambda _: None)
    with watched(Attempts(cast(Any, None), holder), held(holder)):
        blocking(2.0)()
    assert len(ledger.renewals) >= 3


async def test_claims_are_renewed_within_the_time_limit_only() -> None:
    ledger, began = Renewing(), time.monotonic()
    await run(blocking(2.0), ledger, limit_s=1.0)
    assert ledger.renewals
    assert max(ledger.renewals) - began < 1.5


async def test_a_loop_that_goes_on_is_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Renewing()
    for _ in range(5):
        await run(blocking(0.05), ledger, None)
    assert lines(caplog) == []
    assert ledger.renewals == []


async def test_a_process_that_must_end_gives_its_claims_back_says_what_runs_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    given_back: list[Any] = []

    class Ended(Exception): ...

    def end(code: int) -> None:
        raise Ended(code)

    def caught(end: Any) -> None:  # the thread's last act: after the test, nobody would catch what it raises
        ended.get_loop().call_soon_threadsafe(ended.set_result, *end.exc_value.args)

    async def stay(*_: Any) -> None:
        await ended

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("threading.excepthook", caught)
    attempts = Attempts(stay, Holder("w1", "resize", cast(Ledger, Renewing()), 60, lambda _: None))
    watchdog = Watchdog("w1", lambda: attempts.running, lambda: (), given_back.extend)
    watchdog.start()
    watchdog.end_by(9.0, 70, "later")
    watchdog.end_by(0.1, 0, "the drain is over")
    watchdog.end_by(5.0, 70, "later again")
    with caplog.at_level(logging.WARNING):
        await attempts.run(RECEIVED, TaskContext("w1", 1, Settings(), None, cast(Any, None)), 5, None)
    watchdog.rest()
    assert ended.result() == 0
    assert [scope.task_id for scope in given_back] == [TASK.id]
    (line,) = lines(caplog)
    assert f"ends (the drain is over) while it runs  resize  {TASK.id}: " in line
    assert " stay" in line


def test_what_has_ended_and_is_not_recorded_is_given_back_and_told_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given_back: list[HeldClaim] = []
    monkeypatch.setattr("os._exit", lambda _: None)
    claim = held(cast(Holder, None))
    watchdog = Watchdog("w1", lambda: (), lambda: (claim,), given_back.extend)
    watchdog._loop_thread = threading.get_ident()
    watchdog._end_process(0, "the drain is over")
    assert given_back == [claim]
    assert f"w1  ends before the end of  {claim.told}  could be recorded: it will be done again" in lines(caplog)
