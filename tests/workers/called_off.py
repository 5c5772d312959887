"""A worker whose handler goes on, or ends in a way of its own, when the task of a Digest is called off."""

import asyncio
import contextlib
import sys
import time

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Digest, DigestResult, NapResult, OddResult, ParcelResult, Task
from tests.workers import main
from workqueue.tasks.context import TaskContext
from workqueue.tasks.threads import in_thread
from workqueue.worker import run_worker

LONG_S = 60.0
STUBBORN_S = 8.0


async def handle(task: Task, context: TaskContext[None]) -> NapResult | DigestResult | ParcelResult | OddResult:
    match task.payload:
        case Digest(text="thread"):
            await in_thread(sleep_in_steps)
        case Digest(text="stubborn"):
            await stay(time.monotonic() + STUBBORN_S)
            raise RuntimeError("it stayed")
        case Digest(text="finishes"):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(LONG_S)
        case Digest(text="breaks"):
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError as error:
                raise RuntimeError("it broke at its end") from error
    return await main.handle(task, context)


def sleep_in_steps() -> None:
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        time.sleep(0.01)


async def stay(until: float) -> None:
    while (left_s := until - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
