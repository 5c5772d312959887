"""A connection to a broker in memory: what lies above it is the runtime's own, publisher, consumer and all."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from aiormq.abc import AbstractConnection
from pamqp.commands import Basic

from workqueue.amqp.direct import FRAME_BYTES, TOKEN_BYTES
from workqueue.amqp.frames import START_BYTES
from workqueue.amqp.handshake import CLOSED
from workqueue.amqp.lane import Declaration, Deliver, Depth, HeaderTooLarge, Unroutable
from workqueue.amqp.properties import read_properties, write_properties
from workqueue.contract import Queue
from workqueue.delivery import Way
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings
from workqueue.testing.memory.broker import Broker, Message, Taker


async def open_memory(
    broker: Broker, uri: str, settings: Settings, name: str, declares: Iterable[Declaration] = ()
) -> "MemoryConnection":
    """In place of `open_connection`. May be used from another loop than the broker's, to publish."""
    if broker.is_closed:
        raise BrokerUnreachable("the one in memory", "its test is over", "open another one")
    opened = MemoryConnection(broker)
    for declare in declares:
        await declare(opened.first.connection)
    return opened


class MemoryConnection:
    """See `Connection`."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._lanes = broker, list["MemoryLane"]()
        self.first = self._lane()

    async def another(self) -> "MemoryLane":
        return self._lane()

    async def close(self) -> None:
        self._abort(CLOSED)

    def _lane(self) -> "MemoryLane":
        self._lanes.append(MemoryLane(self._broker, self._abort))
        return self._lanes[-1]

    def _abort(self, cause: str) -> None:
        for lane in self._lanes:
            lane.end(cause)


class MemoryLane:
    """See `Lane`."""

    def __init__(self, broker: Broker, abort: Callable[[str], None]) -> None:
        self._broker, self.abort = broker, abort
        self._taker: Taker | None = None
        self._deliver: Deliver = lambda arrived: None
        self.cause: str | None = None
        self.connection = cast(AbstractConnection, Declaring(broker))

    @property
    def is_open(self) -> bool:
        return self.cause is None and not self._broker.is_closed

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        """The properties go through AMQP's bytes, so that they arrive as they do from a broker."""
        header = write_properties(properties, len(body))
        if len(header) + START_BYTES + 1 > FRAME_BYTES:
            raise HeaderTooLarge(FRAME_BYTES - TOKEN_BYTES)
        message = Message(bytes(body), read_properties(header))
        publishing = asyncio.run_coroutine_threadsafe(self._broker.publish(queue, message), self._broker.loop)
        if not await asyncio.wrap_future(publishing) and mandatory:
            raise Unroutable

    def settle(self, tag: int, way: Way) -> None:
        if self.cause is not None or self._taker is None:
            raise ConnectionError(self.cause)
        self._broker.settle(self._taker, tag, way)

    async def consume(self, queue: str, tag: str, prefetch: int, deliver: Deliver, most_bytes: int) -> None:
        def arrives(number: int, message: Message) -> None:
            deliver(message.delivered(number, most_bytes))

        self._deliver, self._taker = deliver, Taker(queue, prefetch, arrives)
        self._broker.consume(self._taker)

    async def cancel(self, tag: str) -> None:
        if self._taker is not None:
            self._broker.cancel(self._taker)

    async def look(self, queue: str) -> Depth:
        return Depth(len(self._broker.messages(queue)), 1)

    def end(self, cause: str) -> None:
        if self.cause is None:
            self.cause = cause
            if self._taker is not None:
                self._broker.leave(self._taker)
            self._deliver(None)

    async def close(self) -> None:
        self.end(CLOSED)


class Declaring:
    """In the place of a connection, and of a channel on it, for those who declare queues."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def channel(self, **_: object) -> "Declaring":
        return self

    async def queue_declare(
        self, name: str, *, durable: bool, arguments: Mapping[str, Any], exclusive: bool = False,
        auto_delete: bool = False,
    ) -> None:  # fmt: skip
        self._broker.declare(Queue(name, durable, exclusive, auto_delete, arguments))

    async def basic_consume(self, name: str, callback: object, *, no_ack: bool) -> None:
        """Who holds a marker gets nothing from it."""

    async def close(self) -> None:
        pass
