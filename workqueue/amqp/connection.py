"""One named connection with one channel, opened anew when it goes."""

import asyncio
import logging
import random
from collections.abc import Callable
from itertools import count

from aiormq import Channel, Connection
from yarl import URL

from workqueue.amqp.handshake import CLOSED, GONE, Socket, connect, disconnect, refused, words
from workqueue.amqp.lane import Lane
from workqueue.amqp.marker import Marker
from workqueue.amqp.topology import Topology
from workqueue.amqp.watch import Patience, Watch
from workqueue.contract import Queue
from workqueue.errors import BrokerRefused, BrokerUnreachable
from workqueue.settings import Settings, hide_password

log = logging.getLogger(__name__)

CONNECT_S = 10.0  # TCP, TLS and the AMQP handshake; a node that takes longer is not one to work with
CONNECT_EACH_S = 4.0  # where there are others to ask
CALL_S = 10.0  # for declaring all queues, or consuming; a quorum queue that elects a leader answers within this

INTERNAL_ERROR = 541  # https://www.rabbitmq.com/amqp-0-9-1-reference#constants
STUMBLES = 3
STUMBLE_S = 0.3

RECONNECT_FIRST_S = 0.1  # a broker that merely dropped a connection is back at once
RECONNECT_CAP_S = 5.0  # and a restarted one within this of being up: a worker must not sleep through it


class Link:
    """One named connection with one channel, to a broker of AMQP_URI, at first to the one with the number `first`.

    Whatever ended a connection, the next is to another one of AMQP_URI, a node may answer and still be of no use; and
    to any of the others, or all who were at one node would go to the same next one.
    """

    def __init__(
        self, settings: Settings, name: str, topology: Topology, marker: Marker | None = None, *, first: int = 0
    ) -> None:
        self._settings, self._name, self._topology, self._marker = settings, name, topology, marker
        self._connection: Connection | None = None
        self._socket: Socket | None = None
        self._lane: Lane | None = None
        self._at, self._began = first % len(settings.amqp_uri), False
        self._opening = asyncio.Lock()

    async def open(self) -> Lane:
        """Open the channel and declare the contract's queues, trying each broker once.

        Raises BrokerUnreachable, BrokerRefused; ContractInvalid when a queue exists with other properties;
        LedgerDiffers.
        """
        failures = []
        others = [number for number in range(len(self._settings.amqp_uri)) if number != self._at]
        random.shuffle(others)
        numbers = [*others, self._at] if self._began else [self._at, *others]
        self._began = True
        for self._at in numbers:
            await self._drop(goodbye=False)
            try:
                return await self._open_anyway(self._settings.amqp_uri[self._at])
            except BrokerUnreachable as error:
                failures.append(error)
            except BaseException:
                await self._drop(goodbye=False)
                raise
        await self._drop(goodbye=False)
        raise _together(failures)

    async def lane(self) -> Lane:
        """The open channel's, or a new one's: waits, with growing delays, for at most `reconnect_s`.

        Raises as `open`.
        """
        if self._lane is not None and self._lane.is_open:
            return self._lane
        async with self._opening:
            patience, failures = Patience(), 0
            while self._lane is None or not self._lane.is_open:
                try:
                    await self.open()
                except BrokerUnreachable as error:
                    if patience.waited_s > self._settings.reconnect_s:
                        raise
                    if patience.due():
                        log.warning("%s  waits for a broker: %s: %s", self._name, error.tried, error.cause)
                    failures += 1
                    await asyncio.sleep(reconnect_delay_s(failures, random.random))
            if failures:
                log.warning("%s  is connected again", self._name)
            return self._lane

    async def restore(self, queue: Queue) -> None:
        """Declare a queue that has vanished. Raises as `open`, and what a lost connection raises."""
        await self.lane()
        assert self._connection is not None
        async with asyncio.timeout(CALL_S):
            await self._topology.restore(self._connection, queue)

    async def _open_anyway(self, uri: str) -> Lane:
        """Open it, although the broker may stumble over many who declare a queue at once while it is being made."""
        for stumbles in count(1):
            try:
                return await self._open(uri)
            except BrokerUnreachable:
                closed = None if self._socket is None else self._socket.tap.closed
                if stumbles > STUMBLES or closed is None or closed.code != INTERNAL_ERROR:
                    raise
            await self._drop(goodbye=False)
            await asyncio.sleep(STUMBLE_S * (0.5 + random.random()))
        raise AssertionError

    async def _open(self, uri: str) -> Lane:
        url = URL(uri).extend_query(heartbeat=max(1, round(self._settings.heartbeat_s)))
        within_s = CONNECT_EACH_S if len(self._settings.amqp_uri) > 1 else CONNECT_S
        connection, socket = self._connection, self._socket = await connect(url, self._name, within_s)
        try:
            async with asyncio.timeout(CALL_S):
                await self._topology.declare(connection)
                if self._marker is not None:
                    await self._marker.check(connection, self._name)
                channel = await connection.channel()
        except GONE as error:
            closed = socket.tap.closed
            if closed is not None and closed.refusal:
                raise refused(url, closed) from error
            cause = f"no answer within {CALL_S:g} s" if isinstance(error, TimeoutError) else words(error)
            raise BrokerUnreachable(hide_password(uri), cause) from error
        assert isinstance(channel, Channel)  # the abstract class lacks `wait`
        self._lane = Lane(socket, channel)
        Watch(self._lane, self._name, f"{url.host}:{url.port}", self._settings.heartbeat_s)
        return self._lane

    async def close(self) -> None:
        """Close the connection. The next `lane` makes a new one."""
        async with self._opening:
            await self._drop(goodbye=self._lane is not None and self._lane.is_open)

    async def _drop(self, *, goodbye: bool) -> None:
        connection, socket, lane = self._connection, self._socket, self._lane
        self._connection = self._socket = self._lane = None
        if connection is not None and socket is not None:
            await disconnect(connection, socket, goodbye=goodbye)
        if lane is not None:
            lane.abort(CLOSED)


def _together(failures: list[BrokerUnreachable]) -> BrokerUnreachable:
    """One failure for all brokers of AMQP_URI, each with its cause. A refusal tells more than a broker that is down."""
    first = next((one for one in failures if isinstance(one, BrokerRefused)), failures[-1])
    others = [one for one in failures if one is not first]
    if not others:
        return first
    cause = "; ".join([first.cause, *(f"{one.tried}: {one.cause}" for one in others)])
    return BrokerUnreachable(first.tried, cause, first.way_out)


def reconnect_delay_s(failures: int, random: Callable[[], float]) -> float:
    """How long to wait after the `failures`th failed connection in a row: doubling to a cap, with full jitter
    in the upper half, so that a fleet does not come back in step. `random` gives [0, 1)."""
    ceiling_s: float = min(RECONNECT_CAP_S, RECONNECT_FIRST_S * 2.0 ** min(failures, 10))
    return ceiling_s * (0.5 + 0.5 * random())
