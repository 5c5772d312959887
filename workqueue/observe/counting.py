"""Plain numbers of what became of an operation's tasks, for whoever reads them: the worker's row, a scrape."""

from bisect import bisect_left
from collections import Counter

from workqueue.tasks.events import Dead, Event, Listener, Told, is_run

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Of the buckets of durations: to each belongs what took at most so long; the last one has the rest."""


class Durations:
    """How long the runs of one operation's handler took: `counts` by bucket, and the sum of all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0


class Counting:
    """A listener that counts events, and tells the next. `of` counts by operation and kind of event, `dead` by
    operation and reason; `took` has the runs of handlers, by operation."""

    def __init__(self, tell: Listener) -> None:
        self._tell = tell
        self.of: Counter[tuple[str, type]] = Counter()
        self.dead: Counter[tuple[str, str]] = Counter()
        self.took: dict[str, Durations] = {}

    def __call__(self, told: Told) -> None:
        if type(told) is Event:
            self._count(told)
        self._tell(told)

    def _count(self, told: Event) -> None:
        operation, what = told.operation, told.what
        self.of[operation, type(what)] += 1
        if is_run(what):
            took = self.took.get(operation)
            if took is None:
                took = self.took[operation] = Durations()
            took.counts[bisect_left(BOUNDS_S, told.took_s)] += 1
            took.sum_s += told.took_s
        if isinstance(what, Dead):
            self.dead[operation, what.reason] += 1
