"""What is measured. A scenario drives one contender once, and gives its metrics; `METRICS` says how to read them."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from bench.stage import Crew, Failed, Site, Task

Measured = Iterator[tuple[str, float]]

NAP_S = 0.01
CONCURRENCIES = (1, 20, 100, 300)
DISTANT_CONCURRENCIES = (1, 20, 100)
WAIT_S = 0.02  # of a task that waits for somebody else, which is what concurrency is for
MOST_RATE = 1000.0  # tasks per second for which there shall be enough of them
BLOCK_S = 5.0  # three times what the short tasks take one worker


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    publish_consume: int = 5000
    application: int = 2000
    consume_3: int = 8000
    makespan_s: float = 3.0
    latency: int = 200
    backlogs: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    concurrent_s: float = 6.0


QUICK = Scale(1000, 500, 3000, 1.0, 50, (2000, 5000), 1.5)


@dataclass(frozen=True)
class Metric:
    """`better` is "more" or "less"; what has neither is only told."""

    title: str
    unit: str
    better: str = ""
    digits: int = 0
    compared: bool = True
    """Whether a ratio says something: of a number that is best at 0 it does not."""
    apart: bool = False
    """Whether it has a table of its own."""


METRICS = {
    "publish": Metric("publish", "tasks/s", "more"),
    "consume_1": Metric("consume, 1 worker", "tasks/s", "more"),
    "consume_3": Metric("consume, 3 workers", "tasks/s", "more"),
    **{
        f"send_{callers}{name}": Metric(f"{title}, callers: {callers}", unit, better, digits)
        for callers in (1, 50)
        for name, title, unit, better, digits in (
            ("", "application sends", "tasks/s", "more", 0),
            ("_p99_ms", "p99 of a send", "ms", "less", 1),
            ("_cpu_us", "CPU of a send", "us", "less", 0),
        )
    },
    "startup_s": Metric("start-up", "s", "less", 2),
    "memory_mib": Metric("memory of a worker", "MiB", "less", 1),
    **{f"makespan_{size}": Metric(f"makespan / ideal, workers: {size}", "", "less", 2) for size in (1, 2, 3, 8)},
    "gap_ms": Metric("idle gap between tasks", "ms", "less", 2),
    "latency_p50_ms": Metric("latency, p50", "ms", "less", 2),
    "latency_p99_ms": Metric("latency, p99", "ms", "less", 2),
    **{
        f"concurrency_{size}_{name}": Metric(f"{title}, concurrency {size}", unit, better, apart=True)
        for size in CONCURRENCIES
        for name, title, unit, better in (
            ("rate", "tasks of 20 ms", "tasks/s", "more"),
            ("rss_mib", "RSS of a worker", "MiB", "less"),
            ("connections", "TCP connections to the broker", "", "less"),
        )
    },
    **{
        f"distance_{size}_rate": Metric(f"tasks of 20 ms by ledger, concurrency {size}", "tasks/s", "more", apart=True)
        for size in DISTANT_CONCURRENCIES
    },
    "late": Metric("short tasks that waited for a long one", "of 150", "less", compared=False),
}


def publish_consume(site: Site, scale: Scale) -> Measured:
    """A backlog is sent, then one worker starts and drains it."""
    count = scale.publish_consume
    yield "publish", site.send((count, 0, 0)).rate
    with site.workers(1) as crew:
        crew.wait(count)
        yield "memory_mib", crew.memory_mib()
        tasks = crew.tasks()
        yield "consume_1", rate(tasks, min(500, count // 10), count * 95 // 100)
        yield "startup_s", tasks[0].start - crew.workers[0].spawned


def application(site: Site, scale: Scale) -> Measured:
    """Confirmed sends from one process: by one caller, one after the other, and by fifty at a time."""
    for callers in (1, 50):
        said = site.call(scale.application, callers)
        yield f"send_{callers}", scale.application / said["seconds"]
        yield f"send_{callers}_p99_ms", said["p99_ms"]
        yield f"send_{callers}_cpu_us", said["cpu_us"]
        site.purge()


def consume_3(site: Site, scale: Scale) -> Measured:
    """A backlog is sent, then three workers start together and drain it; counted while all three are at work."""
    count = scale.consume_3
    site.send((count, 0, 0))
    with site.workers(3) as crew:
        crew.wait(count)
        each = [[task.end for task in worker.tasks()] for worker in crew.workers]
        few = min(100, count // 30)
        if min(map(len, each)) <= few:
            raise Failed(f"one of three workers did next to nothing: {[len(ends) for ends in each]}")
        ends = sorted(end for ends in each for end in ends)
        first, last = max(ends[few] for ends in each), ends[count * 95 // 100]
        counted = sum(first < end <= last for end in ends)
        if counted < count // 10:
            raise Failed("two workers had nearly drained the queue before the third had begun: use more --tasks")
        yield "consume_3", counted / (last - first)


def makespan(site: Site, scale: Scale) -> Measured:
    """Tasks of 10 ms for warm workers, sent while these are stopped; against a perfect division of the work."""
    for size in (1, 2, 3, 8):
        count = round(scale.makespan_s / NAP_S) * size
        with site.workers(size) as crew:
            warm = crew.warm()
            with crew.frozen():
                site.send((count, NAP_S, 0))
            crew.wait(10 * size + count)  # at least; warming may have taken more
            tasks = settled(crew.tasks, warm, count)
            took = max(task.end for task in tasks) - tasks[0].start
            yield f"makespan_{size}", took / (count * NAP_S / size)
            if size == 1:
                gaps = [after.start - before.end for before, after in pairwise(tasks)]
                yield "gap_ms", statistics.median(gaps) * 1000


def short_among_long(site: Site, scale: Scale) -> Measured:
    """Two long tasks for two of three workers; the short ones after them should all go to the third."""
    with site.workers(3) as crew:
        warm = crew.warm()
        site.send((2, BLOCK_S, 0), (1, NAP_S, 0.5), (149, NAP_S, 0))
        tasks = settled(crew.tasks, warm, 152)
        free = min(task.end for task in tasks if task.seconds == BLOCK_S)
        yield "late", sum(task.seconds == NAP_S and task.start >= free for task in tasks)


def latency(site: Site, scale: Scale) -> Measured:
    """A warm, idle worker, and a task every 25 ms: from just before the task is made to the handler's start."""
    with site.workers(1) as crew:
        warm = crew.warm()
        sent = site.send((scale.latency, 0, 0.025)).at
        tasks = settled(crew.tasks, warm, scale.latency)
        waits = sorted((task.start - at) * 1000 for task, at in zip(tasks, sent, strict=True))
        yield "latency_p50_ms", statistics.median(waits)
        yield "latency_p99_ms", waits[len(waits) * 99 // 100]


def backlog(site: Site, scale: Scale) -> Measured:
    """The same with a large backlog: does anything get slower or larger with its length?"""
    for count in scale.backlogs:
        sent = site.send((count, 0, 0))
        yield f"scale_{count}_publish", sent.rate
        yield f"scale_{count}_producer_mib", sent.peak_mib
        with site.workers(1, all_done=False) as crew:
            first, last = min(500, count // 10), min(10_500, count * 95 // 100)
            crew.wait(last + 1)
            yield f"scale_{count}_worker_mib", crew.memory_mib()
            yield f"scale_{count}_consume", rate(crew.tasks(), first, last)


def concurrency(site: Site, scale: Scale) -> Measured:
    """Tasks that wait for 20 ms, and one worker that does several at a time."""
    for size in CONCURRENCIES:
        with at_work(site, scale, size) as (crew, count):
            crew.wait(count // 2)
            yield f"concurrency_{size}_rss_mib", crew.rss_mib()
            yield f"concurrency_{size}_connections", crew.connections()
            crew.wait(count)
            yield f"concurrency_{size}_rate", concurrent_rate(crew.tasks(), size)


def distance(site: Site, scale: Scale) -> Measured:
    """The same with the ledger at several distances."""
    for size in DISTANT_CONCURRENCIES:
        with at_work(site, scale, size) as (crew, count):
            crew.wait(count)
            yield f"distance_{size}_rate", concurrent_rate(crew.tasks(), size)


SCENARIOS: dict[str, Callable[[Site, Scale], Measured]] = {
    "publish-consume": publish_consume,
    "application": application,
    "consume-3": consume_3,
    "makespan": makespan,
    "short": short_among_long,
    "latency": latency,
    "scale": backlog,
    "concurrency": concurrency,
    "distance": distance,
}
ON_CLASSIC_TOO = ("publish-consume", "consume-3")
AT_CONCURRENCY = ("ours", "faststream", "taskiq", "dramatiq", "celery, threads")
"""Who can do many tasks that wait in one process."""


@contextmanager
def at_work(site: Site, scale: Scale, size: int) -> Iterator[tuple[Crew, int]]:
    """A worker that does `size` tasks of 20 ms at a time, and how many there are."""
    count = max(30, round(scale.concurrent_s * min(MOST_RATE, size / WAIT_S)))
    site.send((count, WAIT_S, 0))
    with site.workers(1, concurrency=size) as crew:
        yield crew, count


def concurrent_rate(tasks: list[Task], size: int) -> float:
    """Once it has begun with all that it does at a time, and while it has enough of them."""
    ends = sorted(task.end for task in tasks)
    first, last = max(size, len(ends) // 10), len(ends) * 95 // 100 - size
    return (last - first) / (ends[last] - ends[first])


def rate(tasks: list[Task], first: int, last: int) -> float:
    """Tasks per second from the end of one to the end of another, by their numbers."""
    return (last - first) / (tasks[last].end - tasks[first].end)


def settled(tasks: Callable[[float], list[Task]], after: float, count: int) -> list[Task]:
    """All tasks after that time, once there are so many."""
    deadline = time.monotonic() + 60 + count * NAP_S
    while len(found := tasks(after)) < count:
        if time.monotonic() > deadline:
            raise Failed(f"{len(found)} of {count} tasks were done")
        time.sleep(0.1)
    return found
