"""Questions to a ledger that is busy, or silent: asked until they are answered, and told when that takes."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from workqueue.ledger import LedgerBusy
from workqueue.observe.health import Health
from workqueue.tasks import asking
from workqueue.tasks.asking import Asking
from workqueue.testing import until


async def answered() -> str:
    return "yes"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == asking.__name__]


def silent(go: asyncio.Event) -> Callable[[], Coroutine[Any, Any, str]]:
    """A ledger whose host has vanished: nothing comes back, no error either."""

    async def ask() -> str:
        await go.wait()
        return "late"

    return ask


def busy(go: asyncio.Event) -> Callable[[], Coroutine[Any, Any, str]]:
    async def ask() -> str:
        if not go.is_set():
            raise LedgerBusy("locked")
        return "late"

    return ask


@pytest.mark.parametrize(("ledger", "cause"), [(silent, "no answer"), (busy, "locked")])
async def test_a_wait_for_the_ledger_is_told_after_a_second_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture, ledger: Callable[[asyncio.Event], Any], cause: str
) -> None:
    caplog.set_level(logging.WARNING)
    ask, go, began = Asking("w1"), asyncio.Event(), time.monotonic()
    waiting = asyncio.ensure_future(ask(ledger(go)))
    while not said(caplog):
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.01)
    assert asking.SILENT_S <= time.monotonic() - began < 3 * asking.SILENT_S
    assert said(caplog) == [f"w1  waits for the ledger: {cause}"]
    go.set()
    assert await waiting == "late"
    pending = asyncio.ensure_future(ask(silent(asyncio.Event())))  # it is looked while any question is open
    while len(said(caplog)) < 2:
        assert time.monotonic() - began < 20
        assert await ask(answered) == "yes"
        await asyncio.sleep(0.01)
    assert said(caplog)[1] == "w1  the ledger answers again"
    pending.cancel()


async def test_a_ledger_that_answers_each_question_is_not_told_though_one_is_always_open(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "SILENT_S", 0.2)
    ask, end = Asking("w1"), time.monotonic() + 1.0

    async def work() -> None:
        while time.monotonic() < end:
            await ask(lambda: asyncio.sleep(0.02))

    await asyncio.gather(work(), work())
    assert said(caplog) == []


async def test_a_busy_ledger_is_given_up_on_only_where_the_asker_says_so() -> None:
    ask, ending = Asking("w1"), False
    waiting = asyncio.ensure_future(ask(busy(asyncio.Event()), lambda: ending))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    ending = True
    with pytest.raises(LedgerBusy, match="locked"):
        await waiting


async def test_what_is_answered_to_others_is_no_answer_to_one_that_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a role that may complete a task and not claim one."""
    monkeypatch.setattr(asking, "SILENT_S", 0.1)
    ask, go, health = Asking("w1"), asyncio.Event(), Health(starting=False, ledger_s=time.monotonic() + 60)
    health.asked_s = ask.silent_s
    waiting = asyncio.ensure_future(ask(busy(go)))
    for _ in range(30):
        await ask(lambda: asyncio.sleep(0.01))
    assert said(caplog) == ["w1  waits for the ledger: locked"]
    assert health.ledger_silent_s() > 0.2
    monkeypatch.setattr("workqueue.observe.health.LEDGER_S", 0.2)
    assert health.not_ready() == ["the ledger has not answered for 0 s"]
    go.set()
    await waiting
    assert said(caplog)[1:] == ["w1  the ledger answers again"]
    assert health.not_ready() == []


async def test_a_row_that_somebody_has_locked_is_no_silence_of_the_ledger(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "SILENT_S", 0.1)
    monkeypatch.setattr(asking, "STUCK_S", 0.2)

    class Locked(LedgerBusy):
        of_task = True

    ask, meets = Asking("w1"), list[LedgerBusy | None]([Locked("the row of task 7 is locked")])

    async def row() -> str:
        if meets[0] is not None:
            raise meets[0]
        return "done"

    waiting = asyncio.ensure_future(ask(row))
    await until(lambda: ask.late() == 1, "it is late")
    assert (ask.stuck(), ask.silent_s()) == ("1 can't be recorded: the row of task 7 is locked", 0.0)
    assert said(caplog) == ["w1  waits for the ledger: the row of task 7 is locked"]
    meets[0] = LedgerBusy("no answer")
    await until(lambda: ask.late() == 0, "the ledger is silent to all")
    assert (ask.stuck(), ask.silent_s() > 0.2) == ("", True)
    meets[0] = None
    assert await waiting == "done"
    assert (ask.late(), ask.silent_s()) == (0, 0.0)


async def test_a_cause_that_comes_after_the_first_line_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server waits for a lock for as long as a ledger is waited for in silence."""
    monkeypatch.setattr(asking, "SILENT_S", 0.1)
    ask, go = Asking("w1"), asyncio.Event()

    async def first_silent() -> str:
        await go.wait()
        raise LedgerBusy("the row is locked")

    waiting = asyncio.ensure_future(ask(first_silent))
    await until(lambda: said(caplog), "it is told")
    go.set()
    await until(lambda: len(said(caplog)) > 1, "the cause is told")
    await asyncio.sleep(0.3)
    waiting.cancel()
    assert said(caplog) == ["w1  waits for the ledger: no answer", "w1  waits for the ledger: the row is locked"]
