"""What operators ask of a worker, where its ledger tells it only a part of that."""

import logging
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from workqueue.ledger import LedgerBusy
from workqueue.ledger.board import Pause
from workqueue.observe.health import Health
from workqueue.tasks.events import Paused, Resumed
from workqueue.testing import until
from workqueue.worker import orders
from workqueue.worker.beside import again, begin
from workqueue.worker.orders import Orders


class Board:
    """Tells of these pauses, or raises the error in their place."""

    def __init__(self, answer: list[Pause] | Exception) -> None:
        self.answer, self.asked = answer, 0

    async def pauses(self) -> list[Pause]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Ledger:
    def __init__(self, board: Board, cancelled: dict[UUID, str]) -> None:
        self.board, self.cancelled = board, cancelled

    async def to_cancel(self, ids: list[UUID]) -> dict[UUID, str]:
        return {id: self.cancelled[id] for id in ids if id in self.cancelled}


class Wire:
    def __init__(self) -> None:
        self.did: list[str] = []

    async def pause(self, queue: str, by: str) -> None:
        self.did.append(f"pause {queue}")

    def resume(self, queue: str, by: str) -> None:
        self.did.append(f"resume {queue}")


def worker(board: Board, scopes: list[Any], cancelled: dict[UUID, str] | None = None) -> Orders:
    crew: Any = SimpleNamespace(running=lambda: scopes)
    ledger: Any = Ledger(board, cancelled or {})
    wire: Any = Wire()
    return Orders("w1", ("bills", "mail"), ledger, crew, wire, Health(), list[Any]().append)


async def test_a_ledger_that_tells_no_pauses_is_said_once_and_tasks_are_cancelled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(orders, "AGAIN_S", 0.002)
    caplog.set_level(logging.WARNING)
    task_id, stopped, fatal = uuid4(), list[Exception](), list[BaseException]()
    board = Board(LedgerBusy("permission denied"))
    scope = SimpleNamespace(task_id=task_id, stop=stopped.append)
    told = worker(board, [scope], {task_id: "cancelled: by ops"})
    async with AsyncExitStack() as closing:
        begin(again(told.look, 0.001), fatal.append, closing)
        await until(lambda: board.asked > 3, "it has asked again and again")
    assert caplog.messages == ["w1  can't see what operators ask of it: permission denied"]
    assert str(stopped[0]) == "cancelled: by ops"
    assert fatal == []


async def test_only_the_queue_that_is_named_is_paused_and_resumed() -> None:
    board, events = Board([Pause("mail", 0.0, "ops@host", "a move"), Pause("others", 0.0, "ops@host", "")]), list[Any]()
    told = worker(board, [])
    told.tell = events.append
    await told.first()
    await told.first()
    assert told.health.paused == {"mail"}
    board.answer = []
    await told.first()
    assert told.health.paused == set()
    assert told.wire.did == ["pause mail", "resume mail"]  # type: ignore[attr-defined]
    assert events == [Paused("w1", "mail", "ops@host", "a move"), Resumed("w1", "mail")]
