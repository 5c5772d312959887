"""One named connection with one channel, opened anew when it goes."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from aiormq import Channel
from yarl import URL

from workqueue.amqp.lane import Lane, connect
from workqueue.contract import Queue
from workqueue.errors import BrokerUnreachable, ContractInvalid
from workqueue.settings import Settings, hide_password

log = logging.getLogger(__name__)

GONE = (AMQPError, ConnectionError, TimeoutError, OSError, RuntimeError, StopAsyncIteration)
"""What a call on a lost channel or connection raises; aiormq adds RuntimeError for one that is just closing, and
StopAsyncIteration for a peer that hangs up during the handshake."""

CONNECT_TIMEOUT_S = 10.0  # TCP, TLS and the AMQP handshake; a node that takes longer is not one to work with
CALL_TIMEOUT_S = 15.0  # a declare or a consume; a quorum queue that is electing a leader answers within this

RECONNECT_FIRST_S = 0.1  # a broker that merely dropped a connection is back at once
RECONNECT_CAP_S = 5.0  # and a restarted one within this of being up: a worker must not sleep through it


class Link:
    """One named connection with one channel, to the first broker of AMQP_URI that answers."""

    def __init__(self, settings: Settings, name: str, queues: tuple[Queue, ...]) -> None:
        self._settings, self._name, self._queues = settings, name, queues
        self._connection: AbstractConnection | None = None
        self._lane: Lane | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> Lane:
        """Open the channel and declare the contract's queues, trying each broker once.

        Raises BrokerUnreachable, and ContractInvalid when a queue exists with other properties.
        """
        tried, cause = "", ""
        for uri in self._settings.amqp_uri:
            tried = hide_password(uri)
            try:
                await self._drop()
                return await self._open(uri)
            except ChannelPreconditionFailed as error:
                raise ContractInvalid(
                    f"a queue at {tried} is not what the contract declares: {error}; delete it there, or change spec/"
                ) from error
            except ProbableAuthenticationError as error:
                cause = f"user {URL(uri).user!r} was refused: {error}"
            except TimeoutError:
                cause = f"no answer within {CONNECT_TIMEOUT_S:g} s"
            except GONE as error:
                cause = words(error)
        raise BrokerUnreachable(tried, cause)

    async def lane(self) -> Lane:
        """The open channel's, or a new one's: waits, with growing delays, for at most `reconnect_s`.

        Raises as `open`.
        """
        if self._lane is not None and not self._lane.channel.is_closed:
            return self._lane
        async with self._opening:
            started, failures = time.monotonic(), 0
            while self._lane is None or self._lane.channel.is_closed:
                try:
                    await self.open()
                except BrokerUnreachable as error:
                    if time.monotonic() - started > self._settings.reconnect_s:
                        raise
                    if failures == 0:
                        log.warning("%s  waits for a broker: %s", self._name, error.cause)
                    failures += 1
                    await asyncio.sleep(reconnect_delay_s(failures, random.random))
            if failures:
                log.warning("%s  is connected again", self._name)
            return self._lane

    async def _open(self, uri: str) -> Lane:
        url = URL(uri).extend_query(heartbeat=max(1, round(self._settings.heartbeat_s)))
        self._connection, socket = await connect(url, self._name, CONNECT_TIMEOUT_S)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            opened = self._connection.channel()
            await opened.initialize()
            channel = await opened.get_underlay_channel()
            assert isinstance(channel, Channel)  # the abstract class lacks `wait`
            for queue in self._queues:
                await channel.queue_declare(
                    queue.name,
                    durable=queue.durable,
                    exclusive=queue.exclusive,
                    auto_delete=queue.auto_delete,
                    arguments=dict(queue.arguments),
                )
        self._lane = Lane(socket, channel)
        return self._lane

    async def close(self) -> None:
        """Give up the connection, so that the next `lane` makes a new one."""
        async with self._opening:
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection, self._lane = self._connection, None, None
        if connection is not None:
            with suppress(*GONE):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await connection.close()


def reconnect_delay_s(failures: int, random: Callable[[], float]) -> float:
    """How long to wait after the `failures`th failed connection in a row: doubling to a cap, with full jitter
    in the upper half, so that a fleet does not come back in step. `random` gives [0, 1)."""
    ceiling_s: float = min(RECONNECT_CAP_S, RECONNECT_FIRST_S * 2.0 ** min(failures, 10))
    return ceiling_s * (0.5 + 0.5 * random())


def words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
