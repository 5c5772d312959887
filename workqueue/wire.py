"""The AMQP side: connections that come back, a consumer that is never alive and idle, publishing with confirms.

With `lane`, the only module that imports aio_pika. It knows nothing of retries or ledgers. Connections are plain ones,
opened anew here when they go: a robust connection of aio_pika restores itself in the background, and can then be open
and consume nothing (https://github.com/mosquito/aio-pika/issues/231).
"""

import asyncio
import logging
import random
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Unpack

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from asyncapi_python.kernel.endpoint.message import WireMessage
from asyncapi_python.kernel.wire import AbstractWireFactory, EndpointParams
from pamqp.commands import Basic
from yarl import URL

from workqueue import delivery
from workqueue.codec import Body
from workqueue.contract import Contract, Queue, Receive, Send
from workqueue.delivery import ChannelLost, Delivery
from workqueue.errors import BrokerUnreachable, ContractInvalid, NotSent, SendUnknown, WorkQueueError
from workqueue.lane import Arrival, Lane, Nacked, Sender, Unroutable, connect
from workqueue.policy import reconnect_delay_s
from workqueue.settings import Settings, hide_password

log = logging.getLogger(__name__)

GONE = (AMQPError, ConnectionError, TimeoutError, OSError, RuntimeError, StopAsyncIteration)
"""What a call on a lost channel or connection raises; aiormq adds RuntimeError for one that is just closing, and
StopAsyncIteration for a peer that hangs up during the handshake."""

UNENCODABLE = (TypeError, ValueError, OverflowError, struct.error)

CONNECT_TIMEOUT_S = 10.0  # TCP, TLS and the AMQP handshake; a node that takes longer is not one to work with
CALL_TIMEOUT_S = 15.0  # a declare or a consume; a quorum queue that is electing a leader answers within this
BRIEF_S = 1.0  # a session that ends sooner is followed by a pause: something may end each of them, and no worker
BRIEF_PAUSE_S = 0.2  # opens connections as fast as it can
RESEND_S = 0.05  # between a lost confirm and the next try, for the loss of the channel to be noticed

Fatal = Callable[[WorkQueueError], None]
"""Told when a consumer ends for good."""


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
                cause = _words(error)
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


class Outbox:
    """Publishes, and returns once the broker has routed, stored and confirmed the message."""

    def __init__(self, link: Link, app_id: str) -> None:
        self._link, self._app_id = link, app_id

    async def send(
        self,
        queue: Queue,
        body: bytes,
        *,
        message_id: str | None,
        message_type: str,
        content_type: str | None,
        headers: Mapping[str, Any],
        deadline_s: float,
        persistent: bool = True,
        mandatory: bool = True,
        timestamp: bool = True,
    ) -> None:
        """Send until confirmed, over as many connections as it takes, always under the same message id.

        A nack is no answer for good: a queue that changes its leader gives some, and a full one until it is read. A
        connection that is lost before the confirm makes it send again, so the broker may then have the message twice.
        Raises NotSent when there is no such queue, or when `deadline_s` passed with nothing but nacks; SendUnknown
        when it passed otherwise; BrokerUnreachable when there was no broker for too long.
        """
        properties = Basic.Properties(
            content_type=content_type,
            headers=dict(headers),
            delivery_mode=2 if persistent else 1,
            message_id=message_id,
            timestamp=datetime.now(UTC) if timestamp else None,
            message_type=message_type,
            app_id=self._app_id,
        )
        nacks, tries = 0, 0
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    lane = await self._link.lane()
                    tries += 1
                    try:
                        return await lane.publish(queue.name, properties, body, mandatory=mandatory)
                    except Unroutable as error:
                        raise NotSent(str(message_id), f"there is no queue {queue.name!r} to take it") from error
                    except Nacked:
                        nacks += 1
                        await asyncio.sleep(reconnect_delay_s(nacks, random.random))
                    except UNENCODABLE:
                        if properties == (properties := _encodable(properties)):
                            raise
                    except GONE:
                        await asyncio.sleep(RESEND_S)
        except TimeoutError as error:
            if 0 < nacks == tries:
                reason = f"queue {queue.name!r} did not take it for {deadline_s:g} s; is it full?"
                raise NotSent(str(message_id), reason) from error
            raise SendUnknown(str(message_id), deadline_s) from error


