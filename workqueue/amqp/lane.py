"""The short way: what happens with every task goes straight to the socket and comes straight from it.

aiormq brings a delivery, and a confirm, through three tasks that wake each other, and ends the connection over a
message whose properties it can't read. Here deliveries, confirms and returns are taken out of the stream as they
arrive, and acks and publishes are written at once. All else (the handshake, declaring, consuming, heartbeats, closing)
is aiormq's, which reads what is left. Frames and methods are those of AMQP 0-9-1, sections 2.3.5 and 4.2
(https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf), confirms RabbitMQ's (https://www.rabbitmq.com/docs/confirms).
"""

import asyncio
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

import aio_pika
from aiormq import Channel, TransportFactory
from aiormq.connection import SSLContextProvider
from pamqp import decode, frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from workqueue.children import keep_from_children

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
RETURN, DELIVER, ACK, NACK = (struct.pack(">HH", 60, method) for method in (50, 60, 80, 120))
START_BYTES = 7  # of a frame: its type, its channel, its size; after the content comes one more
END = 0xCE
START = struct.Struct(">BHI")
SETTLE_FRAME = struct.Struct(">BHI4sQBB")
HEARTBEAT_FRAME = frame.marshal(Heartbeat(), 0)
ALIVE_S = 1.0
PROPERTIES = {
    "content_type": 1 << 15, "content_encoding": 1 << 14, "headers": 1 << 13, "delivery_mode": 1 << 12,
    "priority": 1 << 11, "correlation_id": 1 << 10, "reply_to": 1 << 9, "expiration": 1 << 8, "message_id": 1 << 7,
}  # fmt: skip
"""With their flags, in the order in which they come. Those after the id do not matter here, and are not read."""


class Unroutable(Exception):
    """There is no such queue: the message came back."""


class Nacked(Exception):
    """The queue did not take the message: it is full, or changes its leader."""


class Sender(NamedTuple):
    """What the sender of a message said of it: those of its properties that matter here."""

    content_type: str | None = None
    headers: Mapping[str, Any] = {}
    message_id: str | None = None

    @classmethod
    def read(cls, content: bytes) -> "Sender | None":
        """From the content of a header frame; None if a foreign client has sent what can't be read."""
        at = 14  # after the class, the weight, the size of the body, and the flags of what follows
        flags = int.from_bytes(content[12:at], "big")
        said: dict[str, Any] = {}
        try:
            for name, flag in PROPERTIES.items():
                if not flags & flag:
                    continue
                start = at
                if name in ("delivery_mode", "priority"):
                    at += 1
                elif name == "headers":
                    at += 4 + int.from_bytes(content[at : at + 4], "big")
                    said[name] = table(content[start:at])
                else:
                    at += 1 + content[at]
                    said[name] = content[start + 1 : at].decode()
        except (ValueError, LookupError, struct.error):
            return None
        return cls(said.get("content_type"), said.get("headers", {}), said.get("message_id"))


@dataclass(slots=True)
class Arrival:
    """A message that was delivered, or one that is returned (it has the tag 0)."""

    tag: int
    redelivered: bool
    sender: Sender | None = None
    size: int = 0
    body: bytes = b""


