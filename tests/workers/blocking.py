"""A worker whose handler is a plain function that blocks."""

import sys
import time

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker


def handle(task: Task, context: TaskContext[None]) -> NapResult:
    if isinstance(task.payload, Nap):
        for _ in range(100):
            time.sleep(task.payload.seconds / 100)
    return NapResult(kind="nap", attempt=context.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
