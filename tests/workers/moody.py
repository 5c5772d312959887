"""A worker that fails every task for as long as the file BROKEN exists."""

import os
import sys
from pathlib import Path

from tests.generated.worker import Application
from tests.generated.worker.messages.json import NapResult, Task
from workqueue.tasks.context import Run
from workqueue.worker import run_worker


def handle(task: Task, run: Run) -> NapResult:
    if Path(os.environ["BROKEN"]).exists():
        raise RuntimeError("it is broken")
    return NapResult(kind="nap", attempt=run.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, lambda app: app.consumer.do_errand, handle, __doc__))
