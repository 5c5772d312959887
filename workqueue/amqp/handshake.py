"""Opening a connection, and why a broker did not let us, in words."""

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from ipaddress import ip_address
from socket import SOCK_STREAM
from typing import Any, TypeVar

import aiormq
from aiormq import TransportFactory
from aiormq.abc import AbstractConnection
from aiormq.connection import SSLContextProvider
from aiormq.exceptions import AMQPError
from yarl import URL

from workqueue.amqp.frames import FIRST_BYTES, Closed, Tap
from workqueue.errors import BrokerRefused, BrokerUnreachable
from workqueue.process.children import keep_from_children
from workqueue.process.contexts import Within
from workqueue.settings import hide_password

R = TypeVar("R")

GONE = (AMQPError, ConnectionError, TimeoutError, OSError, RuntimeError, StopAsyncIteration)
"""What a call on a lost channel or connection raises; aiormq adds RuntimeError for one that is just closing, and
StopAsyncIteration for a peer that hangs up during the handshake."""

CLOSED = "the connection was closed"  # for what still waits on it: aiormq's default looks like a cancellation
GOODBYE_S = 2.0  # for the closing handshake: the socket is closed after it in any case


_silent = ContextVar("_silent", default=False)


def silently(opening: Coroutine[Any, Any, R]) -> Within[R]:
    """In a context of its own, which the tasks of a connection or channel inherit: they live as long as that. They say
    nothing by aiormq's loggers, and keep nothing of whoever happened to need it: a delivery, with all that led to it.
    An application's own connections are heard as before."""
    for name in ("aiormq.connection", "aiormq.channel"):
        logging.getLogger(name).addFilter(_is_heard)  # once, however often it is added
    context = Context()
    context.run(_silent.set, True)
    return Within(context, opening)


def _is_heard(record: logging.LogRecord) -> bool:
    return not _silent.get()


@contextmanager
def lost() -> Iterator[None]:
    """Makes a ConnectionError of what aiormq raises in what waits on a channel which goes without a reason: a bare
    Exception, or a CancelledError that nobody asked for. Any other exception passes. Of a call that is cancelled, and
    its channel closed for it, aiormq says nothing."""
    before = _silent.get()
    _silent.set(True)
    try:
        yield
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise ConnectionError("the channel was lost") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ConnectionError("the channel was lost") from error
    finally:
        _silent.set(before)


class Socket(TransportFactory):
    """Opens the socket of one connection; `tap` and `transport` are its two ends. `cause` is why it was aborted."""

    tap: Tap
    transport: asyncio.Transport | None = None
    cause: str | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        contexts: SSLContextProvider = kwargs.pop("ssl_context_provider")
        tls = await contexts.get_context() if url.scheme == "amqps" else None
        if tls is not None:
            kwargs.setdefault("server_hostname", str(url.host))
        loop, self.tap = asyncio.get_running_loop(), Tap()
        protocol = asyncio.StreamReaderProtocol(self.tap)
        addresses = await _addresses(str(url.host), int(url.port or 0))
        for number, (host, port) in enumerate(addresses, 1):
            try:
                self.transport, _ = await loop.create_connection(lambda: protocol, host, port, ssl=tls, **kwargs)
                break
            except OSError:
                if number == len(addresses):
                    raise
        assert self.transport is not None
        keep_from_children(self.transport.get_extra_info("socket").fileno())
        return self.tap, asyncio.StreamWriter(self.transport, protocol, self.tap, loop)

    @property
    def is_closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def abort(self, cause: str | None = None) -> None:
        self.cause = self.cause or cause
        if self.transport is not None:
            self.transport.abort()


async def _addresses(host: str, port: int) -> list[tuple[str, int]]:
    """Those of a host, by the loop's own way to look up names, which no loop's `create_connection` takes."""
    with suppress(ValueError):
        return [(str(ip_address(host)), port)]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    return [(str(address[0]), int(address[1])) for *_, address in found]


