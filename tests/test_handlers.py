"""Whatever a handler does is an outcome: a result, or a failed attempt of which one line tells what it was."""

import asyncio
import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import BaseModel

from workqueue.delivery import Delivery
from workqueue.errors import LedgerLost, SettingInvalid
from workqueue.ledger import ClaimLost, Ledger, LedgerBusy
from workqueue.settings import Settings
from workqueue.tasks import threads
from workqueue.tasks.attempt import Attempts
from workqueue.tasks.context import TaskContext
from workqueue.tasks.events import Event, Started, Told
from workqueue.tasks.received import Received
from workqueue.tasks.scope import CutOff, Holder
from workqueue.tasks.stack import ATTEMPT_LIMIT, LINES, TAIL_CHARACTERS, describe, traceback_lines, traceback_tail
from workqueue.tasks.threads import in_thread
from workqueue.verdicts import GiveUp, HandlerBroke, RetryAfter

WAIT_S = 20.0
TASK = SimpleNamespace(id=UUID(int=7))
RECEIVED: Received[Any] = Received(TASK, TASK.id, cast(Delivery, None), "resize", str(TASK.id))


class Answer(BaseModel):
    of: str


ANSWER = Answer(of="the handler")


def attempts(handler: Any, told: list[Told] | None = None, tell_begin: bool = False) -> Attempts:
    tell = (told if told is not None else []).append
    return Attempts(handler, Holder("w1", "resize", cast(Ledger, None), 60.0, tell), tell_begin=tell_begin)


async def outcome(handler: Any, limit_s: float | None = None) -> Any:
    """What comes of one attempt: its result, or the exception; and nothing of it stays with the task that ran it."""
    return await outcome_of(attempts(handler), limit_s)


async def outcome_of(
    runner: Attempts, limit_s: float | None = None, context: TaskContext[None] | None = None
) -> Any:  # fmt: skip
    run = context or TaskContext("w1", 1, Settings(), None, cast(Any, None))
    async with asyncio.timeout(WAIT_S):
        try:
            result: Any = await runner.run(RECEIVED, run, 5, limit_s)
        except Exception as error:  # noqa: BLE001  # and nothing else may come
            result = error
        await asyncio.sleep(0)  # a cancellation that was left behind would come out here
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert not runner.running
    return result


