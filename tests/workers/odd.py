"""A worker whose handler does what a task's text says: each a thing that other people's handlers do."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Digest, NapResult, Task
from workqueue.tasks.context import TaskContext
from workqueue.tasks.threads import in_thread
from workqueue.worker import run_worker

LONG_S = 100.0


async def awaits_a_cancelled_task() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(LONG_S))
    await asyncio.sleep(0)
    inner.cancel()
    await inner


async def exits_in_a_task_of_its_own() -> None:
    async def leave() -> None:
        sys.exit(3)

    await asyncio.create_task(leave())


async def exits_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.05)


async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)


async def cancels_all() -> None:
    for running in asyncio.all_tasks():
        running.cancel()
    await asyncio.sleep(0)


async def says_much() -> None:
    raise ValueError("x" * 20_000_000)


async def interrupts_in_a_task_of_its_own() -> None:
    async def leave() -> None:
        raise KeyboardInterrupt

    await asyncio.gather(leave(), asyncio.sleep(0.01))


async def exits() -> None:
    sys.exit(3)


async def generator_exit() -> None:
    raise GeneratorExit


async def in_a_loop() -> None:
    while True:
        with suppress(BaseException):
            await asyncio.sleep(LONG_S)


async def blocks() -> None:
    time.sleep(float(os.environ.get("BLOCKS_S", LONG_S)))  # noqa: ASYNC251


async def forks_and_returns_in_the_child() -> None:
    os.fork()


async def forks_and_exits_in_the_child() -> None:
    if not os.fork():
        sys.exit(4)


async def forks_and_raises_in_the_child() -> None:
    if not os.fork():
        raise ValueError("of the child")


async def forks_and_awaits_in_the_child() -> None:
    begun = asyncio.get_running_loop().create_future()
    if not os.fork():
        await begun
    begun.set_result(None)


gate = asyncio.Event()


async def waits_at_the_gate() -> None:
    waiting.set()
    await gate.wait()
    print("the effect of who waited")


async def forks_and_opens_the_gate() -> None:
    await waiting.wait()
    gate.set()
    os.fork()
    await asyncio.sleep(0)


waiting = asyncio.Event()


async def forks_and_returns_in_an_executor() -> None:
    one = ThreadPoolExecutor(1)
    forking = one.submit(os.fork)
    await asyncio.wrap_future(one.submit(print, "the effect of who waited"))
    forking.result()


async def forks_and_yields_in_the_child() -> None:
    if not os.fork():
        for _ in range(100):
            await asyncio.sleep(0)


async def takes_the_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)


def forks_and_returns_in_a_thread() -> None:
    os.fork()


def forks_and_raises_in_a_thread() -> None:
    if not os.fork():
        raise ValueError("of the child")


async def in_the_default_executor() -> None:
    await asyncio.to_thread(time.sleep, LONG_S)


async def leaves_a_child_behind() -> None:
    if not os.fork():
        time.sleep(LONG_S)  # noqa: ASYNC251
        os._exit(0)
    await asyncio.sleep(LONG_S)


def uses_a_pool() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(abs, [1])


def terminates_a_child() -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG_S,))
    child.start()
    child.terminate()
    child.join()
    assert child.exitcode == -15


def stop_iteration() -> None:
    next(iter(()))


def cancelled_in_a_thread() -> None:
    raise asyncio.CancelledError


def in_c_code() -> None:
    time.sleep(LONG_S)


def swallows_in_a_thread() -> None:
    while True:
        with suppress(BaseException):
            time.sleep(0.1)


def leaves_a_thread_behind() -> None:
    threading.Thread(target=time.sleep, args=(LONG_S,), name="left-behind").start()


async def handle(task: Task, context: TaskContext[None]) -> NapResult:
    if isinstance(task.payload, Digest):
        act: Callable[[], Any] = globals()[task.payload.text]
        await (act() if asyncio.iscoroutinefunction(act) else in_thread(act))
    return NapResult(kind="nap", attempt=context.attempt)


def handle_plain(task: Task, context: TaskContext[None]) -> Any:
    """Returns a coroutine for what is one: a plain function may."""

    async def finish(doing: Awaitable[None]) -> NapResult:
        await doing
        return NapResult(kind="nap", attempt=context.attempt)

    if isinstance(task.payload, Digest):
        doing = globals()[task.payload.text]()
        if asyncio.iscoroutine(doing):
            return finish(doing)
    return NapResult(kind="nap", attempt=context.attempt)


if __name__ == "__main__":
    handler = handle_plain if os.environ.get("PLAIN") else handle
    sys.exit(run_worker(Application, {"do_errand": handler, "do_chore": handler}, about=__doc__))
