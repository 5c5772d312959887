"""The lane that writes and reads frames itself, for speed: `bench` has a channel of aio-pika beside it.

Acks are written to the socket at once, and so is a publish with none before it in flight; with others, all of one turn
of the event loop are written together, since a write costs as much as the rest of a publish. A publish ends with its
confirm. What is declared, consumed or closed goes through aiormq's channel of the same number.

Confirms are RabbitMQ's (https://www.rabbitmq.com/docs/confirms). A message that no queue takes comes back before it is
confirmed, with its properties and without its number. It is known by its message id; where that is missing, or in
flight already, by a token in a header of its own.
"""

import asyncio
import secrets
from itertools import takewhile
from typing import Any

import aiormq
from aiormq import Channel
from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from workqueue.amqp.frames import (
    ACK,
    BODY,
    END,
    HEADER,
    METHOD,
    NACK,
    REJECT,
    SETTLE_FRAME,
    START_BYTES,
    Arrival,
    Closed,
    frame_of,
    publish_frame,
)
from workqueue.amqp.handshake import CLOSED, GONE, GOODBYE_S, Socket, disconnect, lost, words
from workqueue.amqp.lane import Deliver, Depth, HeaderTooLarge, Nacked, NoChannelLeft, Refused, Unroutable
from workqueue.amqp.properties import write_properties
from workqueue.delivery import Way

TOKEN = "x-publish"
TOKEN_BYTES = 64  # with its name
FRAME_BYTES = 131_072  # RabbitMQ's own default, where the broker sets no limit
MOST_CHANNELS = 65_535  # of a connection, by the protocol
SPARE_CHANNELS = 2  # to declare, and to hold a marker, on channels of the library's own choice
LEAST_CHANNELS = SPARE_CHANNELS + 3  # a queue's marker takes one of those for lanes, then the first, and a consumer's
TOGETHER_BYTES = 65_536  # the most to be held back for one write: with more, it is not the call that takes the time

SETTLING: dict[Way, tuple[bytes, int]] = {"ack": (ACK, 0), "requeue": (NACK, 2), "reject": (REJECT, 0)}
"""Methods and their bits: a nack with `requeue`, a reject without."""


