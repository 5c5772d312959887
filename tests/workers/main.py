"""The worker of the tests' own contract: does its naps and parcels, and what no handler should do."""

import asyncio
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import Any, NoReturn, assert_never

from tests.generated.worker import Application
from tests.generated.worker.messages.json import (
    Deadly,
    Digest,
    DigestResult,
    Nap,
    NapResult,
    Odd,
    OddResult,
    Parcel,
    ParcelResult,
    Task,
)
from workqueue.tasks.context import TaskContext
from workqueue.tasks.threads import in_thread
from workqueue.verdicts import RetryAfter
from workqueue.worker import run_worker

BLOCKS_S = 3.0  # longer than a watchdog waits, shorter than a lease
SWALLOWS_S = 2.0


async def handle(task: Task, context: TaskContext[None]) -> NapResult | DigestResult | ParcelResult | OddResult:
    match task.payload:
        case Nap() as job:
            await asyncio.sleep(job.seconds)
            if context.attempt <= job.failures:
                raise RuntimeError(f"told to fail {job.failures} times")
            return NapResult(kind="nap", attempt=context.attempt)
        case Digest() as job:
            return digest(job)
        case Parcel() as job:
            return await in_thread(parcel, job)
        case Odd() as job:
            await ODD[job.way]()
            return {"kind": "odd"} if job.way == "returns-dict" else OddResult(kind="odd", way=job.way)  # type: ignore[return-value]
        case Deadly() as job:
            await asyncio.sleep(job.after_s)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("it lives")
        case _:
            assert_never(task.payload)


def digest(job: Digest) -> DigestResult:
    data = job.text.encode()
    found = hashlib.new(job.algorithm, data).hexdigest()
    return DigestResult(kind="digest", text=job.text, algorithm=job.algorithm, digest=found, size=len(data))


def parcel(job: Parcel) -> ParcelResult:
    stops = [stop.root for stop in job.stops or ()]
    labels = [f"{name}={value}" for name, value in sorted(job.labels.items())]
    address = " ".join([job.due.isoformat(), job.service, *stops, *labels])
    return ParcelResult(kind="parcel", address=address, size=job.box.width * job.box.height)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("an error that has no text")


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def block() -> None:
    time.sleep(BLOCKS_S)  # noqa: ASYNC251  # that is what it is there for


async def swallow() -> None:
    """Take this long, whoever cancels it."""
    until = time.monotonic() + SWALLOWS_S
    while (left_s := until - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue


def fork_a_pool() -> None:
    with get_context("fork").Pool(2) as pool:
        pool.map(abs, [1, -1])


def raise_now(error: BaseException) -> NoReturn:
    raise error


async def raising(error: Callable[[], BaseException]) -> NoReturn:
    raise error()


async def nothing() -> None:
    """What is odd comes after it."""


ODD: dict[str, Callable[[], Any]] = {
    "exits": lambda: raising(lambda: SystemExit(3)),
    "interrupts": lambda: raising(KeyboardInterrupt),
    "cancels": cancel_itself,
    "raises-cancelled": lambda: raising(asyncio.CancelledError),
    "raises-group": lambda: raising(lambda: BaseExceptionGroup("odd", [SystemExit(4), ValueError("one of two")])),
    "raises-generator-exit": lambda: in_thread(raise_now, GeneratorExit()),
    "raises-unprintable": lambda: raising(Unprintable),
    "stops-iteration": lambda: in_thread(next, iter(())),
    "retries-after-text": lambda: raising(lambda: RetryAfter("5", "text for a number")),  # type: ignore[arg-type]
    "returns-dict": nothing,
    "blocks": block,
    "swallows": swallow,
    "forks": partial(in_thread, fork_a_pool),
    "leaves-folder": partial(in_thread, os.chdir, "/"),
}


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
