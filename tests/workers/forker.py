"""A worker whose handlers fork in their threads, for children that use SQLite, as its own event loop does."""

import os
import sqlite3
import sys
import time

from tests.generated.worker import Application
from tests.generated.worker.messages.json import NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker

CHILD_S = 8.0


def handle(task: Task, context: TaskContext[None]) -> NapResult:
    child = os.fork()
    if not child:
        for number in range(20):
            sqlite3.connect(":memory:").execute(f"SELECT {number}").fetchall()
        os._exit(0)
    end_s = time.monotonic() + CHILD_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end_s:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise RuntimeError("the child hung")
        time.sleep(0.002)
    return NapResult(kind="nap", attempt=context.attempt)


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
