"""What every contender's programs do alike: make tasks by a plan, send them, and write down when they were handled.

The plan of a sender is its last argument: `count:seconds:interval_s`, several with commas. So many tasks that ask for
so many seconds, each sent that long after the one before. Or it is `count@callers`: so many tasks, sent by so many
callers, each of which sends its next one when the one before is confirmed, as an application's requests do. A sender
prints one line of JSON when it is done.
"""

import asyncio
import itertools
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from uuid_utils.compat import uuid7

RECORD = struct.Struct("<ddd")
"""Seconds asked for, start and end of the handler by CLOCK_MONOTONIC, which all processes of a machine share."""

QUEUE = "bench"
WINDOW = 200  # unconfirmed publishes, where there is a choice: the default of our WORKQUEUE_WINDOW

url = os.environ.get("BENCH_URL", "")
queue_type = os.environ.get("BENCH_QUEUE_TYPE", "quorum")
concurrency = int(os.environ.get("BENCH_CONCURRENCY", "1"))  # of a worker

_record = -1


async def work(seconds: float) -> None:
    """What an async handler does."""
    start = time.monotonic()
    if seconds > 0:
        await asyncio.sleep(seconds)
    _note(seconds, start)


def work_blocking(seconds: float) -> None:
    """What a plain handler does."""
    start = time.monotonic()
    if seconds > 0:
        time.sleep(seconds)
    _note(seconds, start)


def _note(seconds: float, start: float) -> None:
    global _record
    if _record < 0:  # opened by the process that handles: some frameworks fork
        _record = os.open(os.environ["BENCH_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(_record, RECORD.pack(seconds, start, time.monotonic()))


def make_task(seconds: float) -> dict[str, Any]:
    """A whole task of our contract, as JSON can hold it; its id is as a `Client` makes them, in order of time."""
    payload = {"kind": "simulate", "seconds": seconds}
    return {"id": str(uuid7()), "created_at": datetime.now(UTC).isoformat(), "payload": payload}


class Plan:
    """What to send and when. Iterating gives (seconds asked for, how long to wait before it is sent)."""

    def __init__(self, text: str = "") -> None:
        parts = [part.split(":") for part in (text or sys.argv[-1]).split(",")]
        self.batches = [(int(count), float(seconds), float(interval)) for count, seconds, interval in parts]
        self.count = sum(count for count, _, _ in self.batches)
        self._paced = any(interval for _, _, interval in self.batches)
        self._at: list[float] = []
        self._began = time.monotonic()

    def __iter__(self) -> Iterator[tuple[float, float]]:
        due = self._began = time.monotonic()
        for count, seconds, interval in self.batches:
            for _ in range(count):
                due += interval
                yield seconds, due - time.monotonic() if interval else 0.0

    def sending(self) -> None:
        """To be called just before each send: remembers the time, if the plan is a paced one."""
        if self._paced:
            self._at.append(time.monotonic())

    def report(self) -> None:
        """To be called once, after the last confirm."""
        seconds = time.monotonic() - self._began
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"sent": self.count, "seconds": seconds, "at": self._at, "peak_mib": peak_mib}), flush=True)


class Callers:
    """What an application's callers send, and how long each send took."""

    def __init__(self) -> None:
        count, _, callers = sys.argv[-1].partition("@")
        self.count, self.callers = int(count), int(callers)
        self._left, self._took = itertools.count(1), list[float]()
        self._began, self._began_cpu_s = time.monotonic(), time.process_time()

    def more(self) -> bool:
        """Whether the caller who asks has one more to send. For threads too: a step of a counter is one."""
        return next(self._left) <= self.count

    def sent(self, began: float) -> None:
        self._took.append(time.monotonic() - began)

    def report(self) -> None:
        seconds, took = time.monotonic() - self._began, sorted(self._took)
        cpu_us = (time.process_time() - self._began_cpu_s) / self.count * 1e6
        p99_ms = took[len(took) * 99 // 100] * 1000
        print(json.dumps({"sent": len(took), "seconds": seconds, "p99_ms": p99_ms, "cpu_us": cpu_us}), flush=True)


def is_callers() -> bool:
    return "@" in sys.argv[-1]


async def send_by_callers(send: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
    callers = Callers()

    async def call() -> None:
        while callers.more():
            began = time.monotonic()
            await send(make_task(0.0))
            callers.sent(began)

    await asyncio.gather(*(call() for _ in range(callers.callers)))
    callers.report()


def send_by_threads(send: Callable[[dict[str, Any]], object]) -> None:
    callers = Callers()

    def call(_: int) -> None:
        while callers.more():
            began = time.monotonic()
            send(make_task(0.0))
            callers.sent(began)

    with ThreadPoolExecutor(callers.callers) as threads:
        list(threads.map(call, range(callers.callers)))
    callers.report()


def send_blocking(send: Callable[[dict[str, Any]], object]) -> None:
    """For an API that returns once the task is confirmed: one after the other."""
    if is_callers():
        return send_by_threads(send)
    plan = Plan()
    for seconds, wait_s in plan:
        if wait_s > 0:
            time.sleep(wait_s)
        plan.sending()
        send(make_task(seconds))
    plan.report()


async def send_each(send: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
    """For a coroutine that returns once the task is confirmed, awaited as documented: one after the other."""
    if is_callers():
        return await send_by_callers(send)
    plan = Plan()
    for seconds, wait_s in plan:
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        plan.sending()
        await send(make_task(seconds))
    plan.report()


async def send_window(send: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
    """For a coroutine that returns once the task is confirmed: at most WINDOW of them at a time."""
    if is_callers():
        return await send_by_callers(send)
    plan, slots = Plan(), asyncio.Semaphore(WINDOW)

    async def one(task: dict[str, Any]) -> None:
        try:
            await send(task)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as sends:  # a send that fails ends the sender
        for seconds, wait_s in plan:
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await slots.acquire()
            plan.sending()
            sends.create_task(one(make_task(seconds)))
    plan.report()
