"""What `workqueue status` makes of what the broker and the ledger tell."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness import ERRANDS
from workqueue.amqp.lane import Depth
from workqueue.ledger import LedgerBusy
from workqueue.ledger.board import Deaths, NoBoard
from workqueue.ledger.none import NoLedger
from workqueue.ops import status
from workqueue.ops.status import Status
from workqueue.settings import Settings

QUEUE, DEAD = ERRANDS.queue.name, ERRANDS.dead.name
PROJECT: Any = SimpleNamespace(
    settings=Settings(ledger_url="sqlite:there"), receives={QUEUE: ERRANDS}, sends={}, digests={}, has_ledger=True
)


class There(NoLedger):
    """A ledger with this board."""

    place = "there"

    def __init__(self, board: NoBoard) -> None:
        self.board = board


Look = Callable[..., Any]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """`status`, where the broker has these queues."""

    async def status_of(ledger: NoLedger, **depths: tuple[int, int]) -> Status:
        async def seen(*_: object) -> dict[str, Depth]:
            return {name: Depth(*depth) for name, depth in depths.items()}

        monkeypatch.setattr(status, "look", seen)
        return await status.status(PROJECT, ledger, "me")

    return status_of


async def test_what_tasks_died_of_is_told_or_why_it_cannot_be_read(look: Look) -> None:
    class Board(NoBoard):
        locked = False

        async def deaths(self) -> list[Deaths]:
            if self.locked:
                raise LedgerBusy("lock timeout")
            return [Deaths("nap", "failed", 2, 1, 0.0)]

    board = Board()
    found = await look(There(board), **{QUEUE: (0, 1), DEAD: (2, 0)})
    assert (found.ledger_answers, len(found.deaths), found.notes) == (True, 1, ())
    board.locked = True
    found = await look(There(board), **{QUEUE: (0, 1), DEAD: (2, 0)})
    assert (found.ledger_answers, found.deaths) == (False, ())
    assert found.notes == ("what tasks died of can't be read: there does not answer: lock timeout",)
