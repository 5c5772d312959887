"""What `workqueue status` prints of much."""

from datetime import UTC, datetime, timedelta

import pytest

from workqueue.cli.status import AT_MOST, rendered
from workqueue.cli.tables import display
from workqueue.ops.status import Status
from workqueue.ops.workers import InHand, Work, Worker

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
