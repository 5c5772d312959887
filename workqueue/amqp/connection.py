"""One named connection, opened anew when it goes, and the channels on it."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import count

from yarl import URL

from workqueue.amqp.direct import LEAST_CHANNELS, DirectConnection, allowed_channels
from workqueue.amqp.frames import Closed
from workqueue.amqp.handshake import CLOSED, GONE, connect, lost, place, refused, silently, words
from workqueue.amqp.lane import Connection, Declaration, Lane
from workqueue.amqp.watch import Watch
from workqueue.errors import BrokerRefused, BrokerUnreachable
from workqueue.patience import Patience
from workqueue.settings import Settings, hide_password

log = logging.getLogger(__name__)

CONNECT_S = 10.0  # TCP, TLS and the AMQP handshake; a node that takes longer is not one to work with
CONNECT_EACH_S = 4.0  # where there are others to ask
CALL_S = 10.0  # for declaring all queues, or consuming; a quorum queue that elects a leader answers within this

NOT_ALLOWED, INTERNAL_ERROR = 530, 541  # https://www.rabbitmq.com/amqp-0-9-1-reference#constants
STUMBLES = 3
STUMBLE_S = 0.3

RECONNECT_FIRST_S = 0.1  # a broker that merely dropped a connection is back at once
RECONNECT_CAP_S = 5.0  # and a restarted one within this of being up: a worker must not sleep through it


class Stumbled(BrokerUnreachable):
    """The broker ended the connection with an internal error, as it may when many declare a queue at once while it is
    being made."""


async def open_connection(
    uri: str, settings: Settings, name: str, declares: Iterable[Declaration] = ()
) -> DirectConnection:
    """Open a connection of this name, and declare on it what is to be declared before its channels are used.

    Raises BrokerUnreachable, and as `declares`. Who is cancelled is told so, and nothing is left open.
    """
    is_cancelled = _cancellation()
    url = URL(uri).extend_query(heartbeat=max(1, round(settings.heartbeat_s)))
    within_s = CONNECT_EACH_S if len(settings.amqp_uri) > 1 else CONNECT_S
    connection, socket = await connect(url, name, within_s)
    try:
        if (allowed := allowed_channels(connection)) < LEAST_CHANNELS:
            text = f"its channel_max is {allowed}, and at least {LEAST_CHANNELS} is needed"
            raise BrokerRefused(place(url), NOT_ALLOWED, text, "raise channel_max in its rabbitmq.conf")
        async with asyncio.timeout(CALL_S):
            with lost():
                for declare in declares:
                    await declare(connection)
            opened = await DirectConnection.on(connection, socket)
        if is_cancelled():
            raise asyncio.CancelledError
    except BaseException as error:
        socket.abort()
        if isinstance(error, GONE):
            if is_cancelled():
                raise asyncio.CancelledError from error
            raise failure(url, socket.tap.closed, error) from error
        raise
    Watch(opened.first, name, f"{url.host}:{url.port}", settings.heartbeat_s)
    return opened


def _cancellation() -> Callable[[], bool]:
    """Tells whether the current task has been cancelled since, which aiormq may keep from it: it tells of a channel
    instead that it could not close then, and `wait_for` of Python 3.11 of a result that came at the same moment."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    return lambda: task.cancelling() > before


Connect = Callable[[str, Settings, str, Iterable[Declaration]], Awaitable[Connection]]
"""What takes the place of `open_connection`, in tests."""