def _encodable(properties: Basic.Properties) -> Basic.Properties:
    """Without what a foreign client sent, our library could read, and can't write again: text that is not UTF-8, ..."""
    kept: dict[str, Any] = {}
    named: Iterator[tuple[str, Any]] = iter(properties)
    for name, value in named:
        if name == "headers":
            value = {key: one for key, one in (value or {}).items() if _is_encodable("headers", {key: one})}
        if _is_encodable(name, value):
            kept[name] = value
    return Basic.Properties(**kept)


def _is_encodable(name: str, value: Any) -> bool:
    try:
        Basic.Properties(**{name: value}).marshal()
    except UNENCODABLE:
        return False
    return name == "headers" or not isinstance(value, bytes)


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
        return _words(error) if error is not None else "the broker cancelled the consumer"


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
                log.warning("%s  can't consume: %s", self._tag, _words(error))
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
                log.warning("%s  lost its queue: %s", self._tag, _words(error))
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


class Producer:
    """Sends what a generated application's send operation gives it, as the contract's binding says."""

    def __init__(self, link: Link, send: Send, name: str, contract: Contract, deadline_s: float) -> None:
        self._link, self._send = link, send
        self._outbox, self._deadline_s = Outbox(link, name), deadline_s
        self._headers = {"x-contract": contract.version}

    async def start(self) -> None:
        await self._link.open()

    async def send_batch(self, messages: list[WireMessage], *, address_override: str | None = None) -> None:
        """See `Outbox.send` for what it guarantees and raises."""
        for message in messages:
            body = message.payload
            await self._outbox.send(
                self._send.queue,
                body,
                message_id=body.message_id if isinstance(body, Body) else None,
                message_type=self._send.message.type,
                content_type=self._send.message.content_type,
                headers=self._headers,
                deadline_s=self._deadline_s,
                persistent=self._send.persistent,
                mandatory=self._send.mandatory,
                timestamp=self._send.timestamp,
            )

    async def stop(self) -> None:
        await self._link.close()


class Wire(AbstractWireFactory[WireMessage, Incoming]):
    """Makes the endpoints of generated applications. `name` tells in the broker's lists who this process is."""

    def __init__(self, settings: Settings, contract: Contract, name: str, fatal: Fatal) -> None:
        self._settings, self._contract, self._name, self._fatal = settings, contract, name, fatal
        self._links: list[Link] = []
        self._consumers: list[Consumer] = []

    async def create_consumer(self, **params: Unpack[EndpointParams]) -> Consumer:
        tag = f"{self._name}.{len(self._consumers) + 1}"
        receive = self._contract.receives[_queue_name(params)]
        consumer = Consumer(self._link(tag), receive, tag, self._settings, self._fatal)
        self._consumers.append(consumer)
        return consumer

    async def create_producer(self, **params: Unpack[EndpointParams]) -> Producer:
        send = self._contract.sends[_queue_name(params)]
        return Producer(self._link(self._name), send, self._name, self._contract, self._settings.send_s)

    def outbox(self) -> Outbox:
        """For what a worker publishes. On a connection of its own, opened when it is first needed: the broker stops
        reading from one that publishes when memory or disk run out, and the acks of the consumers must get through
        (https://www.rabbitmq.com/docs/alarms)."""
        return Outbox(self._link(f"{self._name} publishes"), self._name)

    async def drain(self) -> None:
        await asyncio.gather(*(consumer.drain() for consumer in self._consumers))

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links))

    def _link(self, name: str) -> Link:
        link = Link(self._settings, name, self._contract.queues)
        self._links.append(link)
        return link


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _queue_name(params: EndpointParams) -> str:
    return str(params["channel"].bindings.amqp.queue.name)  # type: ignore[union-attr]  # read() has checked it
