"""A TCP proxy between clients and a broker, for faults of the network: it holds bytes back, and cuts connections.

It knows one thing of AMQP: the name that a client gives its connection, so that one can be picked out.
"""

import asyncio
import re
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Self

NAME = b"connection_nameS"  # in connection.start-ok, a key of a table, its type, then its length in four bytes
START_BYTES = 4096  # that frame is among the first that a client sends, and much shorter
CHUNK_BYTES = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, and drops what was not sent yet


@dataclass
class Direction:
    """One way through the proxy. `held` is how many bytes were read and not passed on."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0

    def __post_init__(self) -> None:
        self.open.set()


@dataclass(eq=False)
class Flow:
    """A client's connection and the one to the broker that belongs to it."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    name: str = ""
    opened: float = field(default_factory=time.monotonic)
    to_broker: Direction = field(default_factory=Direction)
    to_client: Direction = field(default_factory=Direction)

    def cut(self) -> None:
        """Reset both connections; what is held is lost."""
        for writer in (self.client, self.broker):
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        self.to_broker.open.set()
        self.to_client.open.set()


def name_in(start: bytes) -> str:
    """The name of the connection whose first bytes these are, or an empty string."""
    _, found, rest = start.partition(NAME)
    return rest[4 : 4 + int.from_bytes(rest[:4], "big")].decode(errors="replace") if found else ""


class Proxy:
    """Listens on a port of loopback, and passes everything on to `port` there. To be used as a context.

    With `tls` its clients speak TLS to it.
    """

    def __init__(self, port: int, tls: SSLContext | None = None) -> None:
        self._target, self._tls = port, tls
        self.flows: set[Flow] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.resume()
        self.cut_all()
        await asyncio.gather(*self._serving)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def named(self, pattern: str) -> list[Flow]:
        """The connections whose name matches the pattern as a whole."""
        return [flow for flow in self.flows if re.fullmatch(pattern, flow.name)]

    def cut_all(self) -> int:
        """Reset every connection; how many there were."""
        flows = list(self.flows)
        for flow in flows:
            flow.cut()
        return len(flows)

    def stall(self) -> None:
        """Pass nothing on in either direction, on these connections and on new ones, until `resume`."""
        self._passing.clear()

    def resume(self) -> None:
        self._passing.set()

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        self._serving.add(this)
        this.add_done_callback(self._serving.discard)
        try:
            from_broker, broker = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # no broker: the client is refused as well as a proxy can
            client.transport.abort()
            return
        flow = Flow(client, broker)
        self.flows.add(flow)
        try:
            await asyncio.gather(
                self._pump(flow, from_client, broker, flow.to_broker, sniff=True),
                self._pump(flow, from_broker, client, flow.to_client, sniff=False),
            )
        finally:
            self.flows.discard(flow)

    async def _pump(
        self, flow: Flow, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Direction, *, sniff: bool
    ) -> None:
        start = b""
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if sniff and not flow.name and len(start) < START_BYTES:
                    start += data
                    flow.name = name_in(start)
                way.held += len(data)
                await way.open.wait()
                await self._passing.wait()
                sink.write(data)
                way.held -= len(data)
                await sink.drain()
        sink.close()  # after what was written: the other side closed in good order, or is gone
