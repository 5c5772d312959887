"""What the commands for dead letters make of what comes from their queues, and of what does not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workqueue.cli import dead
from workqueue.ledger.none import NoLedger
from workqueue.ops import desk
from workqueue.ops.desk import Desk


class Held:
    """The broker said that so many are there; none comes."""

    read = 0

    def __init__(self, ready: int) -> None:
        self.ready = ready

    def __aiter__(self) -> "Held":
        return self

    async def __anext__(self) -> None:
        raise StopAsyncIteration


@asynccontextmanager
async def given(what: Any) -> AsyncIterator[Any]:
    yield what


@pytest.mark.parametrize("command", [dead.show_groups, dead.show_list])
@pytest.mark.parametrize(("ready", "code"), [(0, 0), (2, 1)])
def test_letters_that_did_not_come_to_be_read_are_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any, ready: int, code: int
) -> None:
    project: Any = SimpleNamespace(settings=None)
    monkeypatch.setattr(desk, "hold", lambda *_: given(Held(ready)))
    monkeypatch.setattr(Desk, "for_itself", lambda *_: given(None))
    monkeypatch.setattr(Desk, "_readers", lambda *_: [("buried", None)])
    monkeypatch.setattr(dead, "project_of", lambda _: project)
    monkeypatch.setattr(dead, "ledger_of", lambda _: given(NoLedger()))
    monkeypatch.setattr(dead, "_check", lambda *_: None)
    assert command(Path()) == code
    assert capsys.readouterr().out == "no dead letters\n"
