"""The messages of one queue: a consumer that is never alive and idle."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from aiormq.exceptions import ChannelAccessRefused, ConnectionNotAllowed

from workqueue import delivery
from workqueue.amqp.connection import CALL_S, reconnect_delay_s
from workqueue.amqp.frames import Arrival
from workqueue.amqp.handshake import GONE, words
from workqueue.amqp.links import Links
from workqueue.amqp.session import Session
from workqueue.contract import Receive
from workqueue.delivery import Delivery
from workqueue.errors import BrokerRefused, BrokerUnreachable, WorkerFault, WorkQueueError
from workqueue.patience import Patience
from workqueue.settings import Settings

log = logging.getLogger(__name__)

BRIEF_S = 1.0  # a session that ends sooner is followed by a pause: something may end each of them, and no worker
BRIEF_PAUSE_S = 0.2  # opens connections as fast as it can

LOOK_S = 5.0  # within which a node tells the counters of a queue, or is of no use
SOON_S = 1.0  # between two looks once one of them gave a doubt
AGREE = 3  # looks in a row that must find messages waiting, and none delivered
UNKNOWN_S = 12.0
"""A node that can't reach a quorum queue's leader within 250 ms counts no messages and no consumers, so that says
nothing; nor does it for a leader that is always that far away. Before a consumer is asked to prove itself then, a new
leader has been elected, if that is what is going on: a consume would block the channel until it is."""
PROVE_S = 3.0  # so that it is answered soon, unless the node is cut off from its peers

REST_S = 1.0  # between two looks whether the connection of a paused consumer is there
DRAIN_S = 3.0  # for the broker's word that it delivers no more: if that does not come, closing the channel says it too

HELD_BYTES = 16 << 20
HELD_TIMES = 16
"""The largest body that is held is of HELD_BYTES, or of HELD_TIMES the contract's limit if that is more. What is within
these is a dead letter with a story, copied by the worker. What is larger may be more than its memory."""

Fatal = Callable[[WorkQueueError], None]
"""Told when a consumer ends for good."""


class Incoming:
    """A delivery as the generated application sees it. The guard around the handler settles; the kernel's own ideas
    of it (ack after the handler, requeue on an exception) come too late, and only catch a guard that failed."""

    def __init__(self, arrived: Delivery) -> None:
        self._delivery = arrived
        self.payload = arrived.body
        self.headers = dict(arrived.headers)
        self.correlation_id = self.reply_to = None

    async def ack(self) -> None:
        pass

    async def nack(self) -> None:
        if not self._delivery.settled:
            self._delivery.requeue()

    reject = nack


class Consumer:
    """Delivers the messages of one queue, one session after the other, until it is drained.

    `joins`: others of this worker consume already, so a broker that can't be reached is waited for at the start too.
    """

    def __init__(
        self, links: Links, receive: Receive, tag: str, settings: Settings, fatal: Fatal, *, joins: bool = False
    ) -> None:
        self._links, self._receive, self._tag, self._settings, self._fatal = links, receive, tag, settings, fatal
        self._joins = joins
        self._session: Session | None = None
        self._draining, self._open = False, asyncio.Event()
        self._open.set()

    @property
    def queue(self) -> str:
        return self._receive.queue.name

    @property
    def is_consuming(self) -> bool:
        """Whether the broker has it as a consumer, or would but for a pause, as far as the connection tells."""
        session = self._session
        return session is not None and session.lane.is_open

    async def start(self) -> None:
        """Consume. Raises as `Link.open` when there is no broker to start with, or none that lets this user read the
        queue; one that goes later is waited for."""
        if not self._joins:
            await self._links.open()
        if self._open.is_set():
            await self._subscribed(starting=True)

    async def recv(self) -> AsyncGenerator[Incoming, None]:
        """Yields a message and, once it is asked for the next one, expects that to be settled. Ends when drained."""
        kernel = asyncio.current_task()
        assert kernel is not None
        kernel.add_done_callback(self._supervise)
        try:
            while self._session is not None or not self._draining:
                if self._session is None and not self._open.is_set():
                    await self._rest()
                    continue
                session = self._session or await self._subscribed()
                message = await self._next(session)
                if message is None:
                    await (self._leave() if self._open.is_set() else self._rest())
                    if not self._draining and time.monotonic() - session.began < BRIEF_S:
                        await asyncio.sleep(BRIEF_PAUSE_S)
                    continue
                arrived = session.delivery(message, self._receive.queue)
                delivery.current.set(arrived)
                self._links.busy.add(self)
                try:
                    yield Incoming(arrived)
                finally:
                    self._links.busy.discard(self)
        except WorkQueueError as error:
            self._fatal(error)

    def _supervise(self, kernel: "asyncio.Task[Any]") -> None:
        """The kernel's task, which asks for messages and hands them to the guard, has ended. Nobody else looks at it,
        and without it this worker is alive and idle."""
        error = None if kernel.cancelled() else kernel.exception()
        if not self._draining:
            if error is not None:
                log.error("%s  a fault of our own", self._tag, exc_info=error)
            ended = f"{type(error).__name__}: {error}" if error else "no error"
            why = "it was cancelled" if kernel.cancelled() else ended
            self._fatal(WorkerFault(f"{self._tag} ended unasked: {why}; restart the worker, and report this"))

    async def drain(self) -> None:
        """Take no new message. One that is in a handler goes on; one that waits here is still yielded, to be handed
        back: what a closed channel gives back counts as a delivery."""
        self._draining = True
        self._open.set()
        await self._take_no_more()

    async def pause(self) -> None:
        """Take no message until `resume`. One that was delivered is still handled."""
        if not self._draining:
            self._open.clear()
            await self._take_no_more()

    def resume(self) -> None:
        self._open.set()

    async def _rest(self) -> None:
        """While it is paused: stay connected, so that a broker that goes is noticed, and a queue keeps its marker."""
        try:
            session = self._session = self._session or Session(*await self._links.channel())
        except GONE:
            return await asyncio.sleep(BRIEF_PAUSE_S)
        while not self._open.is_set() and session.lane.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(REST_S):
                    await self._open.wait()
        if not self._open.is_set():
            self._links.say(f"lost its connection: {session.cause}")
        await self._leave()

    async def _take_no_more(self) -> None:
        if self._session is not None:
            session = self._session
            session.left = True
            with suppress(*GONE):
                async with asyncio.timeout(DRAIN_S):
                    await session.lane.cancel(self._tag)
            session.inbox.put(None)

    async def stop(self) -> None:
        self._draining = True
        self._open.set()
        if self._session is not None:
            await self._leave()

    async def _subscribed(self, *, starting: bool = False) -> Session:
        """A new session, on as many connections as it takes. Raises as `Link.lane`."""
        patience, failures = Patience(), 0
        while True:
            session = None
            try:
                session = Session(*await self._links.channel())
                async with asyncio.timeout(CALL_S):
                    await self._subscribe(session)
                self._session = session
                if self._draining or not self._open.is_set():  # it was to take no more meanwhile
                    await self._take_no_more()
                return session
            except GONE as error:
                why = words(error)
                if isinstance(error, TimeoutError):
                    why = f"no answer within {CALL_S:g} s; the node may not reach the queue's leader"
                if session is not None and isinstance(error, ChannelAccessRefused):
                    await session.lane.close()  # by the broker: this channel, and no other
                elif session is not None:
                    session.lane.abort(why)
                unusable = self._unusable(error, why)
                if patience.waited_s > self._settings.reconnect_s or (starting and isinstance(unusable, BrokerRefused)):
                    raise unusable from error
                if patience.due():
                    self._links.say(f"can't consume: {why}; {unusable.way_out}")
                failures += 1
                await asyncio.sleep(reconnect_delay_s(failures, random.random))

    def _unusable(self, error: BaseException, why: str) -> BrokerUnreachable:
        what = f"queue {self._receive.queue.name!r} can't be consumed"
        if isinstance(error, ChannelAccessRefused):
            return BrokerRefused(what, 403, why, "let the user read it: rabbitmqctl set_permissions")
        if isinstance(error, ConnectionNotAllowed):  # the user's limit: of connections, or of channels
            return BrokerRefused(what, 530, why, "do less at a time, or raise it: rabbitmqctl set_user_limits")
        return BrokerUnreachable(what, why, "see the broker's log")

    async def _subscribe(self, session: Session) -> None:
        receive = self._receive
        most_bytes = max(HELD_BYTES, HELD_TIMES * receive.message.max_bytes)
        await session.lane.consume(receive.queue.name, self._tag, receive.prefetch, session.inbox.put, most_bytes)

    async def _next(self, session: Session) -> Arrival | None:
        """The next message, or None when the session is over. An idle session is probed."""
        starved, unknown_s, looked_s, within_s = 0, 0.0, time.monotonic(), self._settings.check_s
        while True:
            try:
                message = await session.inbox.get(within_s)
            except TimeoutError:
                pass
            else:
                if message is None and not session.left:
                    self._lost(session)
                return message
            try:
                messages, consumers = await self._look(session)
                starved = starved + 1 if messages else 0
                since_s, looked_s = time.monotonic() - looked_s, time.monotonic()
                since_s = min(since_s, within_s + SOON_S)  # a process that was stopped has not looked
                unknown_s = 0.0 if messages or consumers else unknown_s + since_s
                if unknown_s >= UNKNOWN_S:
                    await self._prove(session)
                    unknown_s, looked_s = 0.0, time.monotonic()
            except GONE as error:
                why = "its node does not answer" if isinstance(error, TimeoutError) else words(error)
                self._links.say(f"lost its queue {self.queue}: {why}")
                session.lane.abort(why)
                return None
            if starved == AGREE:
                await self._starved(session)
                return None
            within_s = min(SOON_S, self._settings.check_s) if starved or unknown_s else self._settings.check_s

    def _lost(self, session: Session) -> None:
        self._links.say(f"lost a consumer of {self.queue}: {session.cause}")
        if session.lane.is_open:  # its queue is gone, and is declared again with a new connection
            session.lane.abort(session.cause)

    async def _starved(self, session: Session) -> None:
        """Where others are at work on the connection, it is this consumer that was forgotten, and not the node that is
        of no use."""
        why = "idle although messages are ready"
        log.warning("%s  %s; re-subscribing", self._tag, why)
        if self._links.busy:
            await session.lane.close()
        else:
            session.lane.abort(why)

    async def _look(self, session: Session) -> tuple[int, int]:
        """How many messages wait in the queue, and how many consumers it has, as far as the node knows."""
        async with asyncio.timeout(LOOK_S):
            return await self._links.look(session.link)

    async def _prove(self, session: Session) -> None:
        """Subscribe anew on the same channel: that is answered only by the queue's leader. One does it for all."""
        async with self._links.proving:
            if time.monotonic() - self._links.proved_s < UNKNOWN_S:
                return
            async with asyncio.timeout(PROVE_S):
                await session.lane.cancel(self._tag)
                if not session.left:
                    await self._subscribe(session)
            self._links.proved_s = time.monotonic()
        if not self._open.is_set():  # it was paused meanwhile
            await self._take_no_more()

    async def _leave(self) -> None:
        """End the session. Closing its channel gives what was delivered and not settled back to the broker."""
        session, self._session = self._session, None
        if session is not None:
            await session.lane.close()
