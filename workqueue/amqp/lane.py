"""What the runtime asks of a connection, and of channels in confirm mode on it. `direct` is what it runs on."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from aiormq.abc import AbstractConnection
from pamqp.commands import Basic

from workqueue.amqp.frames import Arrival, Closed
from workqueue.delivery import Way

Deliver = Callable[[Arrival | None], object]
"""Gets each message, and None once no more comes."""

Declaration = Callable[[AbstractConnection], Awaitable[None]]
"""Declares something. Raises ContractInvalid, BrokerRefused, and what a lost connection raises."""


class Depth(NamedTuple):
    """Of a queue: messages that wait in it, and consumers. Those of a quorum queue that is slow to answer read 0."""

    messages: int
    consumers: int


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


class NoChannelLeft(Exception):
    """The connection has as many channels as the broker allows."""


class Lane(Protocol):
    """A channel in confirm mode. What is awaited raises what a lost connection raises."""

    cause: str | None
    """Why it has ended, in words."""

    @property
    def is_open(self) -> bool: ...

    @property
    def connection(self) -> AbstractConnection:
        """To declare on."""

    async def publish(self, queue: str, properties: Basic.Properties, body: bytes, *, mandatory: bool) -> None:
        """Publish to this queue, and return once the broker has confirmed it.

        Raises Unroutable, Nacked, Refused, HeaderTooLarge, ConnectionError when the channel was lost first, and what
        pamqp raises for properties that it can't encode.
        """

    def settle(self, tag: int, way: Way) -> None:
        """Ack a delivery, requeue it, or have the broker dead-letter it. Raises ConnectionError."""

    async def consume(self, queue: str, tag: str, prefetch: int, deliver: Deliver, most_bytes: int) -> None:
        """Have messages of this queue delivered, at most `prefetch` that are not settled, with bodies of `most_bytes`.

        The consumer's `tag` may be used again once it is cancelled.
        """

    async def cancel(self, tag: str) -> None:
        """Return once the broker delivers no more to this consumer."""

    async def look(self, queue: str) -> Depth:
        """Ends the channel if there is no such queue."""

    def abort(self, cause: str) -> None:
        """End the connection at once, and so all its channels, without the handshake that a dead peer never answers."""

    async def close(self) -> None:
        """End the channel, in good order if it is open: what was delivered and is not settled goes back."""


class Connection(Protocol):
    """An open connection to a broker, of use for as long as its `first` channel is open."""

    @property
    def first(self) -> Lane: ...

    async def another(self) -> Lane:
        """A further channel. Raises NoChannelLeft, and what a lost connection raises."""

    async def close(self) -> None:
        """End it, in good order if it is open."""