class Tap(asyncio.StreamReader):
    """What a connection receives, for aiormq to read; once there is a `lane`, what belongs to that goes there instead.

    For a connection with one channel: on that no message begins before the last one is complete.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lane: Lane | None = None
        self._rest = b""
        self._arriving: Arrival | None = None
        self._parts: list[bytes] = []
        self._time_s = asyncio.get_running_loop().time
        self._shown_s = 0.0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # it is what a transport gives
        data = self._rest + data if self._rest else bytes(data)
        at = kept = 0  # where the next frame begins; up to where all is handed over
        while len(data) - at > START_BYTES:
            kind, _, size = START.unpack_from(data, at)
            start = at + START_BYTES
            end = start + size
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                end = len(data) - 1  # not a broker: aiormq has the words for it
            if end >= len(data):
                break
            if self.lane is not None and data[end] == END and self._take(self.lane, kind, data[start:end]):
                if kept < at:
                    super().feed_data(data[kept:at])
                kept = end + 1
            at = end + 1
        if kept < at:
            super().feed_data(data[kept:at])
        self._rest = data[at:]
        if kept:
            self._show()

    def feed_eof(self) -> None:
        if self._rest:
            super().feed_data(self._rest)
        super().feed_eof()

    def _take(self, lane: "Lane", kind: int, content: bytes) -> bool:
        """Whether it belonged to the lane."""
        if kind == METHOD:
            method = content[:4]
            if method == DELIVER:
                tag_at = 5 + content[4]  # after the consumer tag, which is a short string
                tag = int.from_bytes(content[tag_at : tag_at + 8], "big")
                self._arriving = Arrival(tag, bool(content[tag_at + 8] & 1))
            elif method in (ACK, NACK):
                tag, bits = int.from_bytes(content[4:12], "big"), content[12]
                lane.confirmed(tag, multiple=bool(bits & 1), stored=method == ACK)
            elif method == RETURN:
                self._arriving = Arrival(0, redelivered=False)
            else:
                return False
            return True
        if self._arriving is None or kind == HEARTBEAT:  # which may come in between
            return False
        if kind == HEADER:
            self._arriving.size = int.from_bytes(content[4:12], "big")
            self._arriving.sender = Sender.read(content)
        else:
            self._parts.append(content)
        if sum(map(len, self._parts)) >= self._arriving.size:
            arrived, self._arriving = self._arriving, None
            arrived.body, self._parts = b"".join(self._parts), []
            (lane.deliver if arrived.tag else lane.returned)(arrived)
        return True

    def _show(self) -> None:
        """Let aiormq see now and then that something arrives, or it takes a busy connection for a dead one."""
        now_s = self._time_s()
        if now_s - self._shown_s > ALIVE_S:
            self._shown_s = now_s
            super().feed_data(HEARTBEAT_FRAME)


class Lane:
    """The short way of one channel, which is in confirm mode. `deliver` gets each message that is delivered."""

    def __init__(self, socket: "Socket", channel: Channel) -> None:
        self.channel, self._transport, self._loop = channel, socket.transport, asyncio.get_running_loop()
        self.deliver: Callable[[Arrival], object] = lambda arrived: None
        self._body_bytes = channel.connection.connection_tune.frame_max - START_BYTES - 1
        self._published = 0
        self._waiting: dict[int, tuple[str | None, asyncio.Future[None]]] = {}
        self._returned: Counter[str | None] = Counter()
        channel.closing.add_done_callback(self._lost)
        socket.tap.lane = self

    def ack(self, tag: int) -> None:
        """Raises ConnectionError."""
        self._write(SETTLE_FRAME.pack(METHOD, self.channel.number, 13, ACK, tag, 0, END))

    def requeue(self, tag: int) -> None:
        """A nack that lets the broker deliver the message again. Raises ConnectionError."""
        self._write(SETTLE_FRAME.pack(METHOD, self.channel.number, 13, NACK, tag, 2, END))

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        """Publish to this queue, and return once the broker has confirmed it.

        Raises Unroutable, Nacked, ConnectionError when the channel was lost first, and what pamqp raises for properties
        that it can't encode.
        """
        number = self.channel.number
        header = frame.marshal(ContentHeader(0, len(body), properties), number)
        bodies = [
            frame_of(BODY, number, body[at : at + self._body_bytes]) for at in range(0, len(body), self._body_bytes)
        ]
        self._write(b"".join((publish_frame(queue, mandatory, number), header, *bodies)))
        self._published += 1
        confirmed: asyncio.Future[None] = self._loop.create_future()
        self._waiting[self._published] = properties.message_id, confirmed
        await confirmed

    def confirmed(self, tag: int, *, multiple: bool, stored: bool) -> None:
        for each in list(takewhile(lambda one: one <= tag, self._waiting)) if multiple else [tag]:
            message_id, waiting = self._waiting.pop(each, (None, None))
            if waiting is None:
                continue
            returned = self._returned[message_id] > 0
            if returned:
                self._returned[message_id] -= 1
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
        self._returned[arrived.sender.message_id if arrived.sender else None] += 1

    def _lost(self, _: object) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, confirmed in waiting.values():
            if not confirmed.done():
                confirmed.set_exception(ConnectionError("the channel was closed"))

    def _write(self, data: bytes) -> None:
        # Not by the channel's `closing`: each look at that makes one more future, which lives as long as the channel.
        if self.channel.is_closed or self._transport.is_closing():
            raise ConnectionError("the channel is closed")
        self._transport.write(data)


@lru_cache(maxsize=16)
def table(content: bytes) -> Mapping[str, Any]:
    """Headers. Most messages have the same ones, and to read them takes as long as to read all else."""
    return decode.field_table(content)[1]


def frame_of(kind: int, channel: int, content: bytes) -> bytes:
    return b"".join((START.pack(kind, channel, len(content)), content, b"\xce"))


@cache
def publish_frame(queue: str, mandatory: bool, channel: int) -> bytes:
    return frame.marshal(Basic.Publish(exchange="", routing_key=queue, mandatory=mandatory), channel)


class Socket(TransportFactory):
    """Opens the socket of one connection; `tap` and `transport` are its two ends."""

    tap: Tap
    transport: asyncio.Transport

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        contexts: SSLContextProvider = kwargs.pop("ssl_context_provider")
        ssl = await contexts.get_context() if url.scheme == "amqps" else None
        loop, self.tap = asyncio.get_running_loop(), Tap()
        protocol = asyncio.StreamReaderProtocol(self.tap)
        self.transport, _ = await loop.create_connection(
            lambda: protocol, str(url.host), int(url.port or 0), ssl=ssl, **kwargs
        )
        keep_from_children(self.transport.get_extra_info("socket").fileno())
        return self.tap, asyncio.StreamWriter(self.transport, protocol, self.tap, loop)


async def connect(url: URL, name: str, timeout_s: float) -> tuple[aio_pika.Connection, Socket]:
    """A connection of this name, for one channel, and its socket."""
    socket = Socket()
    connection = aio_pika.Connection(url, client_properties={"connection_name": name})
    connection.kwargs["transport_factory"] = socket
    await connection.connect(timeout=timeout_s)
    return connection, socket
