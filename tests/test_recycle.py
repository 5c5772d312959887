"""A worker that has done enough is told to drain: after just as many runs of a handler as it may do, and once."""

from typing import Any

import pytest

from workqueue.observe import recycle
from workqueue.observe.counting import Counting
from workqueue.observe.recycle import Recycle
from workqueue.tasks.events import (
    Cancelled,
    Dead,
    Delayed,
    Done,
    Event,
    HandedBack,
    LostClaim,
    Retrying,
    Running,
    Skipped,
    Started,
    Told,
    What,
)
from workqueue.tasks.policy import Reason

RUNS: list[What] = [
    Done(1), Retrying(1, 1.0, "no"), Dead("gave-up", "no", "q.dead"), Dead("failed", "no", "q.dead"),
    Cancelled("by me"), LostClaim(1.0),
]  # fmt: skip
UNTRIED: list[Reason] = ["undecodable", "invalid", "crashed", "conflict"]
NO_RUNS: list[What] = [
    Started(1), Running(), Skipped("done"), HandedBack(), Delayed("taken", 1.0, 0),
    *(Dead(reason, "no", "q.dead") for reason in UNTRIED),
]  # fmt: skip


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
    assert [each.what for each in ends.heard if isinstance(each, Event)] == [*RUNS[:3], *RUNS]


@pytest.mark.parametrize("what", RUNS, ids=repr)
def test_what_a_run_of_a_handler_came_to_is_one_for_the_limit_and_for_the_durations(what: What) -> None:
    counting = Counting(lambda _: None)
    counting(told(what))
    assert Ends(max_tasks=1).hear(what) == [1]
    assert sum(counting.took["process"].counts) == 1


@pytest.mark.parametrize("what", NO_RUNS, ids=repr)
def test_what_ran_no_handler_counts_for_nothing(what: What) -> None:
    counting = Counting(lambda _: None)
    counting(told(what))
    assert Ends(max_tasks=1).hear(what) == []
    assert counting.took == {}
    assert sum(counting.dead.values()) == isinstance(what, Dead)


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
