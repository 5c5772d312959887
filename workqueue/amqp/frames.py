"""AMQP 0-9-1 as bytes: what is read from a connection, and what is written to it.

aiormq brings a delivery, and a confirm, through three tasks that wake each other, and ends the connection over a
message whose properties it can't read. So deliveries, confirms and returns are taken out of the stream as they arrive.
All else (the handshake, declaring, consuming, heartbeats, closing) is left to aiormq; of what the broker says there of
its own accord, that it closes or blocks, a note is taken. Frames and methods are those of sections 2.3.5 and 4.2 of
https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf.
"""

import asyncio
import struct
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

from pamqp import frame
from pamqp.commands import Basic
from pamqp.heartbeat import Heartbeat

from workqueue.amqp.properties import read_properties
from workqueue.delivery import Properties

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
RETURN, DELIVER, ACK, REJECT, NACK = (struct.pack(">HH", 60, method) for method in (50, 60, 80, 90, 120))
CONNECTION_CLOSE, BLOCKED, UNBLOCKED = (struct.pack(">HH", 10, method) for method in (50, 60, 61))
CHANNEL_CLOSE = struct.pack(">HH", 20, 40)
START_BYTES = 7  # of a frame: its type, its channel, its size; after the content comes one more
END = 0xCE
START = struct.Struct(">BHI")
SETTLE_FRAME = struct.Struct(">BHI4sQBB")
HEARTBEAT_FRAME = frame.marshal(Heartbeat(), 0)
ALIVE_S = 1.0
FIRST_BYTES = 32  # enough to tell TLS, HTTP and other versions of AMQP from each other


class Closed(NamedTuple):
    """What the broker said when it closed the channel or the connection."""

    code: int
    text: str

    @property
    def refusal(self) -> bool:
        """Whether the same request would be refused again. Not so 320 (an operator, or a node that stops), 504 (the
        channel ended before it came), 506 (out of resources) and 541 (an internal error), which pass."""
        return 403 <= self.code <= 406 or (500 <= self.code < 600 and self.code not in (504, 506, 541))


@dataclass(slots=True)
class Arrival:
    """A message that was delivered, or one that is returned (it has the tag 0).

    `properties` is None if they can't be read. Of a body larger than is held, `oversized_bytes` is all there is.
    """

    tag: int
    redelivered: bool
    properties: Properties | None = None
    size: int = 0
    body: bytes = b""
    oversized_bytes: int | None = None


class Receiver(Protocol):
    """What gets that part of a channel's stream which aiormq does not. Of a body, `most_bytes` are held."""

    most_bytes: int

    def deliver(self, arrived: Arrival) -> object: ...
    def returned(self, arrived: Arrival) -> object: ...
    def confirmed(self, tag: int, *, multiple: bool, stored: bool) -> object: ...
    def closed(self, why: Closed) -> object: ...


class Content:
    """What arrives on one channel for its receiver, frame by frame: a method, a header, and the body in pieces. Frames
    of other channels may come in between."""

    __slots__ = ("_arriving", "_got_bytes", "_parts", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._arriving: Arrival | None = None
        self._parts: list[bytes] = []
        self._got_bytes = 0

    def take(self, kind: int, content: bytes) -> bool:
        """Whether it belonged to the receiver."""
        if kind == METHOD:
            method = content[:4]
            if method == DELIVER:
                tag_at = 5 + content[4]  # after the consumer tag, which is a short string
                tag = int.from_bytes(content[tag_at : tag_at + 8], "big")
                self._arriving = Arrival(tag, bool(content[tag_at + 8] & 1))
            elif method in (ACK, NACK):
                tag, bits = int.from_bytes(content[4:12], "big"), content[12]
                self.receiver.confirmed(tag, multiple=bool(bits & 1), stored=method == ACK)
            elif method == RETURN:
                self._arriving = Arrival(0, redelivered=False)
            else:
                if method == CHANNEL_CLOSE:
                    self.receiver.closed(said(content))
                return False
            return True
        if self._arriving is None or kind == HEARTBEAT:
            return False
        if kind == HEADER:
            size = self._arriving.size = int.from_bytes(content[4:12], "big")
            self._arriving.properties = read_properties(content)
            self._arriving.oversized_bytes = size if size > self.receiver.most_bytes else None
        else:
            self._got_bytes += len(content)
            if self._arriving.oversized_bytes is None:
                self._parts.append(content)
        if self._got_bytes >= self._arriving.size:
            arrived, self._arriving = self._arriving, None
            arrived.body, self._parts, self._got_bytes = b"".join(self._parts), [], 0
            (self.receiver.deliver if arrived.tag else self.receiver.returned)(arrived)
        return True


class Tap(asyncio.StreamReader):
    """Read side of a connection. Deliveries, confirms and returns of a channel go to what is attached to its number;
    all other frames to aiormq.

    `heard` is set with everything that arrives, for a watch to reset. `blocked` is the broker's reason for as long as
    it reads nothing that is published here, `closed` its last word. `first` is how the peer began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.first = False, b""
        self.blocked: str | None = None
        self.closed: Closed | None = None
        self._contents: dict[int, Content] = {}
        self._rest = b""
        self._time_s = asyncio.get_running_loop().time
        self._shown_s = 0.0

    def attach(self, receiver: Receiver, number: int) -> None:
        self._contents[number] = Content(receiver)

    def detach(self, receiver: Receiver, number: int) -> None:
        """Its channel has ended. The number may be another's by now."""
        if number in self._contents and self._contents[number].receiver is receiver:
            del self._contents[number]

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # it is what a transport gives
        self.heard = True
        if len(self.first) < FIRST_BYTES:
            self.first += data[: FIRST_BYTES - len(self.first)]
        data = self._rest + data if self._rest else bytes(data)
        at = kept = 0  # where the next frame begins; up to where all is handed over
        while len(data) - at > START_BYTES:
            kind, number, size = START.unpack_from(data, at)
            start = at + START_BYTES
            end = start + size
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                end = len(data) - 1  # not a broker: aiormq passes it on, `first` has it
            if end >= len(data):
                break
            contents = self._contents.get(number)
            if contents is not None:
                taken = data[end] == END and contents.take(kind, data[start:end])
            else:
                taken = number == 0 and kind == METHOD and self._note(data[start:end])
            if taken:
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

    def _note(self, content: bytes) -> bool:
        """Note what the broker says of the connection itself. It goes to aiormq all the same."""
        method = content[:4]
        if method == BLOCKED:
            self.blocked = content[5 : 5 + content[4]].decode(errors="replace")
        elif method == UNBLOCKED:
            self.blocked = None
        elif method == CONNECTION_CLOSE:
            self.closed = said(content)
            for each in list(self._contents.values()):
                each.receiver.closed(self.closed)
        return False

    def _show(self) -> None:
        """Let aiormq see now and then that something arrives, or it takes a busy connection for a dead one."""
        now_s = self._time_s()
        if now_s - self._shown_s > ALIVE_S:
            self._shown_s = now_s
            super().feed_data(HEARTBEAT_FRAME)


def said(content: bytes) -> Closed:
    """Of channel.close or connection.close: a code, and a short string."""
    return Closed(int.from_bytes(content[4:6], "big"), content[7 : 7 + content[6]].decode(errors="replace"))


def frame_of(kind: int, channel: int, content: bytes) -> bytes:
    return b"".join((START.pack(kind, channel, len(content)), content, b"\xce"))


@cache
def publish_frame(queue: str, mandatory: bool, channel: int) -> bytes:
    return frame.marshal(Basic.Publish(exchange="", routing_key=queue, mandatory=mandatory), channel)
