"""A connection to a broker in memory: what lies above the channel is the runtime's own, publisher, consumer and all."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from aiormq import Channel
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from workqueue.amqp.connection import Link
from workqueue.amqp.frames import START_BYTES, Arrival, read_properties
from workqueue.amqp.handshake import CLOSED, Socket
from workqueue.amqp.lane import FRAME_BYTES, TOKEN_BYTES, HeaderTooLarge, Lane, Unroutable
from workqueue.amqp.marker import Marker
from workqueue.amqp.topology import Topology
from workqueue.contract import Queue
from workqueue.delivery import Way
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings
from workqueue.testing.memory.broker import Broker, Message, Taker


class MemoryLink(Link):
    """In the place of each public method of `Link`. May be used from another loop than the broker's, to publish."""

    def __init__(
        self, broker: Broker, settings: Settings, name: str, topology: Topology, marker: Marker | None, *, first: int
    ) -> None:
        self._broker, self._queues = broker, topology.queues
        self._open_lane: MemoryLane | None = None

    async def open(self) -> Lane:
        for queue in self._queues:
            self._broker.declare(queue)
        return await self.lane()

    async def lane(self) -> Lane:
        if self._broker.is_closed:
            raise BrokerUnreachable("the one in memory", "its test is over", "open another one")
        if self._open_lane is None or not self._open_lane.is_open:
            self._open_lane = MemoryLane(self._broker)
        return self._open_lane

    async def restore(self, queue: Queue) -> None:
        self._broker.declare(queue)

    async def close(self) -> None:
        if self._open_lane is not None:
            self._open_lane.abort(CLOSED)


class MemoryLane(Lane):
    """In the place of each public method of `Lane` that publishers and consumers call; and of its channel's."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._tap = broker, SimpleNamespace(most_bytes=0)
        self._prefetch, self._taker = 0, cast("Taker | None", None)
        self.deliver: Callable[[Arrival], object] = lambda arrived: None
        self.on_end, self.cause = [], None
        self.on_consumer_cancel_callbacks: set[object] = set()
        self.channel = cast(Channel, self)
        self.socket = cast(Socket, SimpleNamespace(tap=self._tap))

    @property
    def is_open(self) -> bool:
        return self.cause is None

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        """The properties go through AMQP's bytes, so that they arrive as they do from a broker."""
        header = frame.marshal(ContentHeader(0, len(body), properties), 1)
        if len(header) > FRAME_BYTES:
            raise HeaderTooLarge(FRAME_BYTES - TOKEN_BYTES)
        message = Message(bytes(body), read_properties(header[START_BYTES:-1]))
        publishing = asyncio.run_coroutine_threadsafe(self._broker.publish(queue, message), self._broker.loop)
        if not await asyncio.wrap_future(publishing) and mandatory:
            raise Unroutable

    def ack(self, tag: int) -> None:
        self._settle(tag, "ack")

    def requeue(self, tag: int) -> None:
        self._settle(tag, "requeue")

    def reject(self, tag: int) -> None:
        self._settle(tag, "reject")

    def abort(self, cause: str) -> None:
        if self.is_open:
            self.cause = cause
            if self._taker is not None:
                self._broker.leave(self._taker)
            for tell in self.on_end:
                tell()

    async def basic_qos(self, *, prefetch_count: int) -> None:
        self._prefetch = prefetch_count

    async def basic_consume(self, queue: str, _: object, *, consumer_tag: str) -> None:
        def deliver(tag: int, message: Message) -> None:
            self.deliver(message.delivered(tag, self._tap.most_bytes))

        self._taker = Taker(queue, self._prefetch, deliver)
        self._broker.consume(self._taker)

    async def basic_cancel(self, _: str) -> None:
        if self._taker is not None:
            self._broker.cancel(self._taker)

    async def queue_declare(self, queue: str, *, passive: bool) -> Any:
        return SimpleNamespace(message_count=len(self._broker.messages(queue)), consumer_count=1)

    def _settle(self, tag: int, way: Way) -> None:
        if not self.is_open or self._taker is None:
            raise ConnectionError(self.cause)
        self._broker.settle(self._taker, tag, way)
