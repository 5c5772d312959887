"""A worker whose tasks of LONG_S or more do all their work in the ledger's own transaction, and so hold its locks."""

import asyncio
import os
import sys

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker

LONG_S = float(os.environ["LONG_S"])


async def handle(task: Task, context: TaskContext[None]) -> NapResult:
    assert isinstance(task.payload, Nap)
    result = NapResult(kind="nap", attempt=context.attempt)
    if task.payload.seconds < LONG_S:
        await asyncio.sleep(task.payload.seconds)
        return result
    async with context.completion(result) as db:
        await db.execute("INSERT INTO effect (id) VALUES (%s)", (task.id,))
        await asyncio.sleep(task.payload.seconds)
    return result


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
