"""A channel in confirm mode. Publishes and acks are written to the socket at once, and a publish ends with its confirm.

Confirms are RabbitMQ's (https://www.rabbitmq.com/docs/confirms). A message that no queue takes comes back before it is
confirmed, with its properties and without its number. It is known by its message id; where that is missing, or in
flight already, by a token in a header of its own.
"""

import asyncio
import secrets
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from aiormq import Channel
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from workqueue.amqp.frames import (
    ACK,
    BODY,
    END,
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
from workqueue.amqp.handshake import Socket

TOKEN = "x-publish"
TOKEN_BYTES = 64  # with its name
FRAME_BYTES = 131_072  # RabbitMQ's own default, where the broker sets no limit


class Unroutable(Exception):
    """There is no such queue: the message came back."""


class Nacked(Exception):
    """The queue did not take the message: it is full, or changes its leader."""


class HeaderTooLarge(Exception):
    """Properties and headers go in one frame, and the broker ends the connection over one that exceeds the limit."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"properties and headers exceed {most_bytes} bytes")
        self.most_bytes = most_bytes


class Refused(Exception):
    """The broker closed the channel over a request that it would refuse again.

    `alone`: no other publish was in flight, so it was over this one.
    """

    def __init__(self, why: Closed, alone: bool) -> None:
        super().__init__(why.text)
        self.why, self.alone = why, alone


class Lane:
    """The channel of one connection. `deliver` gets each message that is delivered.

    `answered` is set with every confirm, for a watch to reset. `cause` is why the channel has ended, in words; what is
    in `on_end` is called then.
    """

    def __init__(self, socket: Socket, channel: Channel) -> None:
        self.channel, self.socket, self._loop = channel, socket, asyncio.get_running_loop()
        assert socket.transport is not None
        self._transport = socket.transport
        self.deliver: Callable[[Arrival], object] = lambda arrived: None
        self.answered = False
        self._frame_bytes = channel.connection.connection_tune.frame_max
        self._body_bytes = (self._frame_bytes or FRAME_BYTES) - START_BYTES - 1
        self._published = 0
        self._waiting: dict[int, tuple[str | None, asyncio.Future[None]]] = {}
        self._known: dict[str, int] = {}  # what is in flight, by its message id or token
        self._token = secrets.token_hex(6)  # a copy may carry the token of an older publish
        self._returned: set[int] = set()
        self.cause: str | None = None
        self.on_end: list[Callable[[], object]] = []
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
        """What the broker has not taken yet of what was written."""
        return self._transport.get_write_buffer_size()

    def ack(self, tag: int) -> None:
        """Raises ConnectionError."""
        self._write(SETTLE_FRAME.pack(METHOD, self.channel.number, 13, ACK, tag, 0, END))

    def requeue(self, tag: int) -> None:
        """A nack that lets the broker deliver the message again. Raises ConnectionError."""
        self._write(SETTLE_FRAME.pack(METHOD, self.channel.number, 13, NACK, tag, 2, END))

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter the message, by the arguments of its queue. Raises ConnectionError."""
        self._write(SETTLE_FRAME.pack(METHOD, self.channel.number, 13, REJECT, tag, 0, END))

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        """Publish to this queue, and return once the broker has confirmed it.

        Raises Unroutable, Nacked, Refused, HeaderTooLarge, ConnectionError when the channel was lost first, and what
        pamqp raises for properties that it can't encode.
        """
        number, key = self.channel.number, properties.message_id if mandatory else None
        if mandatory and (key is None or key in self._known):
            key = f"{self._token}-{self._published + 1}"
            properties = with_token(properties, key)
        header = frame.marshal(ContentHeader(0, len(body), properties), number)
        if 0 < self._frame_bytes < len(header):
            raise HeaderTooLarge(self._frame_bytes - TOKEN_BYTES)
        bodies = [
            frame_of(BODY, number, body[at : at + self._body_bytes]) for at in range(0, len(body), self._body_bytes)
        ]
        self._write(b"".join((publish_frame(queue, mandatory, number), header, *bodies)))
        self._published += 1
        confirmed: asyncio.Future[None] = self._loop.create_future()
        self._waiting[self._published] = key, confirmed
        if key is not None:
            self._known[key] = self._published
        await confirmed

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
        """End the connection at once, without the handshake that a dead peer never answers."""
        self._end(cause, ConnectionError(cause))
        self._transport.abort()

    def _lost(self, closing: "asyncio.Future[None]") -> None:
        error = None if closing.cancelled() else closing.exception()
        cause = " ".join(str(error or "").split()) or "the connection was lost"
        self._end(cause, ConnectionError(cause))

    def _end(self, cause: str, error: Exception) -> None:
        self.cause = self.cause or cause
        waiting, self._waiting = self._waiting, {}
        self._known.clear()
        for _, confirmed in waiting.values():
            if not confirmed.done():
                confirmed.set_exception(error)
        ended, self.on_end = self.on_end, []
        for tell in ended:
            tell()

    def _write(self, data: bytes) -> None:
        if not self.is_open:
            raise ConnectionError(self.cause or "the channel is closed")
        self._transport.write(data)


def with_token(properties: Basic.Properties, token: str) -> Basic.Properties:
    values: dict[str, Any] = dict(iter(properties))
    return Basic.Properties(**{**values, "headers": {**(values["headers"] or {}), TOKEN: token}})