class Secret(type):
    """Tells nothing of its classes."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=Secret):
    pass


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class ExitsWhenRead(Exception):
    def __str__(self) -> str:
        sys.exit(4)


class ExitsWhenAsked(RetryAfter):
    def __init__(self, reason: str) -> None:
        Exception.__init__(self, reason)

    @property
    def delay_s(self) -> float:  # type: ignore[override]
        sys.exit(5)


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


def endless() -> int:
    return endless() + 1


def raising(error: BaseException | Callable[[], object]) -> Callable[[], object]:
    def handle() -> object:
        if isinstance(error, BaseException):
            raise error
        return error()

    return handle


def both(act: Callable[[], object]) -> list[Any]:
    """A coroutine and a plain function that do this."""

    async def on_the_loop(*_: Any) -> None:
        act()

    def in_a_thread(*_: Any) -> None:
        act()

    return [on_the_loop, in_a_thread]


ODD: dict[str, tuple[Callable[[], object], str]] = {
    "sys.exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "keyboard interrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "generator exit": (raising(GeneratorExit()), "GeneratorExit"),
    "cancelled": (raising(asyncio.CancelledError()), "CancelledError"),
    "a base exception group": (
        raising(BaseExceptionGroup("two", [KeyboardInterrupt(), SystemExit(1)])),
        "BaseExceptionGroup: two (2 sub-exceptions)",
    ),
    "a group": (raising(ExceptionGroup("one", [ValueError("x")])), "ExceptionGroup: one (1 sub-exception)"),
    "next of nothing": (lambda: next(iter(())), "StopIteration"),
    "stop async": (raising(StopAsyncIteration()), "StopAsyncIteration"),
    "unreadable": (raising(Unreadable()), "Unreadable: (its text can't be read: str() raises ValueError)"),
    "exits when read": (raising(ExitsWhenRead()), "ExitsWhenRead: (its text can't be read: str() raises SystemExit)"),
    "nameless": (raising(Nameless("x")), "Nameless: x"),
    "no text": (raising(NoText()), "NoText: (its text can't be read: str() raises TypeError)"),
    "a memory error": (raising(MemoryError()), "MemoryError"),
    "a recursion error": (endless, "RecursionError: maximum recursion depth exceeded"),
    "a huge text": (raising(ValueError("x" * 5_000_000)), "ValueError: xxxxxxxxxx"),
    "a lone surrogate": (raising(ValueError("\ud800\x1b[31m\nred\x00")), "ValueError: \\ud800\\x1b[31m red\\x00"),
    "not picklable": (raising(ValueError(lambda: 1)), "ValueError: <function"),
    "our cut-off": (raising(CutOff()), "the handler raised CutOff"),
    "our lost claim": (raising(ClaimLost()), "the handler raised ClaimLost"),
    "a lost ledger": (
        raising(LedgerLost("/l.db", "it was deleted")),
        "the handler raised LedgerLost: ",
    ),
    **{
        f"retry after {delay!r}": (
            raising(RetryAfter(cast(Any, delay), "busy")),
            "RetryAfter with a delay_s that is no number of seconds: busy",
        )
        for delay in ("5", None, float("nan"), float("inf"), -1, [5], 1j, 10**400)
    },
    "retry after a delay that exits": (
        raising(ExitsWhenAsked("busy")),
        "RetryAfter with a delay_s that is no number of seconds: busy",
    ),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("way", [0, 1], ids=["coroutine", "plain"])
async def test_whatever_is_raised_fails_the_attempt_with_a_line(odd: str, way: int) -> None:
    act, expected = ODD[odd]
    error = await outcome(both(act)[way])
    assert isinstance(error, Exception), error
    line = describe(error)
    assert expected in line
    assert line.isprintable()
    assert len(line) <= ATTEMPT_LIMIT
    assert not isinstance(error, (CutOff, ClaimLost, GiveUp, RetryAfter))
    tail = traceback_tail(error)
    assert 0 < len(tail) <= TAIL_CHARACTERS
    assert all(line.isprintable() for line in traceback_lines(error))


async def test_a_task_that_was_cancelled_may_be_awaited() -> None:
    async def cancel_and_await(*_: Any) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(WAIT_S))
        await asyncio.sleep(0)
        inner.cancel()
        await inner

    error = await outcome(cancel_and_await)
    assert describe(error) == "CancelledError"
    assert "await inner" in traceback_tail(error)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("swallows", [False, True])
async def test_a_handler_that_cancels_the_task_it_runs_in_has_failed_at_most(waits: bool, swallows: bool) -> None:
    async def cancel_itself(*_: Any) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            if waits:
                await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            if not swallows:
                raise
        return ANSWER

    result = await outcome(cancel_itself)
    assert result == ANSWER if swallows or not waits else describe(result) == "CancelledError"


async def test_a_time_limit_that_a_handler_answers_with_an_odd_end_is_that() -> None:
    async def exits(*_: Any) -> None:
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            sys.exit(3)

    assert describe(await outcome(exits, limit_s=0.01)) == "SystemExit: 3"


async def test_a_cancellation_from_outside_passes_once_the_worker_ends_and_only_then() -> None:
    for ending in (True, False):
        runner = attempts(lambda *_: None)
        begun = asyncio.Event()

        async def wait(*_: Any, begun: asyncio.Event = begun) -> None:
            begun.set()
            await asyncio.sleep(WAIT_S)

        runner = attempts(wait)
        running = asyncio.ensure_future(outcome_of(runner))
        await begun.wait()
        runner.holder.ending = ending
        running.cancel()
        if ending:
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            assert describe(await running) == "CancelledError"


async def test_an_error_in_answer_to_the_workers_own_cancellation_is_no_failed_attempt() -> None:
    begun = asyncio.Event()

    async def wrap(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            raise ConnectionError("interrupted") from None

    runner = attempts(wrap)
    running = asyncio.ensure_future(outcome_of(runner))
    await begun.wait()
    runner.holder.ending = True
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_a_handler_that_is_thrown_away_with_its_loop_is_no_failed_attempt() -> None:
    async def wait(*_: Any) -> None:
        await asyncio.Event().wait()

    async def begin() -> None:
        await attempts(wait).run(RECEIVED, TaskContext("w1", 1, Settings(), None, cast(Any, None)), 5, None)

    loop = asyncio.new_event_loop()
    task = loop.create_task(begin())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    coroutine: Any = task.get_coro()
    coroutine.close()  # raises RuntimeError where GeneratorExit is answered
    task._log_destroy_pending = False  # type: ignore[attr-defined]


# --- what a handler may be --------------------------------------------------------------------------------------------


async def answer(*_: Any) -> Answer:
    await asyncio.sleep(0)
    return ANSWER


def undecorated(handler: Any) -> Any:
    def wrapper(*args: Any) -> Any:
        return handler(*args)

    return wrapper


class AsyncCallable:
    async def __call__(self, *_: Any) -> Answer:
        return await answer()


class Callables:
    def __call__(self, *_: Any) -> Answer:
        return ANSWER

    async def method(self, *_: Any) -> Answer:
        return await answer()

    def plain_method(self, *_: Any) -> Answer:
        return ANSWER


class Awaitable:
    def __await__(self) -> Iterator[Any]:
        return answer().__await__()


HANDLERS = {
    "async": answer,
    "partial of async": functools.partial(answer, 1),
    "decorated, wraps": functools.wraps(answer)(undecorated(answer)),
    "decorated, bare": undecorated(answer),
    "async object": AsyncCallable(),
    "partial of an async object": functools.partial(AsyncCallable(), 1),
    "async method": Callables().method,
    "returns an awaitable": lambda *_: Awaitable(),
    "plain": lambda *_: ANSWER,
    "plain object": Callables(),
    "plain method": Callables().plain_method,
    "partial of plain": functools.partial(Callables(), 1),
    "runs a loop of its own": lambda *_: asyncio.run(answer()),
}


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_handler_is_any_callable_and_what_it_returns_is_awaited(name: str) -> None:
    assert await outcome(HANDLERS[name]) == ANSWER


@pytest.mark.parametrize("name", ["async", "async object", "async method", "partial of async"])
async def test_a_coroutine_function_runs_on_the_loop_at_once_and_in_no_thread(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threading.Thread.start", lambda _: pytest.fail("a thread"))
    assert await outcome(HANDLERS[name]) == ANSWER


@pytest.mark.parametrize("wrong", [{"of": "x"}, "done", 5, Answer, [ANSWER]], ids=repr)
async def test_a_result_that_is_no_model_is_given_up_since_it_cannot_become_right(wrong: Any) -> None:
    for handler in both(lambda: None):

        async def returns(*_: Any) -> Any:
            return wrong

        error = await outcome(returns if asyncio.iscoroutinefunction(handler) else lambda *_: wrong)
        assert isinstance(error, GiveUp)
        assert f"of type {type(wrong).__name__}; it must be a result model" in str(error)


async def test_an_error_after_the_time_limit_does_not_hide_it() -> None:
    async def handle(*_: Any) -> None:
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            raise ValueError("in the cleanup")

    error = await outcome(handle, limit_s=0.05)
    assert isinstance(error, HandlerBroke)
    assert describe(error) == (
        "it took longer than its limit of 0.05 s, and then the handler raised ValueError: in the cleanup"
    )


async def test_a_generator_function_is_given_up_too() -> None:
    async def generate(*_: Any) -> Any:
        yield ANSWER

    assert isinstance(await outcome(generate), GiveUp)


@pytest.mark.parametrize("error", [ClaimLost(), LedgerBusy(), LedgerLost("/l.db", "it was deleted")], ids=repr)
async def test_a_completion_that_lost_its_claim_or_its_ledger_did_whatever_the_handler_makes_of_it(
    error: Exception,
) -> None:
    class Lost:
        async def __aenter__(self) -> None:
            raise error

        async def __aexit__(self, *_: Any) -> None: ...

    async def handle(_: Any, context: TaskContext[None]) -> None:
        try:
            async with run.completion():
                pass
        except type(error) as lost:
            raise ValueError("mine") from lost

    run = TaskContext("w1", 1, Settings(), None, cast(Any, lambda _: Lost()))
    with pytest.raises(type(error)):
        await attempts(handle).run(RECEIVED, run, 5, None)


async def test_a_completion_in_a_thread_is_a_failure_that_says_the_way_out() -> None:
    def enters(_: Any, context: Any) -> None:
        with context.completion():
            pass

    def calls(_: Any, context: Any) -> None:
        context.completion()

    def runs_a_loop(_: Any, context: TaskContext[None]) -> None:
        async def complete() -> None:
            async with context.completion() as db:
                await db.execute("INSERT INTO effect VALUES (1)")

        asyncio.run(complete())

    for handler in (enters, calls, runs_a_loop):
        error = await outcome(handler)
        assert "make the handler an `async def`" in describe(error), handler


async def test_a_task_that_begins_is_told_at_once_when_that_is_wanted() -> None:
    told: list[Told] = []
    await outcome_of(attempts(answer, told, tell_begin=True))
    await outcome_of(attempts(answer, told))
    assert told == [Event("w1", "resize", "resize", str(TASK.id), 0.0, Started(1))]


# --- tracebacks -------------------------------------------------------------------------------------------------------


def deep(levels: int) -> None:
    if not levels:
        raise ValueError("the root")
    deep(levels - 1)


async def fails_with_a_cause(*_: Any) -> None:
    try:
        deep(2)
    except ValueError as error:
        raise RuntimeError("the handler's own") from error


@pytest.mark.parametrize("plain", [False, True])
async def test_a_traceback_begins_at_the_handler_and_follows_the_causes(plain: bool) -> None:
    handler = (lambda *_: asyncio.run(fails_with_a_cause())) if plain else fails_with_a_cause
    tail = traceback_tail(await outcome(handler))
    assert "ValueError: the root" in tail
    assert "direct cause" in tail
    assert tail.endswith("RuntimeError: the handler's own")
    assert "deep(levels - 1)" in tail
    assert f"workqueue{os.sep}tasks" not in tail


async def test_the_traceback_of_an_odd_end_is_that_of_what_was_raised() -> None:
    error = await outcome(both(lambda: sys.exit(3))[0])
    assert isinstance(error, HandlerBroke)
    assert traceback_lines(error)[-1] == "SystemExit: 3"
    assert "HandlerBroke" not in traceback_tail(error)


async def test_the_traceback_of_a_time_limit_tells_where_the_handler_was() -> None:
    async def stand(*_: Any) -> None:
        await asyncio.sleep(WAIT_S)  # stands here

    def stand_in_a_thread(*_: Any) -> None:
        while True:
            deep_in = 1  # noqa: F841

    for handler, expected in ((stand, "stands here"), (stand_in_a_thread, "in stand_in_a_thread")):
        tail = traceback_tail(await outcome(handler, limit_s=0.02))
        assert expected in tail
        assert tail.endswith("TimeoutError: it took longer than its limit of 0.02 s")


async def test_a_long_traceback_is_cut_to_its_last_lines() -> None:
    def long(*_: Any) -> None:
        try:
            raise ValueError("\n".join(f"line {number}" for number in range(10_000)))
        except ValueError as error:
            raise RuntimeError("last") from error

    lines = traceback_lines(await outcome(long))
    assert len(lines) == LINES
    assert lines[-1] == "RuntimeError: last"


def test_a_traceback_of_an_exception_whose_attributes_fail_is_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traceback, "TracebackException", SimpleNamespace(from_exception=endless))
    assert traceback_lines(ValueError("x")) == ["ValueError: x"]


def test_causes_in_a_circle_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert traceback_tail(one).endswith("ValueError: one")


@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_log_has_two_levels(level: str) -> None:
    assert Settings.load({"WORKQUEUE_LOG": level}).log == level


def test_another_level_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SettingInvalid, match=r"^WORKQUEUE_LOG='trace': use info or debug$"):
        Settings.load({"WORKQUEUE_LOG": "trace"})


async def test_a_thread_is_not_interrupted_as_it_takes_a_lock_and_leaves_none_taken() -> None:
    """Where an exception comes between that and the `try`, as in `logging` of Python 3.11, nobody gets it any more."""
    lock, waits = threading.Lock(), threading.Event()

    def acquire() -> None:
        waits.set()
        lock.acquire()

    def work() -> None:
        acquire()
        try:
            while True:
                time.sleep(0.001)
        finally:
            lock.release()

    lock.acquire()
    working = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(waits.wait)
    working.cancel()
    await asyncio.sleep(0.1)
    lock.release()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert lock.acquire(timeout=1)


async def test_a_thread_that_waits_for_a_lock_for_long_is_interrupted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "LOCKS_S", 0.1)

    def acquire() -> None:
        while True:
            time.sleep(0.001)

    working = asyncio.ensure_future(in_thread(acquire))
    await asyncio.sleep(0.05)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, 10)
