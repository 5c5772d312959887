"""A worker whose handler is a plain function that blocks."""

import sys
import time

from generated.worker import Application
from generated.worker.messages.json import Simulate, SimulateResult, Task
from workqueue.tasks.context import Run
from workqueue.worker import run_worker


def handle(task: Task, run: Run) -> SimulateResult:
    if isinstance(task.payload, Simulate):
        for _ in range(100):
            time.sleep(task.payload.seconds / 100)
    return SimulateResult(kind="simulate", attempt=run.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.process_task, handle, __doc__))
