"""The scope around a running handler: time limit, renewal, cancellation, and what is said of a handler that stays."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from workqueue import delivery
from workqueue.delivery import Delivery
from workqueue.ledger import ClaimLost, Ledger, LedgerBusy
from workqueue.tasks import scope as scopes
from workqueue.tasks.events import Event, Running, Told
from workqueue.tasks.progress import Progress
from workqueue.tasks.received import Received
from workqueue.tasks.scope import Cancellation, CutOff, Holder, Scope
from workqueue.tasks.threads import in_thread

WAIT_S = 20.0
TASK = SimpleNamespace(id=UUID(int=7))
RECEIVED: Received[Any] = Received(TASK, TASK.id, cast(Delivery, None), "resize", str(TASK.id))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what is waited for may happen in a thread
            await asyncio.sleep(0.001)


async def kept() -> bool:
    return True


class Renewing:
    """A ledger that does nothing but renew."""

    def __init__(self, renew: Callable[[], Awaitable[bool]]) -> None:
        self._renew = renew

    async def renew(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        assert (task_id, fence) == (TASK.id, 5)
        return await self._renew()


def a_scope(
    limit_s: float | None, lease_s: float, renew: Callable[[], Awaitable[bool]] = kept, told: list[Told] | None = None
) -> Scope:
    tell = (told if told is not None else []).append
    holder = Holder("w1", "resize", cast(Ledger, Renewing(renew)), lease_s, tell)
    return Scope(holder, RECEIVED, 5, limit_s, 1, Progress())


async def held(scope: Scope, inside: Any = None) -> None:
    async with asyncio.timeout(WAIT_S):
        with scope:
            await (inside or asyncio.Event().wait())


async def test_a_scope_lets_what_ends_in_time_go_and_leaves_nothing_running() -> None:
    for limit_s in (None, 10.0):
        await held(a_scope(limit_s, 0.003, kept), asyncio.sleep(0.01))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("answer", [True, False])
async def test_a_renewal_that_is_on_its_way_when_the_handler_ends_is_neither_cancelled_nor_heeded(answer: bool) -> None:
    """A server that has fallen silent would be asked to cancel it, over a connection of its own, for seconds."""
    asked, answered, ended = asyncio.Event(), asyncio.Event(), []

    async def renew() -> bool:
        asked.set()
        try:
            await answered.wait()
        finally:
            ended.append(answered.is_set())
        return answer

    await held(a_scope(None, 0.003, renew), asked.wait())
    await asyncio.sleep(0.01)
    assert ended == []
    answered.set()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert ended == [True]


async def test_a_scope_that_was_left_in_time_touches_nothing_any_more() -> None:
    renewals: list[float] = []

    async def renew() -> bool:
        renewals.append(time.monotonic())
        return False

    await held(a_scope(0.02, 0.03, renew), asyncio.sleep(0))
    await held(a_scope(None, 0.03, renew), asyncio.sleep(0))
    await asyncio.sleep(0.06)
    assert renewals == []


async def test_a_scope_ends_what_takes_too_long_and_says_how_long_that_is() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^it took longer than its limit of 0\.02 s$"):
        await held(a_scope(0.02, 10, kept))
    assert time.monotonic() - began < WAIT_S / 2


async def test_a_scope_passes_on_what_the_handler_raises_itself() -> None:
    async def slow() -> None:
        raise TimeoutError("the other side")

    with pytest.raises(TimeoutError, match=r"^the other side$"):
        await held(a_scope(10, 10, kept), slow())


async def test_a_handler_may_answer_a_time_limit_but_not_a_stop() -> None:
    async def stubborn(error: Exception | None) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    await held(a_scope(0.01, 10, kept), stubborn(None))
    with pytest.raises(ValueError, match="mine"):
        await held(a_scope(0.01, 10, kept), stubborn(ValueError("mine")))
    for error in (None, ValueError("mine")):
        scope = a_scope(10, 10, kept)
        asyncio.get_running_loop().call_soon(scope.stop, CutOff())
        with pytest.raises(CutOff):
            await held(scope, stubborn(error))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_swallows_a_cancellation_and_takes_it_back_is_cancelled_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scopes, "CANCEL_AGAIN_S", 0.02)

    async def swallow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            scope.running.uncancel()

    scope = a_scope(0.01, 10)
    await held(scope, swallow())
    await asyncio.sleep(0.1)
    assert scope.running.cancelling() == 0

    scope = a_scope(10, 10)
    asyncio.get_running_loop().call_soon(scope.stop, CutOff())
    with pytest.raises(CutOff):
        await held(scope, swallow())


async def test_what_stops_a_handler_that_has_ended_comes_too_late() -> None:
    scope = a_scope(10, 10)
    await held(scope, asyncio.sleep(0))
    scope.stop(Cancellation("by ops"))
    await asyncio.sleep(0)
    assert scope.running.cancelling() == 0


async def test_a_task_that_somebody_else_cancels_too_stays_cancelled() -> None:
    scope = a_scope(0.01, 10, kept)
    holding = asyncio.ensure_future(held(scope))
    await asyncio.sleep(0)
    scope.stop(CutOff())
    scope.holder.ending = True
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding


async def test_a_scope_raises_what_it_was_stopped_with_first() -> None:
    scope = a_scope(10, 10, kept)
    asyncio.get_running_loop().call_soon(scope.stop, CutOff())
    asyncio.get_running_loop().call_soon(scope.stop, ClaimLost())
    with pytest.raises(CutOff):
        await held(scope)


async def test_a_scope_renews_the_claim_several_times_in_a_lease_and_survives_a_busy_ledger() -> None:
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
    await held(a_scope(None, lease_s, renew), enough.wait())
    assert renewals[0] - began >= lease_s / 4  # a short task is not renewed at all
    assert min(after - before for before, after in pairwise(renewals)) >= lease_s / 4


async def test_a_scope_whose_claim_is_lost_ends_the_handler() -> None:
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
        await held(a_scope(None, 0.01, lost), work())
    assert ended


async def test_a_drain_that_ends_while_a_handler_cleans_up_after_its_time_limit_is_no_error() -> None:
    cleaning, clean = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()

    scope = a_scope(0.01, 10, kept)
    holding = asyncio.ensure_future(held(scope, work()))
    await cleaning.wait()
    try:
        scope.stop(CutOff())
    finally:
        clean.set()
        with suppress(TimeoutError, CutOff):
            await holding


async def test_a_renewal_that_fails_in_a_way_nobody_expected_is_tried_again() -> None:
    tried: list[int] = []

    async def renew() -> bool:
        tried.append(1)
        if len(tried) < 3:
            raise OSError("the disk is on fire")
        return True

    await held(a_scope(None, 0.01, renew), until(lambda: len(tried) >= 4))


# --- a handler that does not end --------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "CANCEL_AGAIN_S", 0.02)


async def swallow(times: int) -> None:
    while times:
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            times -= 1


@pytest.mark.usefixtures("hurried")
async def test_a_handler_that_swallows_cancellations_is_cancelled_until_it_ends() -> None:
    await held(a_scope(0.01, 10), swallow(5))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0.06)  # nothing is left that would cancel this


@pytest.mark.usefixtures("hurried")
async def test_its_claim_is_renewed_for_as_long_as_it_stays() -> None:
    renewals: list[float] = []

    async def renew() -> bool:
        renewals.append(time.monotonic())
        return True

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(WAIT_S)
        after = len(renewals)
        while len(renewals) < after + 3:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    await held(a_scope(0.01, 0.03, renew), work())


@pytest.mark.usefixtures("hurried")
async def test_a_coroutine_that_cannot_be_stopped_is_told_once_with_its_place_and_the_way_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await held(a_scope(0.01, 10), swallow(9))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "w1  can't stop  resize  00000000-0000-0000-0000-000000000007" in line
    assert "longer than its limit of 0.01 s" in line
    assert "test_scope.py:" in line
    assert "swallow" in line
    assert "let CancelledError pass" in line


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("swallowed", "lines"), [(2, 0), (3, 1)])
async def test_what_ends_at_its_second_cancellation_is_not_told_to_be_stubborn(
    swallowed: int, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    await held(a_scope(0.01, 10), swallow(swallowed))
    assert len(caplog.records) == lines


@pytest.mark.usefixtures("hurried")
async def test_a_thread_that_cannot_be_stopped_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    def deaf() -> None:
        while not told.wait(0.01):
            pass

    def deaf_to_interrupts() -> None:
        while not told.is_set():
            with suppress(BaseException):
                deaf()

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    listener = Tell()
    scopes.log.addHandler(listener)
    try:
        scope = a_scope(0.01, 10)
        with pytest.raises(TimeoutError):
            await held(scope, in_thread(deaf_to_interrupts))
    finally:
        scopes.log.removeHandler(listener)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "deaf_to_interrupts" in line


async def test_a_thread_that_swallows_an_interrupt_is_interrupted_again_and_waited_for() -> None:
    swallowed, ended = [], threading.Event()

    def work() -> None:
        for _ in range(3):
            try:
                while True:
                    time.sleep(0.005)
            except BaseException as interrupt:  # noqa: BLE001
                swallowed.append(interrupt)
        ended.set()

    running = asyncio.ensure_future(in_thread(work))
    await asyncio.sleep(0.02)
    for count in (1, 2, 3):
        assert not running.done()
        running.cancel()
        async with asyncio.timeout(WAIT_S):
            while len(swallowed) < count:  # noqa: ASYNC110  # it happens in a thread
                await asyncio.sleep(0.001)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_that_ended_while_the_loop_was_busy_is_not_undone_by_a_later_cancellation(fails: bool) -> None:
    ended = threading.Event()

    def work() -> str:
        ended.set()
        if fails:
            raise ValueError("mine")
        return "done"

    running = asyncio.ensure_future(in_thread(work))
    await asyncio.sleep(0)
    assert ended.wait(WAIT_S)
    time.sleep(0.05)  # noqa: ASYNC251  # it is over, and this loop has not seen it
    running.cancel()
    if fails:
        with pytest.raises(ValueError, match="mine"):
            await running
    else:
        assert await running == "done"


async def test_a_thread_that_can_not_be_started_leaves_nothing_of_its_task_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Arrived:
        pass

    async def handle() -> None:
        delivery.current.set(cast(Delivery, Arrived()))
        arrived.append(weakref.ref(delivery.current.get()))
        with suppress(RuntimeError):
            await in_thread(lambda: None)

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    arrived = list[weakref.ref[Any]]()
    await asyncio.create_task(handle())
    await asyncio.sleep(0)  # until then the loop has the task, and its context
    gc.collect()
    assert arrived[0]() is None


async def test_a_task_that_runs_for_long_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "LONG_S", 0.02)
    told: list[Told] = []
    await held(a_scope(None, 10, told=told), asyncio.sleep(0.1))
    await held(a_scope(None, 10, told=told), asyncio.sleep(0.001))
    (event,) = told
    assert isinstance(event, Event)
    assert (event.kind, event.id, event.what) == ("resize", str(UUID(int=7)), Running())
    assert 0.0 < event.took_s < WAIT_S
