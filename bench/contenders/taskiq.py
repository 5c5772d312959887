"""Taskiq with taskiq-aio-pika: a prefetch of what it does at a time, acked once executed; confirms are always on.

https://taskiq-python.github.io/guide/cli.html, https://taskiq-python.github.io/available-components/brokers.html
"""

import asyncio
from typing import Any

import uvloop
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from bench.protocol import QUEUE, concurrency, queue_type, send_each, url, work

type_ = QueueType(queue_type)
broker = AioPikaBroker(
    url,
    qos=concurrency,
    task_queues=[Queue(name=QUEUE, type=type_)],
    dead_letter_queue=Queue(name=f"{QUEUE}.dead", type=type_),
)


@broker.task(task_name="process")
async def process(task: dict[str, Any]) -> None:
    await work(task["payload"]["seconds"])


async def send() -> None:
    await broker.startup()
    await send_each(process.kiq)
    await broker.shutdown()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send())