class Link:
    """One named connection to a broker of AMQP_URI, at first to the one with the number `first`. It has one channel for
    all who publish or look, `lane`, and further ones for those who need one of their own.

    Opening it declares nothing but what is in `declares`: on each new connection, so also on those that follow one
    that was lost.

    Whatever ended a connection, the next is to another one of AMQP_URI, a node may answer and still be of no use; and
    to any of the others, or all who were at one node would go to the same next one. `failure` is why the last try to
    open one failed, and None if it did not.
    """

    def __init__(
        self, settings: Settings, name: str, *declares: Declaration, first: int = 0, connect: Connect | None = None
    ) -> None:
        self._settings, self._name, self._declares, self._connect = settings, name, declares, connect
        self.failure: BrokerUnreachable | None = None
        self._connection: Connection | None = None
        self._closing: asyncio.Future[None] | None = None
        self._at, self._began = first % len(settings.amqp_uri), False
        self._opening, self._ended = asyncio.Lock(), asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._connection is not None and self._connection.first.is_open

    async def open(self) -> Lane:
        """Open the connection, trying each broker once. Raises BrokerUnreachable, and as what it declares."""
        failures = []
        others = [number for number in range(len(self._settings.amqp_uri)) if number != self._at]
        random.shuffle(others)
        numbers = [*others, self._at] if self._began else [self._at, *others]
        self._began = True
        for self._at in numbers:
            await self._drop()
            try:
                # Whoever uses a connection tells its loss, in words that say what follows from it.
                self._connection = await silently(self._open_anyway(self._settings.amqp_uri[self._at]))
            except BrokerUnreachable as error:
                failures.append(error)
            else:
                self.failure = None
                return self._connection.first
        self.failure = _together(failures)
        raise self.failure

    async def open_again(self) -> None:
        """As `open`, unless it is open, was ended, or is being opened."""
        if not (self.is_open or self._ended.is_set() or self._opening.locked()):
            async with self._opening:
                await self.open()

    async def lane(self) -> Lane:
        """The channel that all share, or that of a new connection: waits, with growing delays, for at most
        `reconnect_s`.

        Raises as `open`; BrokerUnreachable once it was ended, also to those who wait already.
        """
        return (await self._opened()).first

    async def another(self) -> Lane:
        """A further channel, for its owner to close; waits as `lane` does. Raises as that, NoChannelLeft, and what a
        lost connection raises: it is lost then."""
        connection = await self._opened()
        try:
            async with asyncio.timeout(CALL_S):
                return await silently(connection.another())
        except GONE as error:
            connection.first.abort(_cause(error))
            raise

    async def _opened(self) -> Connection:
        if self._connection is not None and self._connection.first.is_open:
            return self._connection
        async with self._opening:
            patience, failures = Patience(), 0
            while self._connection is None or not self._connection.first.is_open:
                if self._ended.is_set():
                    raise BrokerUnreachable(hide_password(self._settings.amqp_uri[self._at]), CLOSED, "open a new one")
                try:
                    await self.open()
                except BrokerUnreachable as error:
                    if patience.waited_s > self._settings.reconnect_s:
                        raise
                    if patience.due():
                        log.warning("%s  waits for a broker: %s: %s", self._name, error.tried, error.cause)
                    failures += 1
                    with suppress(TimeoutError):
                        async with asyncio.timeout(reconnect_delay_s(failures, random.random)):
                            await self._ended.wait()
            if failures:
                log.warning("%s  is connected again", self._name)
            return self._connection

    async def declare(self, declare: Declaration) -> None:
        """Declare something once more. Raises as `open`, as that, and what a lost connection raises."""
        lane = await self.lane()
        async with asyncio.timeout(CALL_S):
            with lost():
                await declare(lane.connection)

    async def close(self) -> None:
        """Close the connection, or wait until one that is being closed is. The next `lane` makes a new one."""
        async with self._opening:
            await self._drop()

    async def end(self) -> None:
        """Close the connection, and let nobody make a new one."""
        self._ended.set()
        await self.close()

    async def _open_anyway(self, uri: str) -> Connection:
        """Open it, although the broker may stumble."""
        for stumbles in count(1):
            try:
                return await (self._connect or open_connection)(uri, self._settings, self._name, self._declares)
            except Stumbled:
                if stumbles > STUMBLES:
                    raise
            await asyncio.sleep(STUMBLE_S * (0.5 + random.random()))
        raise AssertionError

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._closing = asyncio.ensure_future(connection.close())
        if self._closing is not None:  # goes on when its caller is cut off: until its end the last acks are under way
            await asyncio.shield(self._closing)


def failure(url: URL, closed: Closed | None, error: BaseException) -> BrokerUnreachable:
    """What to raise when a connection was lost, or refused something, before it could be used."""
    if closed is not None and closed.refusal:
        return refused(url, closed)
    kind = Stumbled if closed is not None and closed.code == INTERNAL_ERROR else BrokerUnreachable
    return kind(place(url), _cause(error))


def _cause(error: BaseException) -> str:
    return f"no answer within {CALL_S:g} s" if isinstance(error, TimeoutError) else words(error)


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
