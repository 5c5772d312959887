"""A worker's numbers as Prometheus reads them, made of plain integers when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from workqueue.observe.counting import BOUNDS_S, Counting
from workqueue.observe.health import Health
from workqueue.observe.lines import NAMES
from workqueue.tasks import events
from workqueue.tasks.story import REASONS

OUTCOMES = {kind: NAMES[kind] for kind in get_args(events.What) if kind not in (events.Started, events.Running)}


@dataclass(frozen=True)
class Source:
    """What is scraped. `queues` are the names of the queues by operation, with how many tasks at a time; `held_s` how
    long each message has been in hand, by operation."""

    worker: str
    version: str
    contract: str
    digest: str
    queues: Mapping[str, tuple[str, int]]
    counting: Counting
    health: Health
    held_s: Callable[[], Iterable[tuple[str, float]]]


class Numbers(Collector):
    """Every metric of docs/metrics.md."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        yield from self._counted()
        yield from self._in_hand()
        source = self._source
        about = GaugeMetricFamily(
            "workqueue_worker_info", "This worker; always 1.", labels=["worker", "version", "contract", "digest"]
        )
        about.add_metric([source.worker, source.version, source.contract, source.digest], 1)
        yield about
        ready = not source.health.not_ready()
        yield GaugeMetricFamily("workqueue_ready", "Whether it takes tasks, as /readyz.", value=int(ready))
        yield GaugeMetricFamily(
            "workqueue_ledger_silent_seconds",
            "Since the ledger answered last, or a task waits for it.",
            value=source.health.ledger_silent_s(),
        )

    def _counted(self) -> Iterator[Metric]:
        source, counting = self._source, self._source.counting
        messages = CounterMetricFamily(
            "workqueue_messages", "Messages settled, by what became of them.", labels=["queue", "outcome"]
        )
        dead = CounterMetricFamily(
            "workqueue_dead_letters", "Dead letters made, by reason.", labels=["queue", "reason"]
        )
        took = HistogramMetricFamily(
            "workqueue_attempt_seconds", "From delivery to settlement, where a handler ran.", labels=["queue"]
        )
        for operation, (queue, _) in source.queues.items():
            for kind, outcome in OUTCOMES.items():
                messages.add_metric([queue, outcome], counting.of[operation, kind])
            for reason in REASONS:  # each from the start: what is born at 1 has not increased
                dead.add_metric([queue, reason], counting.dead.get((operation, reason), 0))
            if durations := counting.took.get(operation):
                took.add_metric([queue], buckets(list(durations.counts)), durations.sum_s)
        return iter((messages, dead, took))

    def _in_hand(self) -> Iterator[Metric]:
        source, held = self._source, list(self._source.held_s())
        in_hand = GaugeMetricFamily("workqueue_in_hand", "Messages in hand: claimed, run or settled.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "workqueue_oldest_in_hand_seconds", "How long the oldest has been in hand; 0 for none.", labels=["queue"]
        )
        most = GaugeMetricFamily("workqueue_concurrency", "Tasks at a time, at most.", labels=["queue"])
        paused = GaugeMetricFamily(
            "workqueue_paused", "Whether an operator has paused the queue: 1 or 0.", labels=["queue"]
        )
        for operation, (queue, concurrency) in source.queues.items():
            ran_s = [seconds for of, seconds in held if of == operation]
            in_hand.add_metric([queue], len(ran_s))
            oldest.add_metric([queue], max(ran_s, default=0.0))
            most.add_metric([queue], concurrency)
            paused.add_metric([queue], int(queue in source.health.paused))
        return iter((in_hand, oldest, most, paused))


def buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative, by upper bound, as Prometheus has them."""
    found, sum_ = list[tuple[str, float]](), 0
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
        sum_ += count
        found.append((bound, sum_))
    return found


def exposition(source: Source) -> Callable[[], bytes]:
    """What gives the text of a scrape: the worker's numbers, and those of its process."""
    registry = CollectorRegistry()
    registry.register(Numbers(source))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)
