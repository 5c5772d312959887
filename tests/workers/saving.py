"""A worker whose handler goes on from the checkpoint that it finds. What it finds, and gives, it writes to CHECKPOINTS.

A nap with failures fails until the checkpoint has counted so many. One that takes time is done at once where it finds
a checkpoint; else it gives some, the last at its cancellation, which it swallows for STUBBORN_S. With BLOCKS it blocks
the event loop.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker


def note(checkpoint: Any) -> None:
    with Path(os.environ["CHECKPOINTS"]).open("a") as file:
        file.write(json.dumps(checkpoint) + "\n")


async def handle(task: Task, context: TaskContext[None]) -> NapResult:
    job, found = task.payload, context.checkpoint
    assert isinstance(job, Nap)
    note(found)
    if (found or 0) < job.failures:
        context.progress(checkpoint=(found or 0) + 0.5)
        context.progress(checkpoint=(found or 0) + 1)
        raise RuntimeError("not yet")
    if job.seconds and found is None:
        give(context, 429)
        context.progress(0.429, "line 429\x1b of 1,000")
        if "BLOCKS" in os.environ:
            time.sleep(job.seconds)  # noqa: ASYNC251  # that is what it is there for
        await nap(job.seconds, context)
    return NapResult(kind="nap", attempt=context.attempt)


def give(context: TaskContext[None], line: int) -> None:
    context.progress(checkpoint=line)
    note(line)


async def nap(seconds: float, context: TaskContext[None]) -> None:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        give(context, 430)
        ends = time.monotonic() + float(os.environ.get("STUBBORN_S", "0"))
        while (left_s := ends - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left_s)
        give(context, 431)
        raise


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
