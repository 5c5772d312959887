"""A worker that fails every task for as long as the file BROKEN exists."""

import os
import sys
from pathlib import Path

from generated.worker import Application
from generated.worker.messages.json import SimulateResult, Task
from workqueue.tasks.context import Run
from workqueue.worker import run_worker


def handle(task: Task, run: Run) -> SimulateResult:
    if Path(os.environ["BROKEN"]).exists():
        raise RuntimeError("it is broken")
    return SimulateResult(kind="simulate", attempt=run.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.process_task, handle, __doc__))
