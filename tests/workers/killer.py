"""A worker that a task with failures=13 kills, like a bug in a C library would; it does all others."""

import os
import signal
import sys

from generated.worker import Application
from generated.worker.messages.json import Simulate, SimulateResult, Task
from workqueue.tasks.context import Run
from workqueue.worker import run_worker


async def handle(task: Task, run: Run) -> SimulateResult:
    if isinstance(task.payload, Simulate) and task.payload.failures == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return SimulateResult(kind="simulate", attempt=run.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.process_task, handle, __doc__))
