"""A worker whose handler writes its effect in the ledger's own transaction: both are there, or neither is."""

import asyncio
import sys

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import Run
from workqueue.worker import run_worker


async def handle(task: Task, run: Run) -> NapResult:
    result = NapResult(kind="nap", attempt=run.attempt)
    if isinstance(task.payload, Nap):
        await asyncio.sleep(task.payload.seconds)
    async with run.completion(result) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS effect (id text)")
        await db.execute(f"INSERT INTO effect VALUES ('{task.id}')")
    return result


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.do_errand, handle, __doc__))