class DirectLane:
    """See `Lane`. `deliver` gets each message that is delivered.

    `answered` is set with every confirm, for a watch to reset.
    """

    most_bytes = 1 << 62

    def __init__(self, socket: Socket, channel: Channel) -> None:
        self.channel, self.socket, self._loop = channel, socket, asyncio.get_running_loop()
        assert socket.transport is not None
        self._transport = socket.transport
        self.deliver: Deliver = _nobody
        self.answered = False
        self._frame_bytes = channel.connection.connection_tune.frame_max
        self._body_bytes = (self._frame_bytes or FRAME_BYTES) - START_BYTES - 1
        self._published = 0
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._waiting: dict[int, tuple[str | None, asyncio.Future[None]]] = {}
        self._known: dict[str, int] = {}  # what is in flight, by its message id or token
        self._token = secrets.token_hex(6)  # a copy may carry the token of an older publish
        self._returned: set[int] = set()
        self.cause: str | None = None
        channel.closing.add_done_callback(self._lost)
        socket.tap.attach(self, channel.number)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def is_open(self) -> bool:
        # Not by the channel's `closing`: each look at that makes one more future, which lives as long as the channel.
        return not (self.channel.is_closed or self._transport.is_closing() or self.cause is not None)

    @property
    def buffered_bytes(self) -> int:
        """What the broker has not taken yet of what was to be written."""
        return self._transport.get_write_buffer_size() + self._unwritten_bytes

    @property
    def connection(self) -> AbstractConnection:
        return self.channel.connection

    def settle(self, tag: int, way: Way) -> None:
        method, bits = SETTLING[way]
        self._check()
        self._transport.write(SETTLE_FRAME.pack(METHOD, self.channel.number, 13, method, tag, bits, END))

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        number, key = self.channel.number, properties.message_id if mandatory else None
        if mandatory and (key is None or key in self._known):
            key = f"{self._token}-{self._published + 1}"
            properties = with_token(properties, key)
        header = frame_of(HEADER, number, write_properties(properties, len(body)))
        if 0 < self._frame_bytes < len(header):
            raise HeaderTooLarge(self._frame_bytes - TOKEN_BYTES)
        bodies = [
            frame_of(BODY, number, body[at : at + self._body_bytes]) for at in range(0, len(body), self._body_bytes)
        ]
        self._check()
        self._write(b"".join((publish_frame(queue, mandatory, number), header, *bodies)))
        self._published += 1
        confirmed: asyncio.Future[None] = self._loop.create_future()
        self._waiting[self._published] = key, confirmed
        if key is not None:
            self._known[key] = self._published
        await confirmed

    async def consume(self, queue: str, tag: str, prefetch: int, deliver: Deliver, most_bytes: int) -> None:
        self.deliver, self.most_bytes = deliver, most_bytes
        self.channel.on_consumer_cancel_callbacks.add(self._cancelled)
        with lost():
            await self.channel.basic_qos(prefetch_count=prefetch)
            await self.channel.basic_consume(queue, _astray, consumer_tag=tag)

    async def cancel(self, tag: str) -> None:
        with lost():
            await self.channel.basic_cancel(tag)

    async def look(self, queue: str) -> Depth:
        with lost():
            told = await self.channel.queue_declare(queue, passive=True)
        return Depth(told.message_count or 0, told.consumer_count or 0)

    def confirmed(self, tag: int, *, multiple: bool, stored: bool) -> None:
        self.answered = True
        for each in list(takewhile(lambda one: one <= tag, self._waiting)) if multiple else [tag]:
            key, waiting = self._waiting.pop(each, (None, None))
            if waiting is None:
                continue
            if key is not None:
                del self._known[key]
            returned = each in self._returned
            self._returned.discard(each)
            if waiting.done():  # nobody waits any more
                continue
            if returned:
                waiting.set_exception(Unroutable)
            elif stored:
                waiting.set_result(None)
            else:
                waiting.set_exception(Nacked)

    def returned(self, arrived: Arrival) -> None:
        """An unroutable message comes back, before it is confirmed."""
        properties = arrived.properties
        tag = None
        if properties is not None:
            token = properties.headers.get(TOKEN)
            ours = isinstance(token, str) and token.startswith(self._token)
            tag = self._known.get(str(token if ours else properties.message_id))
        if tag is None:  # its confirm would be taken for that of a message that was stored
            return self.abort("a message came back that is not known")
        self._returned.add(tag)

    def closed(self, why: Closed) -> None:
        """The broker closed the channel, or the connection."""
        refused = why.refusal and Refused(why, alone=len(self._waiting) == 1)
        self._end(why.text, refused or ConnectionError(why.text))

    def abort(self, cause: str) -> None:
        self._end(cause, ConnectionError(cause))
        self.socket.abort(cause)

    async def close(self) -> None:
        if self.is_open:
            try:
                with lost():
                    async with asyncio.timeout(GOODBYE_S):
                        await self.channel.close(ConnectionError(CLOSED))
            except GONE as error:
                self.abort(f"it does not close a channel: {words(error)}")
        self._end(CLOSED, ConnectionError(CLOSED))

    def _cancelled(self, _: object) -> None:
        self.deliver(None)

    def _lost(self, closing: "asyncio.Future[None]") -> None:
        error = None if closing.cancelled() else closing.exception()
        cause = self.socket.cause or " ".join(str(error or "").split()) or "the connection was lost"
        self._end(cause, ConnectionError(cause))
        self.socket.tap.detach(self, self.channel.number)

    def _end(self, cause: str, error: Exception) -> None:
        self.cause = self.cause or cause
        waiting, self._waiting = self._waiting, {}
        self._known.clear()
        for _, confirmed in waiting.values():
            if not confirmed.done():
                confirmed.set_exception(error)
        deliver, self.deliver = self.deliver, _nobody
        deliver(None)

    def _check(self) -> None:
        if not self.is_open:
            raise ConnectionError(self.cause or "the channel is closed")

    def _write(self, message: bytes) -> None:
        self._unwritten.append(message)
        self._unwritten_bytes += len(message)
        if not self._waiting or self._unwritten_bytes > TOGETHER_BYTES:
            self._write_all()
        elif len(self._unwritten) == 1:
            self._loop.call_soon(self._write_all)

    def _write_all(self) -> None:
        messages, self._unwritten, self._unwritten_bytes = self._unwritten, [], 0
        if messages and self.is_open:  # else who waits for a confirm is told
            self._transport.writelines(messages)


class DirectConnection:
    """See `Connection`."""

    def __init__(self, connection: aiormq.Connection, socket: Socket, first: DirectLane) -> None:
        self._connection, self._socket, self.first = connection, socket, first

    @classmethod
    async def on(cls, connection: aiormq.Connection, socket: Socket) -> "DirectConnection":
        """With its first channel. Raises what a lost connection raises."""
        return cls(connection, socket, await _lane_on(connection, socket))

    async def another(self) -> DirectLane:
        return await _lane_on(self._connection, self._socket)

    async def close(self) -> None:
        await disconnect(self._connection, self._socket, goodbye=not self._connection.is_closed)
        self.first.abort(CLOSED)


def allowed_channels(connection: aiormq.Connection) -> int:
    """How many the broker allows on it, which is its `channel_max`."""
    return connection.connection_tune.channel_max or MOST_CHANNELS


async def _lane_on(connection: aiormq.Connection, socket: Socket) -> DirectLane:
    """On the lowest number that is free: the library takes the one after the highest, whatever the broker's limit."""
    most = allowed_channels(connection) - SPARE_CHANNELS
    number = next((one for one in range(1, most + 1) if one not in connection.channels), None)
    if number is None:
        raise NoChannelLeft
    with lost():
        channel = await connection.channel(number)
    assert isinstance(channel, Channel)  # the abstract class lacks `wait`
    return DirectLane(socket, channel)


def _nobody(arrived: Arrival | None) -> None:
    pass


async def _astray(message: DeliveredMessage) -> None:
    raise AssertionError(f"a delivery that did not go by the lane: {message.delivery}")


def with_token(properties: Basic.Properties, token: str) -> Basic.Properties:
    values: dict[str, Any] = dict(iter(properties))
    return Basic.Properties(**{**values, "headers": {**(values["headers"] or {}), TOKEN: token}})
