"""A broker in memory: queues, and what RabbitMQ does with their messages.

| what happens                                     | what becomes of the message                                    |
|--------------------------------------------------|----------------------------------------------------------------|
| it is published                                  | it goes to the queue of that name; without one, it comes back  |
| a consumer of its queue has room (prefetch)      | it is delivered, the oldest first, to the consumers in turn    |
| it was acked                                     | it is forgotten                                                |
| it was requeued, or its consumer went            | it is the next one again, with its deliveries counted          |
| it was rejected, or its queue's TTL is over      | it goes to the queue of `x-dead-letter-routing-key`            |

Nothing else is done with a queue's arguments: no queue is ever full, or gives up on a message.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from workqueue.amqp.frames import Arrival
from workqueue.contract import Queue
from workqueue.delivery import NO_PROPERTIES, Properties, Way
from workqueue.errors import ContractInvalid


@dataclass(slots=True)
class Message:
    """A message in a queue. `properties` are None if they can't be read; `came_back` counts its deliveries so far."""

    body: bytes
    properties: Properties | None = NO_PROPERTIES
    came_back: int = 0

    @property
    def headers(self) -> Mapping[str, Any]:
        return {} if self.properties is None else self.properties.headers

    def delivered(self, tag: int, most_bytes: int) -> Arrival:
        """As it arrives at a process that holds no more than `most_bytes` of a body."""
        properties, size = self.properties, len(self.body)
        if self.came_back and properties is not None:
            properties = properties._replace(headers={**properties.headers, "x-delivery-count": self.came_back})
        held = size <= most_bytes
        body, oversized = (self.body, None) if held else (b"", size)
        return Arrival(tag, self.came_back > 0, properties, size, body, oversized)


@dataclass(eq=False)
class Taker:
    """A consumer, and what it has not settled yet."""

    queue: str
    prefetch: int
    deliver: Callable[[int, Message], object]
    unsettled: dict[int, Message] = field(default_factory=dict)


class Broker:
    """For one event loop; `declare` and `messages` for any thread. `idle` is set while no message is in hand, is ready
    for a consumer, or waits for its TTL.

    With `skip` no TTL is waited for: once nothing is in hand, time is skipped until the next one is over, and `skip`
    is told how many seconds that was.
    """

    def __init__(self, skip: Callable[[float], object] | None) -> None:
        self.loop, self._skip = asyncio.get_running_loop(), skip
        self.idle, self.is_closed = asyncio.Event(), False
        self.idle.set()
        self._queues: dict[str, Queue] = {}
        self._messages: dict[str, deque[Message]] = {}
        self._takers: list[Taker] = []
        self._waiting: list[tuple[float, int, str, Message]] = []  # for their TTL, the first to end in front
        self._in_hand, self._numbers, self._skipped_s = 0, count(1), 0.0
        self._timer: asyncio.Handle | None = None

    def declare(self, queue: Queue) -> None:
        """Raises ContractInvalid if it is there with other properties."""
        if self._queues.setdefault(queue.name, queue) != queue:
            raise ContractInvalid(f"queue {queue.name!r} is another one in the contract that declared it first")
        self._messages.setdefault(queue.name, deque())

    def messages(self, queue: str) -> list[Message]:
        """Those that are ready in a queue, the oldest first."""
        return list(self._messages.get(queue, ()))

    async def publish(self, queue: str, message: Message) -> bool:
        """False: there is no such queue."""
        if queue not in self._queues:
            return False
        self._put(queue, message)
        self._go_on()
        return True

    def consume(self, taker: Taker) -> None:
        self._takers.append(taker)
        self._go_on()

    def cancel(self, taker: Taker) -> None:
        """Deliver no more to this one, which may still settle what it has."""
        if taker in self._takers:
            self._takers.remove(taker)

    def leave(self, taker: Taker) -> None:
        """This one has gone: what it had is ready again."""
        self.cancel(taker)
        for tag in reversed(list(taker.unsettled)):
            self.settle(taker, tag, "requeue")

    def settle(self, taker: Taker, tag: int, way: Way) -> None:
        message = taker.unsettled.pop(tag)
        self._in_hand -= 1
        if way == "requeue":
            message.came_back += 1
            self._messages[taker.queue].appendleft(message)
        elif way == "reject":
            self._dead_letter(taker.queue, message)
        self._go_on()

    def close(self) -> None:
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _put(self, queue: str, message: Message) -> None:
        ttl_ms = self._queues[queue].arguments.get("x-message-ttl")
        if ttl_ms is None:
            self._messages[queue].append(message)
        else:
            heappush(self._waiting, (self._now_s() + ttl_ms / 1000, next(self._numbers), queue, message))

    def _dead_letter(self, queue: str, message: Message) -> None:
        target = self._queues[queue].arguments.get("x-dead-letter-routing-key")
        if target in self._queues:
            message.came_back = 0
            self._put(target, message)

    def _go_on(self) -> None:
        """Do all that is due, and see to what is due next."""
        while self._waiting and self._waiting[0][0] <= self._now_s():
            self._dead_letter(*heappop(self._waiting)[2:])
        for taker in list(self._takers):
            ready = self._messages[taker.queue]
            while ready and len(taker.unsettled) < taker.prefetch:
                tag, message = next(self._numbers), ready.popleft()
                taker.unsettled[tag] = message
                self._in_hand += 1
                self._takers.remove(taker)
                self._takers.append(taker)  # the others are next
                taker.deliver(tag, message)
        (self.idle.clear if self._in_hand or self._waiting else self.idle.set)()
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting and not self.is_closed:
            skips = self._skip is not None and not self._in_hand
            left_s = self._waiting[0][0] - self._now_s()
            self._timer = self.loop.call_soon(self._skip_wait) if skips else self.loop.call_later(left_s, self._go_on)

    def _skip_wait(self) -> None:
        left_s = self._waiting[0][0] - self._now_s()
        if left_s > 0 and self._skip is not None:
            self._skip(left_s)
            self._skipped_s += left_s
        self._go_on()

    def _now_s(self) -> float:
        return self.loop.time() + self._skipped_s
