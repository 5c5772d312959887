"""A worker whose two operations share a resource. What goes wrong with that, and with the handlers, the environment
says: FAILS is when the lifespan does, WITHOUT and WITH are names of a handler to leave out and to add."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, NoReturn

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Nap, NapResult, Task
from workqueue.settings import Settings
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker

Pool = dict[str, int]
FAILS = os.environ.get("FAILS")
pool: ContextVar[str] = ContextVar("pool", default="none")
begun = asyncio.Event()  # a task is in hand


def say(what: str) -> None:
    print(what, flush=True, file=sys.stderr)


@asynccontextmanager
async def shared(settings: Settings) -> AsyncIterator[Pool]:
    say("opening")
    if FAILS == "slowly":
        await asyncio.sleep(30)
    if FAILS == "open":
        raise ValueError("no such pool")
    say("opened")
    pool.set("open")
    async with asyncio.timeout(None):  # which asks to be left in the task that entered it
        yield {"pool": 7}
    say("closed")
    if FAILS == "close":
        raise ValueError("it leaks")


async def dies(settings: Settings) -> AsyncIterator[Pool]:
    pool.set("open")
    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        yield {"pool": 7}


async def fail() -> NoReturn:
    await begun.wait()
    raise ValueError("the pool broke")


@asynccontextmanager
async def stays(settings: Settings) -> AsyncIterator[None]:
    say("opening")
    while True:
        with suppress(BaseException):
            await asyncio.sleep(1000)
    yield None


async def errand(task: Task, context: TaskContext[Pool]) -> NapResult:
    assert context.resources == {"pool": 7}
    assert pool.get() == "open"  # the lifespan's context is the handlers'
    assert isinstance(task.payload, Nap)
    begun.set()
    await asyncio.sleep(task.payload.seconds)
    if context.attempt <= task.payload.failures:
        raise RuntimeError("told to fail")
    return NapResult(kind="nap", attempt=context.attempt)


async def chore(task: Task, context: TaskContext[Pool]) -> NapResult:
    return await errand(task, context)


if __name__ == "__main__":
    handlers: dict[str, Any] = {"do_errand": errand, "do_chore": chore}
    handlers.pop(os.environ.get("WITHOUT", ""), None)
    if name := os.environ.get("WITH"):
        handlers[name] = errand
    failing: dict[str | None, Any] = {"later": asynccontextmanager(dies), "never": dies, "to end": stays}
    sys.exit(run_worker(Application, handlers, about=__doc__, lifespan=failing.get(FAILS, shared)))
