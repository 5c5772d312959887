"""This project: the real main-producer.py, and a worker as main-worker.py makes one, with the bench's handler.

Runs in a copy of the project, whose contract may name another type of queue. The producer is timed around its
`submit`, which is from before the first task is made until the last is confirmed.
"""

import json
import runpy
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench.protocol import Plan, is_callers, send_each, work
from generated.producer import Application as Producer
from generated.worker import Application
from generated.worker.messages.json import Task
from workqueue import Client, producer
from workqueue.client.submit import Feed, submit
from workqueue.tasks.context import TaskContext
from workqueue.worker import run_worker


async def handle(task: Task, context: TaskContext[None]) -> None:
    payload: Any = task.payload  # of the example's kind `simulate`; where spec/ has others, there is nothing to measure
    await work(payload.seconds)


async def call() -> None:
    """An application's sends, recorded in the ledger where there is one."""
    async with Client(Producer) as queue:
        await send_each(lambda task: queue.send(task["payload"]))


def send() -> None:
    if is_callers():
        return uvloop.run(call())
    plan = Plan()

    def paced(tasks: Iterator[Any]) -> Iterator[Any]:
        """Read by the producer's own thread, as a slow file would be."""
        for _, wait_s in plan:
            if wait_s > 0:
                time.sleep(wait_s)
            plan.sending()
            yield next(tasks)

    async def timed(source: Feed[Any], send: Callable[[Any], Awaitable[None]], **rest: Any) -> None:
        await submit(source, send, **rest)
        plan.report()

    if len(plan.batches) == 1:
        ((count, seconds, _),) = plan.batches
        flags = ["--simulate", str(count), "--seconds", str(seconds)]
    else:
        payloads = [
            {"kind": "simulate", "seconds": seconds} for count, seconds, _ in plan.batches for _ in range(count)
        ]
        Path("payloads.jsonl").write_text("".join(json.dumps(payload) + "\n" for payload in payloads))
        flags = ["--jsonl", "payloads.jsonl"]
    # What run_producer calls.
    vars(producer).update(submit=timed, Feed=lambda tasks, ahead: Feed(paced(iter(tasks)), ahead))
    sys.argv = ["main-producer.py", *flags]
    runpy.run_path("main-producer.py", run_name="__main__")


def main() -> None:
    if sys.argv[1] == "send":
        send()
    else:
        sys.argv = ["main-worker.py", *sys.argv[2:]]
        sys.exit(run_worker(Application, {"process_task": handle}, about=__doc__))


if __name__ == "__main__":
    main()
