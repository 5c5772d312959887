"""A short way for deliveries: off the socket and to their consumer, before the client library is asked.

aiormq brings a delivery through three tasks, each woken by the one before, and ends the connection over one whose
properties it can't read. Here its frames are taken out of the stream as they arrive, and handed over in the same call.
Everything else on the connection goes to aiormq as it came. The frames are those of AMQP 0-9-1, sections 2.3.5 and 4.2:
https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aio_pika
from aiormq import TransportFactory
from aiormq.connection import SSLContextProvider
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
DELIVER = b"\x00\x3c\x00\x3c"  # basic.deliver: class 60, method 60
START_BYTES = 7  # of a frame: its type, its channel, its size; after the content comes one more
END = 0xCE
HEARTBEAT_FRAME = frame.marshal(Heartbeat(), 0)
ALIVE_S = 1.0


@dataclass(slots=True)
class Arrival:
    """A delivery. `properties` are None if they can't be read."""

    tag: int
    redelivered: bool
    properties: Basic.Properties | None = None
    size: int = 0
    body: bytes = b""


class Tap(asyncio.StreamReader):
    """What a connection receives, for aiormq to read; once there is a `sink`, deliveries go to that instead.

    For a connection with one channel: on that no delivery begins before the last one is complete.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sink: Callable[[Arrival], None] | None = None
        self._rest = b""
        self._arriving: Arrival | None = None
        self._parts: list[bytes] = []
        self._shown_s = 0.0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # it is what a transport gives
        data = self._rest + data if self._rest else bytes(data)
        at = kept = 0  # where the next frame begins; up to where all is handed over
        while len(data) - at > START_BYTES:
            kind, start = data[at], at + START_BYTES
            end = start + int.from_bytes(data[at + 3 : start], "big")
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                end = len(data) - 1  # not a broker: aiormq has the words for it
            if end >= len(data):
                break
            if self.sink is not None and data[end] == END and self._take(kind, data[start:end]):
                if kept < at:
                    super().feed_data(data[kept:at])
                kept = end + 1
            at = end + 1
        if kept < at:
            super().feed_data(data[kept:at])
        self._rest = data[at:]

    def feed_eof(self) -> None:
        if self._rest:
            super().feed_data(self._rest)
        super().feed_eof()

    def _take(self, kind: int, content: bytes) -> bool:
        """Whether it was part of a delivery."""
        if kind == METHOD and content[:4] == DELIVER:
            tag_at = 5 + content[4]  # after the consumer tag, which is a short string
            tag = int.from_bytes(content[tag_at : tag_at + 8], "big")
            self._arriving = Arrival(tag, bool(content[tag_at + 8] & 1))
            return True
        if self._arriving is None:
            return False
        if kind == HEADER:
            self._arriving.size = int.from_bytes(content[4:12], "big")
            self._arriving.properties = _properties(content)
        elif kind == BODY:
            self._parts.append(content)
        else:
            return False  # a heartbeat may come in between
        if sum(map(len, self._parts)) >= self._arriving.size:
            self._hand_over(self._arriving)
        return True

    def _hand_over(self, arrived: Arrival) -> None:
        arrived.body = b"".join(self._parts)
        self._arriving, self._parts = None, []
        now_s = asyncio.get_running_loop().time()
        if now_s - self._shown_s > ALIVE_S:  # or aiormq takes a busy connection for a dead one
            self._shown_s = now_s
            super().feed_data(HEARTBEAT_FRAME)
        assert self.sink is not None
        self.sink(arrived)


def _properties(content: bytes) -> Basic.Properties | None:
    header = ContentHeader()
    try:
        header.unmarshal(content)
    except Exception:  # noqa: BLE001  # whatever a foreign client has sent and pamqp can't read
        return None
    return header.properties


class Socket(TransportFactory):
    """Opens the socket of one connection; `tap` and `writer` are its two ends."""

    tap: Tap
    writer: asyncio.StreamWriter

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        contexts: SSLContextProvider = kwargs.pop("ssl_context_provider")
        ssl = await contexts.get_context() if url.scheme == "amqps" else None
        loop, self.tap = asyncio.get_running_loop(), Tap()
        protocol = asyncio.StreamReaderProtocol(self.tap)
        transport, _ = await loop.create_connection(
            lambda: protocol, str(url.host), int(url.port or 0), ssl=ssl, **kwargs
        )
        self.writer = asyncio.StreamWriter(transport, protocol, self.tap, loop)
        return self.tap, self.writer


async def connect(url: URL, name: str, timeout_s: float) -> tuple[aio_pika.Connection, Socket]:
    """A connection of this name, for one channel, and its socket."""
    socket = Socket()
    connection = aio_pika.Connection(url, client_properties={"connection_name": name})
    connection.kwargs["transport_factory"] = socket
    await connection.connect(timeout=timeout_s)
    return connection, socket
