"""What the commands for dead letters make of what comes from their queues, and of what does not."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from workqueue import codec
from workqueue.cli import dead
from workqueue.ledger import Sent
from workqueue.ledger.none import NoLedger
from workqueue.ledger.sqlite import SqliteLedger
from workqueue.ops import desk, purging
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


async def test_what_is_purged_and_can_not_be_run_is_called_off_where_it_says_which_task_it_is(tmp_path: Path) -> None:
    """Or whoever waits for that waits for ever."""
    ledger, task_id = SqliteLedger(str(tmp_path / "ledger.db")), uuid4()
    body = json.dumps({"id": str(task_id), "payload": {"kind": "no longer known"}}).encode()
    named = codec.named(body, None)
    assert named is not None
    await ledger.record([Sent(task_id, "no longer known", named.digest)])
    assert not await purging._runs(ledger, cast(Any, SimpleNamespace(body=body)), "by ops")
    assert not await purging._runs(ledger, cast(Any, SimpleNamespace(body=b"not a task")), "by ops")
    entry = await ledger.entry(task_id)
    assert entry is not None
    assert (entry.state, entry.error) == ("cancelled", "cancelled: by ops")
    await ledger.close()
