"""A worker that fails every task for as long as the file BROKEN exists."""

import os
import sys
from pathlib import Path

from tests.generated.worker import Application
from tests.generated.worker.messages.json import NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker


def handle(task: Task, context: TaskContext[None]) -> NapResult:
    if Path(os.environ["BROKEN"]).exists():
        raise RuntimeError("it is broken")
    return NapResult(kind="nap", attempt=context.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
