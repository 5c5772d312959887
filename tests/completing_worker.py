"""The project's worker, but that a task of LONG_S or more writes its effect, a row, with its completion.

Run from the project's folder, with the ledger on PostgreSQL.
"""

import asyncio
import os
import runpy
import sys
from typing import Any

from generated.worker import Application
from generated.worker.messages.json import SimulateResult
from workqueue.worker import run_worker

long_s = float(os.environ["LONG_S"])
usual = runpy.run_path("main-worker.py")["handle"]


async def handle(task: Any, run: Any) -> Any:
    if getattr(task.payload, "seconds", 0.0) < long_s:
        return await usual(task, run)
    result = SimulateResult(kind="simulate", attempt=run.attempt)
    async with run.completion(result) as database:
        await database.execute("INSERT INTO effect (id) VALUES (%s)", (task.id,))
        await asyncio.sleep(task.payload.seconds)
    return result


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.process_task, handle, __doc__))
