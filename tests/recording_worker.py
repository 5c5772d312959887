"""A worker script, with every start and end of its handler written to the file RECORD by nobody but the handler.

    recording_worker.py SCRIPT ID [FLAGS]     SCRIPT is one like main-worker.py, run from the project's folder

A line is `start|end id worker pid time`; an attempt that fails has no end. Appends of a line are atomic, so many
workers share the file, and one that is killed loses nothing that it wrote.
"""

import inspect
import os
import runpy
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

sys.path.insert(0, os.getcwd())

from workqueue import worker
from workqueue.tasks.context import Run

record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
run_worker = worker.run_worker


def note(word: str, task: Any, run: Run) -> None:
    os.write(record, f"{word} {task.id} {run.worker} {os.getpid()} {time.time():.6f}\n".encode())


def recorded(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def handle(task: Any, run: Run) -> Any:
        note("start", task, run)
        result = await handler(task, run)
        note("end", task, run)
        return result

    def handle_blocking(task: Any, run: Run) -> Any:
        note("start", task, run)
        result = handler(task, run)
        note("end", task, run)
        return result

    return handle if inspect.iscoroutinefunction(handler) else handle_blocking


def run_recorded(
    application: type[Any],
    operation: Callable[[Any], Any],
    handler: Any,
    about: str | None,
    variables: Collection[str] = (),
) -> int:
    return run_worker(application, operation, recorded(handler), about, variables)


worker.run_worker = run_recorded  # what the script imports
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
