"""What a handler says of how far it is: checked at the call, whoever calls, and saved in its order."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import BaseModel

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from tests.harness import RECEIVE
from workqueue import Settings, TaskContext, TaskDead
from workqueue.cli.tables import reached
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.tasks.progress import CHECKPOINT_BYTES, TEXT_LIMIT, Progress
from workqueue.testing import run_task

ID = UUID(int=7)


def context_of(complete: Any = None) -> TaskContext[None]:
    return TaskContext("w1", 1, Settings(), None, cast(Any, complete))


class Saving:
    """A ledger that does nothing but save, each time as `answers` has it."""

    def __init__(self) -> None:
        self.saved, self.answers = list[str](), list[asyncio.Future[bool]]()

    async def save(self, task_id: UUID, fence: int, checkpoint: str) -> bool:
        assert (task_id, fence) == (ID, 5)
        if self.answers:
            await self.answers.pop(0)
        self.saved.append(checkpoint)
        return True

    async def of(self, progress: Progress) -> None:
        await progress.save(cast(Ledger, self), ID, 5)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_stays_as_it_was_told_last() -> None:
    context = context_of()
    so_far = context.so_far
    assert (so_far.shown(), so_far.unsaved, context.checkpoint) == ({}, None, None)
    context.progress(checkpoint={"line": 1})
    assert (so_far.shown(), so_far.unsaved) == ({}, '{"line":1}')
    context.progress(0.25, "reading")
    context.progress(0.5)
    assert (so_far.shown(), so_far.unsaved) == ({"progress": 0.5, "text": "reading"}, '{"line":1}')
    context.progress(text="", checkpoint=None)
    assert (so_far.shown(), so_far.unsaved) == ({"progress": 0.5, "text": ""}, "null")
    assert context.checkpoint is None


def test_a_checkpoint_is_as_it_was_at_the_call() -> None:
    context, lines = context_of(), [1]
    context.progress(checkpoint=lines)
    lines.append(2)
    assert context.so_far.unsaved == "[1]"


def test_a_long_text_is_cut() -> None:
    context = context_of()
    context.progress(text="x" * 1000)
    assert context.so_far.text == "x" * TEXT_LIMIT


def test_a_sum_that_was_rounded_is_no_error() -> None:
    context, done = context_of(), 0.0
    for _ in range(9):
        done += 1 / 9
    context.progress(done + 2**-52)
    assert context.so_far.fraction == 1.0
    context.progress(-1e-17)
    assert context.so_far.fraction == 0.0


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 40, math.nan, math.inf, -math.inf])
def test_a_fraction_is_from_0_to_1(fraction: float) -> None:
    context = context_of()
    with pytest.raises(ValueError, match=r"^the fraction of a progress must be from 0 to 1, and is \S+$"):
        context.progress(fraction, "text", checkpoint=1)
    assert (context.so_far.shown(), context.so_far.unsaved) == ({}, None)


@pytest.mark.parametrize("value", ["0.4", b"", [], 1j])
def test_what_is_no_number_or_no_text_is_refused(value: Any) -> None:
    context = context_of()
    with pytest.raises(TypeError, match="must be a number, and is of type"):
        context.progress(value)
    if not isinstance(value, str):
        with pytest.raises(TypeError, match="must be a str, and is of type"):
            context.progress(0.4, value, checkpoint=1)
    assert (context.so_far.shown(), context.so_far.unsaved) == ({}, None)


def cyclic() -> list[Any]:
    made = list[Any]()
    made.append(made)
    return made


def nested(depth: int) -> list[Any]:
    made = list[Any]()
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("checkpoint", "error", "said"),
    [
        (math.nan, ValueError, "not JSON compliant"),
        ({"a": [math.inf]}, ValueError, "not JSON compliant"),
        (cyclic(), ValueError, "Circular"),
        (nested(100_000), ValueError, "nested too deeply"),
        pytest.param(10**5000, ValueError, "4300 digits", id="digits"),
        ("x" * (CHECKPOINT_BYTES - 1), ValueError, "65,537 bytes of JSON, more than 65,536"),
        (datetime.now(UTC), TypeError, "datetime"),
        (b"bytes", TypeError, "bytes"),
        ({1, 2}, TypeError, "set"),
        (Nap(kind="nap", seconds=1.0), TypeError, "Nap"),
        ((1, 2), TypeError, r"would come back as \[1,2\]"),
        ([{"a": (1,)}], TypeError, r"would come back as"),
        ({1: 2}, TypeError, r'would come back as {"1":2}'),
        ({None: 2}, TypeError, "would come back as"),
        ({(1, 2): 2}, TypeError, "keys must be"),
    ],
)
def test_what_is_no_checkpoint_is_refused_at_the_call(checkpoint: Any, error: type[Exception], said: str) -> None:
    context = context_of()
    context.progress(checkpoint="good")
    with pytest.raises(error, match=f"^no checkpoint: .*{said}") as raised:
        context.progress(0.5, "text", checkpoint=checkpoint)
    assert "\n" not in str(raised.value)
    assert (context.so_far.shown(), context.so_far.unsaved) == ({}, '"good"')


@pytest.mark.parametrize(
    "checkpoint", [None, True, 0, -1.5, 10**400, "", "é\0\ud800\n", [], {}, {"a": [None, {"b": "c"}]}, "x" * 65_534]
)
def test_a_checkpoint_comes_back_as_it_was_given(checkpoint: Any) -> None:
    context = context_of()
    context.progress(checkpoint=checkpoint)
    given = context.so_far.unsaved
    assert given is not None
    assert given.isprintable()
    found = Progress(given).left
    assert (found, type(found)) == (checkpoint, type(checkpoint))


def test_how_far_it_is_is_not_rounded_up() -> None:
    assert [reached(done, "") for done in (0.0, 0.29, 0.999, 1.0)] == ["0%", "29%", "99%", "100%"]
    assert [reached(0.4, "text"), reached(None, "text"), reached(None, "")] == ["40%  text", "text", ""]


# --- what is saved ----------------------------------------------------------------------------------------------------


async def test_only_what_is_new_is_saved() -> None:
    ledger, context = Saving(), context_of()
    await ledger.of(context.so_far)
    context.progress(0.5, "text")
    await ledger.of(context.so_far)
    assert ledger.saved == []
    for checkpoint in (1, 2):
        context.progress(checkpoint=checkpoint)
    for _ in range(2):
        await ledger.of(context.so_far)
    assert ledger.saved == ["2"]


async def test_one_that_a_busy_ledger_has_still_to_save_is_not_written_over_a_later_one() -> None:
    ledger, context = Saving(), context_of()
    answer = asyncio.get_running_loop().create_future()
    ledger.answers.append(answer)
    context.progress(checkpoint="of the beat")
    beat = asyncio.ensure_future(ledger.of(context.so_far))
    await asyncio.sleep(0)
    context.progress(checkpoint="of the end")
    end = asyncio.ensure_future(ledger.of(context.so_far))
    await asyncio.sleep(0.01)
    answer.set_result(True)
    await asyncio.gather(beat, end)
    assert ledger.saved == ['"of the beat"', '"of the end"']


async def test_what_a_busy_ledger_did_not_save_is_unsaved() -> None:
    ledger, context = Saving(), context_of()
    answer = asyncio.get_running_loop().create_future()
    answer.set_exception(LedgerBusy("no"))
    ledger.answers.append(answer)
    context.progress(checkpoint=1)
    with pytest.raises(LedgerBusy):
        await ledger.of(context.so_far)
    assert context.so_far.unsaved == "1"
    await ledger.of(context.so_far)
    assert ledger.saved == ["1"]


async def test_the_row_that_a_completion_has_is_let_alone() -> None:
    @asynccontextmanager
    async def complete(result: BaseModel | None) -> AsyncIterator[Any]:
        yield SimpleNamespace()

    async def fail() -> None:
        async with context.completion():
            await ledger.of(context.so_far)
            assert ledger.saved == []
            raise ZeroDivisionError

    ledger, context = Saving(), context_of(complete)
    context.progress(checkpoint=1)
    with pytest.raises(ZeroDivisionError):
        await fail()
    await ledger.of(context.so_far)
    assert ledger.saved == ["1"]


# --- in a worker, on a broker in memory -------------------------------------------------------------------------------


async def test_the_latest_checkpoint_of_a_failed_attempt_is_found_by_the_next() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> NapResult:
        found.append(context.checkpoint)
        if len(found) == 2:
            raise RuntimeError("it said nothing")
        for part in range(3):
            context.progress(part / 3, checkpoint=[len(found), part])
        if len(found) < 4:
            raise RuntimeError("not yet")
        return NapResult(kind="nap", attempt=context.attempt)

    found = list[Any]()
    await run_task(Application, handle, Nap(kind="nap", seconds=0.0), to="do_errand")
    assert found == [None, [1, 2], [1, 2], [3, 2]]


async def test_a_plain_function_says_it_from_its_thread() -> None:
    def handle(task: Task, context: TaskContext[None]) -> NapResult:
        assert threading.current_thread() is not threading.main_thread()
        found.append(context.checkpoint)
        context.progress(0.5, "half", checkpoint={"attempt": context.attempt})
        if context.attempt == 1:
            raise RuntimeError("not yet")
        return NapResult(kind="nap", attempt=context.attempt)

    found = list[Any]()
    await run_task(Application, handle, Nap(kind="nap", seconds=0.0), to="do_errand")
    assert found == [None, {"attempt": 1}]


async def test_what_is_no_checkpoint_fails_the_attempt_and_the_one_before_stays() -> None:
    async def handle(task: Task, context: TaskContext[None]) -> None:
        found.append(context.checkpoint)
        context.progress(checkpoint="good")
        context.progress(checkpoint=math.nan)

    found = list[Any]()
    with pytest.raises(TaskDead, match="no checkpoint: Out of range") as dead:
        await run_task(Application, handle, {"kind": "nap", "seconds": 0}, to="do_errand")
    assert isinstance(dead.value.__cause__, ValueError)
    assert found == [None, *["good"] * (RECEIVE.max_attempts - 1)]
