"""A worker that has done enough is told to drain: after just as many runs of a handler as it may do, and once."""

from typing import Any

import pytest

from workqueue.observe import recycle
from workqueue.observe.recycle import Recycle
from workqueue.tasks.events import Dead, Delayed, Done, Event, HandedBack, Retrying, Skipped, Told, What

RUNS: list[What] = [Done(1), Retrying(1, 1.0, "no"), Dead("gave-up", "no", "q.dead")]
NO_RUNS: list[What] = [Skipped("done"), HandedBack(), Delayed("taken", 1.0, 0)]


def told(what: What) -> Event:
    return Event("w1", "process", "nap", "1", 0.1, what)


class Ends:
    """A worker that may do so much. `at` has how many events had come whenever it was told to end."""

    def __init__(self, **limits: Any) -> None:
        self.heard: list[Told] = []
        self.at: list[int] = []
        self.listener = Recycle(
            self.heard.append,
            lambda: self.at.append(len(self.heard)),
            **{"max_tasks": None, "max_mib": None, **limits},
        )

    def hear(self, *whats: What) -> list[int]:
        for what in whats:
            self.listener(told(what))
        return self.at


def test_it_ends_after_so_many_runs_and_is_told_once() -> None:
    ends = Ends(max_tasks=3)
    assert ends.hear(*RUNS[:2]) == []
    assert ends.hear(RUNS[2], *RUNS) == [3]
    assert [each.what for each in ends.heard if isinstance(each, Event)] == [*RUNS, *RUNS]


def test_what_ran_no_handler_counts_for_nothing() -> None:
    assert Ends(max_tasks=1).hear(*NO_RUNS) == []


def test_without_a_limit_it_goes_on() -> None:
    assert Ends().hear(*RUNS * 10) == []


@pytest.mark.parametrize(("held", "at"), [(99, []), (100, [1]), (101, [1])])
def test_it_ends_when_it_holds_as_much_memory_as_it_may(
    held: int, at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycle, "resident_mib", lambda: held)
    assert Ends(max_mib=100).hear(Done(1)) == at


def test_what_a_process_holds_is_in_mib() -> None:
    before = recycle.resident_mib()
    kept = b"x" * (100 * recycle.MIB)
    assert 90 < recycle.resident_mib() - before < 110
    del kept
