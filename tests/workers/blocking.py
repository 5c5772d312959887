"""A worker whose handler is a plain function that blocks."""

import sys
import time

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import Run
from workqueue.worker import run_worker


def handle(task: Task, run: Run) -> NapResult:
    if isinstance(task.payload, Nap):
        for _ in range(100):
            time.sleep(task.payload.seconds / 100)
    return NapResult(kind="nap", attempt=run.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.do_errand, handle, __doc__))
