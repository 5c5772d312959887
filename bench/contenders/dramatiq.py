"""Dramatiq: acks are always after the actor; with confirm_delivery its producer waits for each confirm.

It has no option for the type of its queues: they get the default of their vhost, which the bench sets. The prefetch
is an environment variable, `dramatiq_queue_prefetch`.
https://dramatiq.io/reference.html#dramatiq.brokers.rabbitmq.RabbitmqBroker, https://dramatiq.io/advanced.html
"""

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from bench.protocol import QUEUE, send_blocking, url, work_blocking

broker = RabbitmqBroker(url=url, confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE)
def process(task: dict[str, Any]) -> None:
    work_blocking(task["payload"]["seconds"])


if __name__ == "__main__":
    broker.declare_queue(QUEUE, ensure=True)
    send_blocking(process.send)
    broker.close()
