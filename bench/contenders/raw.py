"""aio-pika by hand, on uvloop: what is left if nothing is added. JSON is parsed and not checked.

https://docs.aio-pika.com/rabbitmq-tutorial/2-work-queues.html
"""

import asyncio
import json
import signal
import sys
from typing import Any

import aio_pika
import uvloop

from bench.protocol import QUEUE, queue_type, send_window, url, work


async def send() -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": queue_type})

        async def publish(task: dict[str, Any]) -> None:
            message = aio_pika.Message(
                json.dumps(task).encode(),
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await channel.default_exchange.publish(message, QUEUE, mandatory=True)

        await send_window(publish)


async def consume() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": queue_type})

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            task = json.loads(message.body)
            await work(task["payload"]["seconds"])
            await message.ack()

        await queue.consume(take)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(send() if sys.argv[1] == "send" else consume())
