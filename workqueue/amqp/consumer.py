"""The messages of one queue: a consumer that is never alive and idle."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiormq.abc import DeliveredMessage

from workqueue import delivery
from workqueue.amqp.connection import CALL_TIMEOUT_S, GONE, Link, reconnect_delay_s, words
from workqueue.amqp.lane import Arrival, Lane, Sender
from workqueue.contract import Receive
from workqueue.delivery import ChannelLost, Delivery
from workqueue.errors import WorkerFault, WorkQueueError
from workqueue.settings import Settings

log = logging.getLogger(__name__)

BRIEF_S = 1.0  # a session that ends sooner is followed by a pause: something may end each of them, and no worker
BRIEF_PAUSE_S = 0.2  # opens connections as fast as it can

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


class Inbox:
    """What was delivered and not taken yet; None says that no more comes. For one reader.

    A Queue and a timeout do the same, and ask for the running loop five times a task; on Python 3.11 that is a system
    call each. Here one timer is good for many waits: when it ends too early, it is set anew.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Arrival | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until_s = 0.0

    def put(self, arrived: Arrival | None) -> None:
        self._arrived.append(arrived)
        self._wake()

    async def get(self, within_s: float) -> Arrival | None:
        """Raises TimeoutError when nothing comes."""
        if not self._arrived:
            self._waiter, self._until_s = self._loop.create_future(), self._loop.time() + within_s
            if self._timer is None:
                self._timer = self._loop.call_at(self._until_s, self._end_wait)
            await self._waiter
            if not self._arrived:
                raise TimeoutError
        return self._arrived.popleft()

    def _end_wait(self) -> None:
        self._timer = None
        if self._loop.time() < self._until_s:
            self._timer = self._loop.call_at(self._until_s, self._end_wait)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass
class Session:
    """One life of a consumer: from basic.consume until its channel, or the broker's wish to deliver to it, ends."""

    lane: Lane
    inbox: Inbox = field(default_factory=Inbox)
    began: float = field(default_factory=time.monotonic)

    def over(self, *_: Any) -> None:
        self.inbox.put(None)

    def settle(self, tag: int, ack: bool) -> None:
        """Raises ChannelLost."""
        try:
            self.lane.ack(tag) if ack else self.lane.requeue(tag)
        except GONE as error:
            raise ChannelLost from error

    @property
    def cause(self) -> str:
        """Why it is over, in words."""
        closing = self.lane.channel.closing
        error = closing.exception() if closing.done() and not closing.cancelled() else None
        return words(error) if error is not None else "the broker cancelled the consumer"


class Consumer:
    """Delivers the messages of one queue, one session after the other, until it is drained."""

    def __init__(self, link: Link, receive: Receive, tag: str, settings: Settings, fatal: Fatal) -> None:
        self._link, self._receive, self._tag, self._settings, self._fatal = link, receive, tag, settings, fatal
        self._session: Session | None = None
        self._draining = False

    async def start(self) -> None:
        """Consume. Raises as `Link.open` when there is no broker to start with; one that goes later is waited for."""
        await self._link.open()
        await self._resume()

    async def recv(self) -> AsyncGenerator[Incoming, None]:
        """Yields a message and, once it is asked for the next one, expects that to be settled. Ends when drained."""
        kernel = asyncio.current_task()
        assert kernel is not None
        kernel.add_done_callback(self._supervise)
        try:
            while not self._draining:
                session = self._session or await self._resume()
                message = await self._next(session)
                if message is None or self._draining:
                    await self._leave(session)
                    if not self._draining and time.monotonic() - session.began < BRIEF_S:
                        await asyncio.sleep(BRIEF_PAUSE_S)
                    continue
                arrived = self._delivery(session, message)
                delivery.current.set(arrived)
                yield Incoming(arrived)
        except WorkQueueError as error:
            self._fatal(error)

    def _supervise(self, kernel: "asyncio.Task[Any]") -> None:
        """The kernel's task, which asks for messages and hands them to the guard, has ended. Nobody else looks at it,
        and without it this worker is alive and idle."""
        error = None if kernel.cancelled() else kernel.exception()
        if not self._draining:
            if error is not None:
                log.error("%s  a fault of our own", self._tag, exc_info=error)
            why = (
                "it was cancelled"
                if kernel.cancelled()
                else f"{type(error).__name__}: {error}"
                if error
                else "no error"
            )
            self._fatal(WorkerFault(f"{self._tag} ended unasked: {why}; restart the worker, and report this"))

    async def drain(self) -> None:
        """Take no new message. One that is in a handler goes on; one that waits here goes back to the broker."""
        self._draining = True
        if self._session is not None:
            session = self._session
            with suppress(*GONE):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await session.lane.channel.basic_cancel(self._tag)
            session.over()

    async def stop(self) -> None:
        self._draining = True
        if self._session is not None:
            await self._leave(self._session)

    async def _resume(self) -> Session:
        failures = 0
        while True:
            try:
                self._session = await self._consume(await self._link.lane())
                return self._session
            except GONE as error:
                failures += 1
                log.warning("%s  can't consume: %s", self._tag, words(error))
                await asyncio.sleep(reconnect_delay_s(failures, random.random))
                await self._link.close()

    async def _consume(self, lane: Lane) -> Session:
        session = Session(lane)
        lane.deliver = session.inbox.put
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await lane.channel.basic_qos(prefetch_count=self._receive.prefetch)
            await lane.channel.basic_consume(self._receive.queue.name, _astray, consumer_tag=self._tag)
        lane.channel.closing.add_done_callback(session.over)
        lane.channel.on_consumer_cancel_callbacks.add(session.over)
        return session

    async def _next(self, session: Session) -> Arrival | None:
        """The next message, or None when the session is over. A session in which nothing comes proves itself: the
        broker must count a consumer on the queue, and no message may wait there over two checks in a row."""
        waiting = 0
        while True:
            try:
                message = await session.inbox.get(self._settings.check_s)
            except TimeoutError:
                pass
            else:
                if message is None and not self._draining:
                    log.warning("%s  lost its consumer: %s", self._tag, session.cause)
                return message
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    told = await session.lane.channel.queue_declare(self._receive.queue.name, passive=True)
            except GONE as error:
                log.warning("%s  lost its queue: %s", self._tag, words(error))
                return None
            waiting = waiting + 1 if told.message_count else 0
            if not told.consumer_count or waiting > 1:
                log.warning("%s  was alive and got nothing; consumes anew", self._tag)
                return None

    async def _leave(self, session: Session) -> None:
        """End the session. Closing its channel gives what was delivered and not settled back to the broker."""
        self._session = None
        with suppress(*GONE):
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await session.lane.channel.close()

    def _delivery(self, session: Session, arrived: Arrival) -> Delivery:
        sender = arrived.sender or Sender()
        count = sender.headers.get("x-delivery-count", 0)
        return Delivery(
            body=arrived.body,
            queue=self._receive.queue.name,
            message_id=sender.message_id,
            content_type=sender.content_type,
            headers=sender.headers,
            readable=arrived.sender is not None,
            redelivered=arrived.redelivered,
            delivery_count=count if isinstance(count, int) else 0,
            _settle=partial(session.settle, arrived.tag),
        )


async def _astray(message: DeliveredMessage) -> None:
    raise AssertionError(f"a delivery that did not go by the lane: {message.delivery}")
