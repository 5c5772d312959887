"""A TCP proxy before a port of loopback that makes it seem further away:  python -m bench.delay PORT DELAY_S

Whatever arrives is written that much later, however much is under way. It prints the port on which it listens.
"""

import asyncio
import selectors
import sys
from collections import deque


class End(asyncio.Protocol):
    """One of a client's two connections. What is read here is written to the other end."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, bytes]] = deque()
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        due_s = self._loop.time() + self._delay_s
        if not self._under_way:
            self._loop.call_at(due_s, self._pass_on)
        self._under_way.append((due_s, data))

    def connection_lost(self, error: Exception | None) -> None:
        self._under_way.clear()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def _pass_on(self) -> None:
        now_s = self._loop.time()
        while self._under_way and self._under_way[0][0] <= now_s:
            _, data = self._under_way.popleft()
            if self.other is not None and self.other.transport is not None:
                self.other.transport.write(data)
        if self._under_way:
            self._loop.call_at(self._under_way[0][0], self._pass_on)


class Near(End):
    """The client's connection: the one to the server is made when it arrives."""

    def __init__(self, port: int, delay_s: float) -> None:
        super().__init__(delay_s)
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        self.transport.pause_reading()
        far = End(self._delay_s)
        far.other = self
        try:
            await self._loop.create_connection(lambda: far, "127.0.0.1", self._port)
        except OSError:
            self.transport.abort()
            return
        self.other = far
        self.transport.resume_reading()


async def main(port: int, delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Near(port, delay_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    # By select(), whose timeout is in microseconds: that of epoll is in milliseconds, rounded up.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main(int(sys.argv[1]), float(sys.argv[2])))
