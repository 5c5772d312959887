"""What `workqueue status` prints of much."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from workqueue.cli import status
from workqueue.cli.output import Form
from workqueue.cli.status import AT_MOST, rendered
from workqueue.cli.tables import display
from workqueue.errors import BrokerUnreachable
from workqueue.ops.status import Status
from workqueue.ops.workers import InHand, Work, Worker

ERASED, UP_AND_ERASED = "\x1b[2K", "\x1b[1A\x1b[2K"
NOW = datetime.now(UTC)


def at_work(count: int) -> Status:
    """A worker with so many tasks in hand, each begun a minute before the one that comes before it."""
    held = tuple(InHand(f"task-{n:03d}", "nap", "nap", 1, NOW - timedelta(minutes=n)) for n in range(count))
    worker = Worker(
        "one", "host", 1, "working", 0.1, 0.0, NOW, "1", "1", "abc", {"tasks": Work(300, 1.0, 0, 0, 0, 0)}, held
    )
    return Status(NOW, "amqp://host/", "sqlite:there", (), (worker,), ("something is wrong",))


@pytest.mark.parametrize("more", [0, 280])
def test_the_tasks_that_take_longest_are_told_and_how_many_more(capsys: pytest.CaptureFixture[str], more: int) -> None:
    display(rendered(at_work(AT_MOST + more)))
    lines = capsys.readouterr().out.splitlines()
    told = [line.split()[0] for line in lines if line.startswith("task-")]
    assert told == [f"task-{n:03d}" for n in reversed(range(more, AT_MOST + more))]
    assert lines[-1] == "! something is wrong"
    assert (f"and {more:,} more in hand: workqueue workers" in lines) is (more > 0)


def test_an_error_while_it_is_watched_on_a_terminal_goes_with_the_next_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many lines it has there."""
    screen = io.StringIO()
    looks: list[Status | BaseException] = [
        BrokerUnreachable("amqp://host/", "refused " * 9), at_work(1), KeyboardInterrupt()
    ]  # fmt: skip

    def look(_: object) -> Status:
        found = looks.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(status, "WATCH_S", 0.0)
    monkeypatch.setattr(status, "look", look)
    monkeypatch.setattr(status, "project_of", lambda _: None)
    monkeypatch.setattr(status, "console", lambda: Console(file=screen, force_terminal=True, width=40, height=99))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        status.show(Path(), Form.TABLE, watch=True)
    first = screen.getvalue().partition(f"\r{ERASED}")[0]
    lines = first.count("\n") + 1
    assert ("! no broker" in first, lines) == (True, 5)
    assert f"{first}\r{ERASED}{UP_AND_ERASED * (lines - 1)}" in screen.getvalue()
    assert (screen.getvalue().count("no broker"), capsys.readouterr().err) == (1, "")
