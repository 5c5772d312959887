"""Celery: late acks, no results, and publisher confirms, of which its producer waits for each one.

https://docs.celeryq.dev/en/stable/userguide/optimizing.html (prefetch, late acks),
https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html (quorum queues, confirms)
"""

from typing import Any

from celery import Celery

from bench.protocol import QUEUE, is_callers, queue_type, send_blocking, url, work_blocking

app = Celery("bench", broker=url)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_default_queue=QUEUE,
    task_default_queue_type=queue_type,
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)


@app.task(name="process")
def process(task: dict[str, Any]) -> None:
    work_blocking(task["payload"]["seconds"])


if __name__ == "__main__" and is_callers():  # each takes a producer of the pool, as an application does
    send_blocking(lambda task: process.apply_async((task,), mandatory=True))
elif __name__ == "__main__":
    with app.producer_pool.acquire(block=True) as producer:
        producer.connection.ensure_connection()
        send_blocking(lambda task: process.apply_async((task,), producer=producer, mandatory=True))
