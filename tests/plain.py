"""Lanes on aio-pika's own channels, by its public methods alone: what the runtime's is compared with.

`tests/test_lane.py` holds both to the same promises, and `bench` measures the one beside the other.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq import abc, exceptions
from pamqp.commands import Basic
from yarl import URL

from workqueue.amqp.frames import Arrival, Closed
from workqueue.amqp.handshake import CLOSED, GONE, GOODBYE_S, lost, words
from workqueue.amqp.lane import Connection, Declaration, Deliver, Depth, Nacked, Refused, Unroutable
from workqueue.delivery import Properties, Way
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings, hide_password

CONNECT_S = 10.0
CODES = {
    exceptions.ChannelAccessRefused: 403,
    exceptions.ChannelNotFoundEntity: 404,
    exceptions.ChannelLockedResource: 405,
    exceptions.ChannelPreconditionFailed: 406,
}


async def open_plain(uri: str, settings: Settings, name: str, declares: Iterable[Declaration] = ()) -> Connection:
    """In place of `open_connection`."""
    url = URL(uri).extend_query(heartbeat=max(1, round(settings.heartbeat_s)))
    try:
        connection = await aio_pika.connect(url, timeout=CONNECT_S, client_properties={"connection_name": name})
        opened = PlainConnection(connection, await _lane_on(connection))
        for declare in declares:
            await declare(opened.first.connection)
    except GONE as error:
        raise BrokerUnreachable(hide_password(uri), words(error)) from error
    return opened


async def _lane_on(connection: AbstractConnection) -> "PlainLane":
    with lost():
        return PlainLane(connection, await connection.channel(on_return_raises=True))


class PlainConnection:
    """See `Connection`."""

    def __init__(self, connection: AbstractConnection, first: "PlainLane") -> None:
        self._connection, self.first = connection, first

    async def another(self) -> "PlainLane":
        return await _lane_on(self._connection)

    async def close(self) -> None:
        await self.first.done()
        with suppress(*GONE):
            async with asyncio.timeout(GOODBYE_S):
                await self._connection.close(ConnectionError(CLOSED))


class PlainLane:
    """See `Lane`. Not as there: message ids must differ, and a message without one gets one; headers that exceed a
    frame, or can't be read, end the connection; a body of any size is held; no priority reads as 0; a broker that
    falls silent is noticed by aio-pika, after three heartbeats.
    """

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.cause: str | None = None
        self._connection, self._channel = connection, channel
        self._deliver: Deliver = lambda arrived: None
        self._queue = ""
        self._held: dict[int, AbstractIncomingMessage] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._in_flight, self._alone = 0, False
        channel.close_callbacks.add(self._lost)

    @property
    def is_open(self) -> bool:
        return self.cause is None and not self._channel.is_closed

    @property
    def connection(self) -> abc.AbstractConnection:
        assert self._connection.transport is not None
        return self._connection.transport.connection

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        self._check()
        self._in_flight += 1
        try:
            message = Ready(body, properties)
            await self._channel.default_exchange.publish(message, queue, mandatory=mandatory)
        except PublishError as error:
            raise Unroutable from error
        except DeliveryError as error:
            raise Nacked from error
        except exceptions.ChannelClosed as error:
            self._alone = self._alone or (self.cause is None and self._in_flight == 1)
            self._end(words(error))
            raise Refused(Closed(CODES.get(type(error), 0), words(error)), self._alone) from error
        except GONE as error:
            raise ConnectionError(self.cause or words(error)) from error
        finally:
            self._in_flight -= 1

    def settle(self, tag: int, way: Way) -> None:
        self._check()
        message = self._held.pop(tag)
        match way:
            case "ack":
                self._do(message.ack())
            case "requeue":
                self._do(message.nack(requeue=True))
            case "reject":
                self._do(message.reject(requeue=False))

    async def consume(self, queue: str, tag: str, prefetch: int, deliver: Deliver, most_bytes: int) -> None:
        self._queue, self._deliver = queue, deliver
        underlay = await self._channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(self._cancelled)
        with lost():
            await self._channel.set_qos(prefetch_count=prefetch)
            await (await self._channel.get_queue(queue, ensure=False)).consume(self._take, consumer_tag=tag)

    async def cancel(self, tag: str) -> None:
        with lost():
            await (await self._channel.get_queue(self._queue, ensure=False)).cancel(tag)

    async def look(self, queue: str) -> Depth:
        with lost():
            told = (await self._channel.declare_queue(queue, passive=True)).declaration_result
        return Depth(told.message_count or 0, told.consumer_count or 0)

    def abort(self, cause: str) -> None:
        self._end(cause)
        self._do(self._connection.close(ConnectionError(cause)))

    async def done(self) -> None:
        """Return once all that was settled is written."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.done()
        with suppress(*GONE):
            async with asyncio.timeout(GOODBYE_S):
                await self._channel.close()
        self._end(CLOSED)

    def _check(self) -> None:
        if not self.is_open:
            raise ConnectionError(self.cause or CLOSED)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        tag = message.delivery_tag or 0
        self._held[tag] = message
        properties = Properties(
            message.content_type, message.content_encoding, message.headers, message.priority, message.correlation_id,
            message.reply_to, message.message_id, message.type,
        )  # fmt: skip
        self._deliver(Arrival(tag, bool(message.redelivered), properties, len(message.body), message.body))

    def _cancelled(self, _: object) -> None:
        self._deliver(None)

    def _lost(self, _: object, error: BaseException | None) -> None:
        self._end(words(error) if error is not None else CLOSED)

    def _end(self, cause: str) -> None:
        if self.cause is None:
            self.cause = cause
            self._deliver(None)

    def _do(self, what: Any) -> None:
        """For what can't be waited for here; where it fails, the connection has ended."""
        task = asyncio.ensure_future(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


class Ready(aio_pika.Message):
    """A message with just these properties, where aio-pika would add a priority."""

    def __init__(self, body: bytes, properties: Basic.Properties) -> None:
        super().__init__(body)
        self._ready = properties

    @property
    def properties(self) -> Basic.Properties:
        return self._ready
