"""A worker whose handler writes its effect in the ledger's own transaction: both are there, or neither is."""

import asyncio
import sys

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker


async def handle(task: Task, context: TaskContext[None]) -> NapResult:
    result = NapResult(kind="nap", attempt=context.attempt)
    if isinstance(task.payload, Nap):
        await asyncio.sleep(task.payload.seconds)
    async with context.completion(result) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS effect (id text)")
        await db.execute(f"INSERT INTO effect VALUES ('{task.id}')")
    return result


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
