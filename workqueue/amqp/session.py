"""One life of a consumer, and what was delivered in it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from workqueue.amqp.connection import Link
from workqueue.amqp.frames import Arrival
from workqueue.amqp.handshake import GONE
from workqueue.amqp.lane import Lane
from workqueue.contract import Queue
from workqueue.delivery import NO_PROPERTIES, ChannelLost, Delivery, Way


class Inbox:
    """What was delivered and not taken yet; None says that no more comes. For one reader.

    A Queue and a timeout do the same, and ask for the running loop five times a task; on Python 3.11 that is a system
    call each. Here one timer is good for many waits: when it ends too early, it is set anew.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Arrival | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until_s = 0.0

    def put(self, arrived: Arrival | None) -> None:
        self._arrived.append(arrived)
        self._wake()

    async def get(self, within_s: float) -> Arrival | None:
        """Raises TimeoutError when nothing comes."""
        if not self._arrived:
            self._waiter, self._until_s = self._loop.create_future(), self._loop.time() + within_s
            if self._timer is None:
                self._timer = self._loop.call_at(self._until_s, self._end_wait)
            await self._waiter
            if not self._arrived:
                raise TimeoutError
        return self._arrived.popleft()

    def _end_wait(self) -> None:
        self._timer = None
        if self._loop.time() < self._until_s:
            self._timer = self._loop.call_at(self._until_s, self._end_wait)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass
class Session:
    """One life of a consumer, on a channel of its own: from basic.consume until the channel, or the broker's wish to
    deliver to it, ends."""

    link: Link
    lane: Lane
    inbox: Inbox = field(default_factory=Inbox)
    began: float = field(default_factory=time.monotonic)
    left: bool = False
    """Whether it is this side that ends it."""

    def settle(self, tag: int, way: Way) -> None:
        """Raises ChannelLost."""
        try:
            self.lane.settle(tag, way)
        except GONE as error:
            raise ChannelLost from error

    @property
    def cause(self) -> str:
        """Why it is over, in words."""
        return self.lane.cause or "the broker cancelled the consumer"

    def delivery(self, arrived: Arrival, queue: Queue) -> Delivery:
        properties = arrived.properties or NO_PROPERTIES
        # The broker's own only where it counts, and from the second delivery on: a message that was copied from a
        # queue to this one with all its headers, as dead letters are sent back, has brought the other queue's.
        counts = arrived.redelivered and queue.arguments.get("x-queue-type") == "quorum"
        count = properties.headers.get("x-delivery-count", 0) if counts else 0
        return Delivery(
            body=arrived.body,
            queue=queue.name,
            message_id=properties.message_id,
            content_type=properties.content_type,
            headers=properties.headers,
            readable=arrived.properties is not None,
            redelivered=arrived.redelivered,
            delivery_count=count if isinstance(count, int) else 0,
            _settle=partial(self.settle, arrived.tag),
            properties=properties,
            oversized_bytes=arrived.oversized_bytes,
        )
