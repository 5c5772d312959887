"""A worker script, with every start and end of its handler written to the file RECORD by nobody but the handler.

    recorder.py SCRIPT ID [FLAGS]     SCRIPT is one like main-worker.py, run from the project's folder

With STAND_IN, a folder, stand-ins take the place of the script's handlers and of its lifespan; see `stand_in`.

A line is `start|end id worker pid time operation`; an attempt that fails has no end. Appends of a line are atomic, so
many workers share the file, and one that is killed loses nothing that it wrote.
"""

import inspect
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

script = Path(sys.argv[1])
# The project's own modules come first, as a copy of it may have another contract; then what lies beside the script.
sys.path[:1] = [os.getcwd(), str(script.resolve().parent)]

from workqueue import worker  # noqa: E402

record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
run_worker = worker.run_worker


def recorded(operation: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    """The same handler to the worker, plain or async, a function or an object that is called."""

    def note(word: str, task: Any, run: Any) -> None:
        os.write(record, f"{word} {task.id} {run.worker} {os.getpid()} {time.time():.6f} {operation}\n".encode())

    async def handle(task: Any, run: Any) -> Any:
        note("start", task, run)
        result = await handler(task, run)
        note("end", task, run)
        return result

    def handle_plain(task: Any, run: Any) -> Any:
        note("start", task, run)
        result = handler(task, run)
        if inspect.isawaitable(result):  # async under a decorator that is not: it ends when that is awaited
            return ended(result, task, run)
        note("end", task, run)
        return result

    async def ended(result: Any, task: Any, run: Any) -> Any:
        value = await result
        note("end", task, run)
        return value

    called = getattr(handler, "__call__", None)  # noqa: B004  # what an object does when it is called
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)
    return handle if is_async else handle_plain


def run_recorded(application: type[Any], handlers: Mapping[str, Any], **options: Any) -> int:
    if folder := os.environ.get("STAND_IN"):
        from workqueue.testing import stand_in

        handlers = stand_in.handlers(application, handlers, Path(folder))
        options.pop("lifespan", None)
    return run_worker(application, {name: recorded(name, handler) for name, handler in handlers.items()}, **options)


worker.run_worker = run_recorded  # what the script imports
sys.argv = sys.argv[1:]
runpy.run_path(str(script), run_name="__main__")
