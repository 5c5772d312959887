"""Faults of messages: what no contract allows, what handlers should not do, and what operators do to queues."""

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aio_pika
from aio_pika.exceptions import ChannelNotFoundEntity

from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.house import SETTLE_S, House
from workqueue.testing.chaos.load import ALWAYS, Task, make_task, nap, poison
from workqueue.testing.chaos.plan import Fault
from workqueue.testing.chaos.producing import Producer
from workqueue.testing.processes import until

COPIES = 4  # of one failing task
LARGE_HEADER_BYTES = 130_900  # with the other properties just below the frame of 131,072 that a broker grants
LETTERS_WITHIN_S = 60.0  # a producer on a busy machine takes a while to start
LOOKED_AT = 30  # at once, by gets: of more than 32 RabbitMQ 3.10 loses some later, see `amqp.held`
LOOKS = 25  # more than the deliveries that RabbitMQ 4 grants a message of a quorum queue
SENT_BACK = 5  # dead letters at a time


class Messages:
    """Each of a fault's operation. `good` is a task of each that the contract allows."""

    def __init__(
        self, house: House, producers: Mapping[str, Producer], book: Book, good: Mapping[str, Task], rng: random.Random
    ) -> None:
        self._house, self._producers, self._book, self._good, self._rng = house, producers, book, good, rng
        self.by_kind = {
            "poison sent": self._poison,
            "odd handlers": self._send_odd,
            "deadly task": self._send_deadly,
            "failing task sent 4 times": self._flood,
            "large headers": self._send_large_headers,
            "dead letters looked at": self._look,
            "dead letters sent back": self._send_back,
            "queue deleted": self._delete_queue,
        }

    def _give(self, fault: Fault, payload: Mapping[str, Any], copies: int = 1) -> str:
        """Have a task with this payload sent, so often; its id."""
        task = make_task(self._rng, payload, fault.operation)
        self._producers[fault.operation].more.extend([task] * copies)
        return task.id

    async def _poison(self, fault: Fault) -> bool:
        site = self._house.at[fault.operation]
        async with self._house.broker_lock:
            for body, headers in poison(self._rng, self._good[fault.operation], site.receive):
                id = self._book.note_poison(body, headers, fault.operation)
                await site.publish(body, message_id=id, headers=headers, delivery_mode=2)
        return True

    async def _send_odd(self, fault: Fault) -> bool:
        """A task for each way in which a handler should not end, in an order of its own."""
        ways = self._house.settings.odd_ways
        for way in self._rng.sample(ways, len(ways)):
            self._book.odd.add(self._give(fault, {"kind": "odd", "way": way}))
        return True

    async def _send_deadly(self, fault: Fault) -> bool:
        self._book.deadly.add(self._give(fault, {"kind": "deadly", "after_s": 0.1}))
        return True

    async def _flood(self, fault: Fault) -> bool:
        self._book.flooded.add(self._give(fault, nap(failures=ALWAYS), COPIES))
        return True

    async def _send_large_headers(self, fault: Fault) -> bool:
        """Good tasks, which fail once and so are copied, with a header of somebody's that leaves no room for more."""
        async with self._house.broker_lock:
            for _ in range(3):
                task = make_task(self._rng, nap(failures=1), fault.operation)
                self._book.note_given(task)
                headers: dict[str, Any] = {"trace": "x" * LARGE_HEADER_BYTES}
                await self._house.at[fault.operation].publish(task.line.strip(), headers=headers, delivery_mode=2)
        return True

    async def _have_letters(self, fault: Fault) -> None:
        """See to it that there are dead letters: tasks that fail, where there can be such, else poison."""
        settings, site = self._house.settings, self._house.at[fault.operation]
        if settings.own:
            for _ in range(2):
                self._give(fault, nap(failures=ALWAYS, kind=settings.nap))
        else:
            await self._poison(fault)

        async def some() -> bool:
            with suppress(ChannelNotFoundEntity, ConnectionError):  # while the broker is away there are none
                async with site.amqp() as channel:
                    queue = await channel.declare_queue(site.dead_queue, passive=True)
                    return bool(queue.declaration_result.message_count)
            return False

        with suppress(AssertionError):
            await until(some, "there are dead letters", LETTERS_WITHIN_S)

    async def _look(self, fault: Fault) -> bool:
        """As the management page does: get some, and close without an ack."""
        site, seen = self._house.at[fault.operation], 0
        await self._have_letters(fault)
        async with self._house.broker_lock:
            for _ in range(LOOKS):
                async with site.amqp() as channel:
                    with suppress(ChannelNotFoundEntity):  # it was deleted just now
                        queue = await channel.declare_queue(site.dead_queue, passive=True)
                        for _ in range(LOOKED_AT):
                            seen += await queue.get(fail=False, no_ack=False) is not None
        return seen > 0

    async def _send_back(self, fault: Fault) -> bool:
        """As a shovel does: publish to the queue of tasks with everything it has, and ack when that is confirmed."""
        site, moved = self._house.at[fault.operation], 0
        await self._have_letters(fault)
        async with self._house.broker_lock, site.amqp() as channel:
            with suppress(ChannelNotFoundEntity):
                queue = await channel.declare_queue(site.dead_queue, passive=True)
                while moved < SENT_BACK and (message := await queue.get(fail=False)) is not None:
                    await channel.default_exchange.publish(_same(message), routing_key=site.queue)
                    await message.ack()
                    self._book.moved.append(self._book.letter(message, fault.operation))
                    moved += 1
        return moved > 0

    async def _delete_queue(self, fault: Fault) -> bool:
        """The dead-letter queue or the longest delay, if nothing is in it. What comes in at that very moment is lost
        by the operator's own act: it is counted."""
        site = self._house.at[fault.operation]
        queues = [site.receive.dead, site.receive.rungs[-1].queue]
        async with self._house.broker_lock:
            # In its first moments RabbitMQ 3.10 has no way to delete a queue with a dead-letter target and
            # x-dead-letter-strategy: at-least-once, without ending all others that have these.
            await asyncio.sleep(self._house.broker_began + SETTLE_S - time.monotonic())
            for queue in self._rng.sample(queues, len(queues)):
                async with site.amqp() as channel:
                    with suppress(ChannelNotFoundEntity):  # it is gone already
                        there = await channel.declare_queue(queue.name, passive=True)
                        if there.declaration_result.message_count == 0:
                            deleted = await channel.queue_delete(queue.name)
                            self._book.deleted += deleted.message_count or 0
                            self._house.deleted.append(queue)
                            return True
        return False


def _same(message: aio_pika.abc.AbstractIncomingMessage) -> aio_pika.Message:
    """A message with the body and all properties of this one."""
    return aio_pika.Message(
        message.body,
        headers=message.headers,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=message.delivery_mode,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
    )