async def connect(url: URL, name: str, timeout_s: float) -> tuple[aiormq.Connection, Socket]:
    """A connection of this name, and its socket. Raises BrokerUnreachable, BrokerRefused. Cancelled at whatever moment,
    it leaves none open."""
    socket = Socket()
    connection = aiormq.Connection(url, client_properties={"connection_name": name}, transport_factory=socket)
    # aiormq's has ten places, and where none is free it drops its word that a channel is closed: the broker then ends
    # the whole connection over the next channel of that number.
    connection.write_queue = asyncio.Queue()
    opening = asyncio.ensure_future(connection.connect())
    opening.add_done_callback(lambda done: done.cancelled() or done.exception())  # who is cancelled asks for neither
    try:
        await asyncio.wait([opening], timeout=timeout_s)
        if not opening.done():
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        opening.result()
    except BaseException as error:
        socket.abort()  # first: aiormq would wait for a peer that is silent to close in good order
        opening.cancel()
        if isinstance(error, GONE):
            raise failure(url, socket, error) from error
        raise
    return connection, socket


async def disconnect(connection: AbstractConnection, socket: Socket, *, goodbye: bool) -> None:
    """Close a connection, without the closing handshake unless `goodbye`; aiormq puts itself away once it is gone."""
    socket.cause = socket.cause or CLOSED
    with suppress(*GONE):
        if goodbye and not socket.is_closing:
            async with asyncio.timeout(GOODBYE_S):
                await silently(connection.close(ConnectionError(CLOSED)))
    socket.abort()


def place(url: URL) -> str:
    """Where the broker is, for people."""
    return hide_password(str(url.with_query(None)))


def failure(url: URL, socket: Socket, error: BaseException) -> BrokerUnreachable:
    """What to raise for an attempt to connect that ended with `error`."""
    tried = place(url)
    if socket.transport is None:
        if isinstance(error, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(error):
            return BrokerUnreachable(tried, "it does not speak TLS on this port", "use amqp:, or its port for TLS")
        return BrokerUnreachable(tried, words(error))
    closed, first = socket.tap.closed, socket.tap.first
    if closed is not None:
        return refused(url, closed) if closed.refusal else BrokerUnreachable(tried, f"{closed.text} ({closed.code})")
    if first.startswith(b"\x15\x03"):
        return BrokerUnreachable(tried, "it speaks TLS on this port", "use amqps:, or its port without TLS")
    if first.startswith(b"AMQP"):
        spoken = ".".join(map(str, first[5:8]))
        return BrokerUnreachable(tried, f"it speaks AMQP {spoken}, not 0.9.1", "name a RabbitMQ in AMQP_URI")
    if first and not first.startswith(b"\x01\x00\x00"):
        began = first[:FIRST_BYTES].decode(errors="replace")
        return BrokerUnreachable(tried, f"it is not an AMQP broker, it says {began!r}", "check the port in AMQP_URI")
    if isinstance(error, TimeoutError):
        return BrokerUnreachable(tried, words(error))
    if not first:
        return BrokerUnreachable(
            tried, "it closed the connection at once", "check that its port speaks AMQP, and without TLS"
        )
    return BrokerUnreachable(tried, words(error))


def refused(url: URL, why: Closed) -> BrokerRefused:
    """What the broker's refusal of a connection, or of a channel on it, means."""
    vhost, user = url.path[1:] or "/", url.user or "guest"
    text, way_out = why.text, "see the broker's log"
    if why.code == 403 and "Login" in text:
        text, way_out = f"user {user!r} was refused: {text}", "check user and password in AMQP_URI"
    elif "limit" in text:
        way_out = "end some of those that are open, or raise the limit there"
    elif "not found" in text:
        way_out = f"check the vhost at the end of AMQP_URI, or make it: rabbitmqctl add_vhost {vhost}"
    elif "access to vhost" in text or why.code == 403:
        way_out = f"let the user in: rabbitmqctl set_permissions -p {vhost} {user} <configure> <write> <read>"
    return BrokerRefused(place(url), why.code, text, way_out)


def words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
