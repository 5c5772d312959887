"""FastStream: a pydantic model as the handler's argument, acked after it, on uvloop as its command line does. A
subscriber runs as many handlers at a time as the prefetch of its channel allows.

https://faststream.ag2.ai/latest/rabbit/, https://faststream.ag2.ai/latest/rabbit/ack/
"""

import sys
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from bench.protocol import QUEUE, concurrency, queue_type, send_each, url, work


class Simulate(BaseModel):
    kind: Literal["simulate"]
    seconds: float


class Task(BaseModel):
    id: UUID
    created_at: datetime
    payload: Simulate


broker = RabbitBroker(url, default_channel=Channel(prefetch_count=concurrency, on_return_raises=True))
queue = RabbitQueue(QUEUE, queue_type=QueueType(queue_type), durable=True)


@broker.subscriber(queue, ack_policy=AckPolicy.REJECT_ON_ERROR)
async def handle(task: Task) -> None:
    await work(task.payload.seconds)


async def send() -> None:
    async with broker:
        await broker.declare_queue(queue)

        async def publish(task: dict[str, Any]) -> None:
            await broker.publish(task, queue, persist=True, mandatory=True)

        await send_each(publish)


if __name__ == "__main__":
    uvloop.run(send() if sys.argv[1] == "send" else FastStream(broker).run())
