"""What was sent is told to the ledger by few statements, and a send never fails because of that."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

import pytest

from workqueue.client.recording import Recording
from workqueue.errors import LedgerLost
from workqueue.ledger import Ledger, LedgerBusy, Sent


class Told:
    """A ledger that notes what it is told, each time after a turn of the loop, and raises what it is given."""

    def __init__(self) -> None:
        self.times: list[list[Sent]] = []
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def record(self, sent: Sequence[Sent]) -> None:
        self.times.append(list(sent))
        await self.answers.wait()
        if self.error is not None:
            raise self.error


def some(number: int) -> list[Sent]:
    return [Sent(uuid4(), "nap", b"digest") for _ in range(number)]


def recording(told: Told) -> Recording:
    return Recording(cast(Ledger, cast(Any, told)), "client-1")


async def recorded_one_after_the_other(here: Recording, sent: list[Sent]) -> list[asyncio.Task[None]]:
    """The ledger is told of the first, and the others wait for that."""
    waiting = [asyncio.ensure_future(here.record(sent[0], 60.0))]
    await asyncio.sleep(0.01)
    waiting += [asyncio.ensure_future(here.record(one, 60.0)) for one in sent[1:]]
    await asyncio.sleep(0.01)
    return waiting


async def test_what_is_confirmed_in_one_turn_of_the_loop_is_told_at_once() -> None:
    told, sent = Told(), some(50)
    here = recording(told)
    await asyncio.gather(*(here.record(one, 60.0) for one in sent))
    assert told.times == [sent]
    (later,) = some(1)
    await here.record(later, 60.0)
    assert told.times == [sent, [later]]


async def test_what_is_confirmed_while_the_ledger_is_told_is_told_next() -> None:
    told, (first, *others) = Told(), some(4)
    told.answers.clear()
    here = recording(told)
    waiting = await recorded_one_after_the_other(here, [first, *others])
    assert (told.times, [one.done() for one in waiting]) == ([[first]], [False] * 4)
    told.answers.set()
    await asyncio.gather(*waiting)
    assert told.times == [[first], others]


@pytest.mark.parametrize(
    ("error", "trace"),
    [(LedgerBusy("no answer"), False), (LedgerLost("/l.db", "it was deleted"), False), (ValueError("odd"), True)],
    ids=["busy", "lost", "unexpected"],
)
async def test_a_ledger_that_can_not_be_told_is_a_line_and_fails_no_send(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, trace: bool
) -> None:
    monkeypatch.setattr("workqueue.client.recording.PATIENCE_S", 0.0)
    told, sent = Told(), some(3)
    told.error = error
    here = recording(told)
    with caplog.at_level(logging.WARNING):
        await asyncio.gather(*(here.record(one, 60.0) for one in sent[:2]))
        await here.record(sent[2], 60.0)
    (line,) = caplog.records  # and not one for each
    assert line.getMessage() == f"client-1  tasks are sent, and not recorded: {error}"
    assert bool(line.exc_info) is trace
    told.error = None
    await here.record(sent[0], 60.0)
    assert told.times == [sent[:2], [sent[2]], [sent[0]]]


async def test_once_the_ledger_can_be_told_again_a_line_says_so_and_each_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workqueue.client.recording.PATIENCE_S", 0.0)
    told, sent = Told(), some(2)
    here = recording(told)
    away, back = "client-1  tasks are sent, and not recorded: no answer", "client-1  what is sent is recorded again"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            told.error = LedgerBusy("no answer")
            for one in sent:
                await here.record(one, 60.0)
            told.error = None
            for one in sent:
                await here.record(one, 60.0)
    assert caplog.messages == [away, back] * 2


async def test_a_ledger_that_is_locked_for_a_moment_is_told_and_nobody_is_bothered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, sent = Told(), some(3)
    told.error = LedgerBusy("database is locked")
    here = recording(told)
    waiting = [asyncio.ensure_future(here.record(sent[0], 60.0))]
    await asyncio.sleep(0.1)
    assert not waiting[0].done()
    waiting += [asyncio.ensure_future(here.record(one, 60.0)) for one in sent[1:]]
    await asyncio.sleep(0)
    told.error = None
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert told.times[-2:] == [sent[:1], sent[1:]]
    assert not caplog.records


async def test_while_a_ledger_stays_busy_only_the_first_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workqueue.client.recording.PATIENCE_S", 0.1)
    told, sent = Told(), some(2)
    told.error = LedgerBusy("no answer")
    here = recording(told)
    await here.record(sent[0], 60.0)
    tries = len(told.times)
    assert tries > 1
    await here.record(sent[1], 60.0)
    assert told.times[tries:] == [sent[1:]]


async def test_nobody_waits_longer_than_its_time_and_the_ledger_is_told_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, sent = Told(), some(2)
    told.answers.clear()
    here = recording(told)
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(20):
            await asyncio.gather(*(here.record(one, 0.05) for one in sent))
    (line,) = caplog.records
    assert line.getMessage() == "client-1  tasks are sent, and not recorded: the ledger does not answer"
    told.answers.set()
    await here.record(sent[0], 60.0)
    assert told.times == [sent, sent[:1]]


async def test_who_is_cancelled_while_it_waits_takes_nothing_from_the_others() -> None:
    told, sent = Told(), some(2)
    told.answers.clear()
    here = recording(told)
    first, second = (asyncio.ensure_future(here.record(one, 60.0)) for one in sent)
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    told.answers.set()
    await second
    assert told.times == [sent]


async def test_what_was_to_be_recorded_is_recorded_before_the_close() -> None:
    told, sent = Told(), some(3)
    told.answers.clear()
    here = recording(told)
    waiting = await recorded_one_after_the_other(here, sent)
    closing = asyncio.ensure_future(here.close())
    await asyncio.sleep(0.01)
    told.answers.set()
    await closing
    assert told.times == [sent[:1], sent[1:]]
    await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_what_is_sent_when_it_is_closed_is_not_recorded_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, (one,) = Told(), some(1)
    here = recording(told)
    await here.close()
    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(here.record(one, 60.0), 5)
    assert caplog.messages == ["client-1  tasks are sent, and not recorded: the client was closed"]
    assert told.times == []


async def test_nobody_waits_for_a_ledger_that_is_closed_while_it_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    told, sent = Told(), some(3)
    told.answers.clear()
    here = recording(told)
    waiting = await recorded_one_after_the_other(here, sent)
    with caplog.at_level(logging.WARNING):
        await here.close()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert told.times == [sent[:1]]
    assert caplog.messages == ["client-1  tasks are sent, and not recorded: the client was closed"]
