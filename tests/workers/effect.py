"""A worker whose handler writes its effect in the ledger's own transaction: both are there, or neither is."""

import asyncio
import inspect
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
        for statement in ("CREATE TABLE IF NOT EXISTS effect (id text)", f"INSERT INTO effect VALUES ('{task.id}')"):
            executed = db.execute(statement)  # at once by sqlite3, to be awaited by psycopg
            if inspect.isawaitable(executed):
                await executed
    return result


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.do_errand, handle, __doc__))
