"""A worker that a task with failures=13 kills, like a bug in a C library would; it does all others."""

import asyncio
import os
import signal
import sys

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker


async def handle(task: Task, context: TaskContext[None]) -> NapResult:
    if isinstance(task.payload, Nap):
        if task.payload.failures == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(task.payload.seconds)
    return NapResult(kind="nap", attempt=context.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
