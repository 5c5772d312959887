"""All that lies in a queue, held for a while: read without being consumed, and settled one by one.

A quorum queue can't be browsed: who reads it is delivered its messages, and they are with nobody else until they are
settled, or the connection ends and they go back where they were. Each time counts as a delivery, so this is for queues
whose delivery limit allows it, as the contract's dead-letter queues do; never for tasks. One process at a time has a
queue for itself, or each would see what the others do not hold: an exclusive queue beside it, which ends with its
connection, is the lock.

Of many acks some may be lost when the connection ends: a channel keeps those that a quorum queue is too slow to take,
and drops them with itself (`quorum_commands_soft_limit`, 32 by default). So after a few the queue is asked for one
more message: it answers when it has taken them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from aiormq.exceptions import ChannelAccessRefused, ChannelClosed, ChannelLockedResource, ChannelNotFoundEntity

from workqueue.amqp.connection import Link
from workqueue.amqp.direct import DirectLane
from workqueue.amqp.frames import Arrival
from workqueue.amqp.handshake import GONE, lost, place, words
from workqueue.amqp.lane import Declaration, Lane
from workqueue.errors import BrokerRefused, BrokerUnreachable, WorkQueueError
from workqueue.settings import Settings

log = logging.getLogger(__name__)

LOCK_WAIT_S = 30.0  # for the one who holds the queue now: reading 100,000 messages takes some seconds
LOCK_AGAIN_S = 0.2
MANY = 2_000  # are asked for at a time, by one more consumer; 0 for all of them a quorum queue takes for 2,000 too
CONSUMERS = 16  # at most. What more than 32 of one channel held comes back, on RabbitMQ 3.10, in an order that the node
# forgets at its restart: acks then count for other messages, and those are lost. Each get is a consumer too.
MOST = 65_535  # that AMQP can ask for
FEW = 200
FEW_ACKS = 24
BACK_S = 3.0  # for a queue to have again what goes back to it: some milliseconds, on a node that has time
BACK_AGAIN_S = 0.005
SILENT_S = 10.0  # a broker that delivers nothing for so long, of what it said is there, has no more


class QueueMissing(WorkQueueError):
    """There is no such queue on the broker."""

    exit_code = 2

    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue {queue!r} on this broker; a worker or a producer declares it at its start")
        self.queue = queue


class QueueHeld(WorkQueueError):
    """Somebody else looks through the queue, and does not end."""

    exit_code = 3

    def __init__(self, queue: str, waited_s: float) -> None:
        super().__init__(f"somebody else has held {queue!r} for {waited_s:g} s; ask them to end, or try again")
        self.queue = queue


class Held:
    """The messages of a queue that were ready when it was opened; iterate once. What is not settled goes back."""

    def __init__(self, lane: DirectLane, queue: str, ready: int) -> None:
        self._lane, self._queue, self.ready = lane, queue, ready
        self.read = self._asked = self._acks = self._delivered = self._removed = 0
        self._step = max(MANY, -(-ready // CONSUMERS))
        self._arrived: deque[Arrival] = deque()
        self._more, self._settling = asyncio.Event(), asyncio.Lock()
        self._ended = False

    def deliver(self, arrived: Arrival | None) -> None:
        if arrived is None:
            self._ended = True
        else:
            self._delivered += 1
            self._arrived.append(arrived)
        self._more.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Arrival:
        """Raises BrokerUnreachable when the connection was lost."""
        if self.read >= self.ready:
            raise StopAsyncIteration
        if not self.is_open:  # what came before could not be settled any more
            raise self._lost()
        if self._asked < self.ready and len(self._arrived) < FEW:
            await self._ask()
        while not self._arrived:
            if not self.is_open:
                raise self._lost()
            self._more.clear()
            try:
                async with asyncio.timeout(SILENT_S):
                    await self._more.wait()
            except TimeoutError:
                log.warning(
                    "%d of the %d messages in %s did not come within %g s: somebody else has them, or they are gone",
                    self.ready - self.read, self.ready, self._queue, SILENT_S,
                )  # fmt: skip
                raise StopAsyncIteration from None
        self.read += 1
        arrived = self._arrived.popleft()
        if self.read % FEW == 0:
            await asyncio.sleep(0)  # heartbeats, confirms, an interruption
        return arrived

    @property
    def is_open(self) -> bool:
        """Whether what is held can still be settled."""
        return not self._ended and self._lane.is_open

    @property
    def untaken(self) -> int:
        """How many are done, and may not be removed yet."""
        return self._acks

    async def done(self, arrived: Arrival) -> None:
        """Remove it from the queue. Raises BrokerUnreachable when the connection was lost: it may go back then."""
        async with self._settling:
            try:
                self._lane.settle(arrived.tag, "ack")
            except ConnectionError as error:
                raise self._lost() from error
            self._acks += 1
            self._removed += 1
            if self._acks == FEW_ACKS:
                await self._taken()

    async def give_back(self, looks: Lane) -> None:
        """Let all go back that is not done, and return once the queue has it again: who looks before that finds
        nothing. Of no use where others take from the queue; given up after BACK_S."""
        await self._lane.close()
        with suppress(TimeoutError, *GONE):
            async with asyncio.timeout(BACK_S):
                while (await looks.look(self._queue)).messages < self._delivered - self._removed:  # noqa: ASYNC110
                    await asyncio.sleep(BACK_AGAIN_S)

    async def end(self) -> None:
        """Return once all are removed that are done. Raises as `done`."""
        async with self._settling:
            if self._acks:
                await self._taken()

    async def _taken(self) -> None:
        """Wait until the queue has taken the acks. What it gives goes back at once: it comes again, to the consumer."""
        try:
            with lost():
                given = await self._lane.channel.basic_get(self._queue)
            self._acks = 0
            if given.delivery_tag:
                self._lane.settle(given.delivery_tag, "requeue")
        except GONE as error:
            raise self._lost() from error

    async def _ask(self) -> None:
        tag, most_bytes = f"{self._queue}.desk.{self._asked}", self._lane.most_bytes
        self._asked += self._step
        try:
            await self._lane.consume(self._queue, tag, min(self._step, MOST), self.deliver, most_bytes)
        except ChannelAccessRefused as error:
            way_out = "let the user read it: rabbitmqctl set_permissions"
            raise BrokerRefused(f"queue {self._queue!r} can't be read", 403, words(error), way_out) from error
        except GONE as error:
            raise self._lost() from error

    def _lost(self) -> BrokerUnreachable:
        return BrokerUnreachable(place(self._lane.connection.url), self._lane.cause or "the connection was lost")


@asynccontextmanager
async def for_itself(settings: Settings, queue: str, name: str, *checks: Declaration) -> AsyncIterator[None]:
    """Have the queue for itself among all that ask for that, for the length of the block. `checks` are made first.

    Raises QueueHeld when somebody else has it for long, BrokerUnreachable, and as `checks`.
    """
    link = Link(settings, f"{name} locks", *checks)
    try:
        lane = await link.open()
        try:
            async with asyncio.timeout(LOCK_WAIT_S):
                await _lock(lane, queue)
        except TimeoutError:
            raise QueueHeld(queue, LOCK_WAIT_S) from None
        except GONE as error:
            raise BrokerUnreachable(place(lane.connection.url), words(error)) from error
        yield
    finally:
        await link.end()


@asynccontextmanager
async def hold(settings: Settings, queue: str, name: str) -> AsyncIterator[Held]:
    """Hold all that is ready in the queue, for the length of the block. Raises QueueMissing, BrokerUnreachable."""
    link = Link(settings, name)
    try:
        looks = await link.open()
        try:
            depth = await looks.look(queue)
            lane = await link.another()
            assert isinstance(lane, DirectLane)
        except ChannelNotFoundEntity as error:
            raise QueueMissing(queue) from error
        except ChannelLockedResource as error:
            way_out = "it is another connection's own; close that: rabbitmqctl list_queues name exclusive owner_pid"
            raise BrokerRefused(f"queue {queue!r} can't be looked at", 405, words(error), way_out) from error
        except GONE as error:
            raise BrokerUnreachable(place(looks.connection.url), words(error)) from error
        held = Held(lane, queue, depth.messages)
        try:
            yield held
            await held.end()
        finally:
            if not depth.consumers:
                await held.give_back(looks)
    finally:
        await link.end()


async def _lock(lane: Lane, queue: str) -> None:
    """Wait until nobody else holds the queue. A user who may not declare goes without."""
    while True:
        with lost():
            channel = await lane.connection.channel(publisher_confirms=False)
            try:
                await channel.queue_declare(f"{queue}.desk", exclusive=True, auto_delete=True)
            except ChannelLockedResource:
                await asyncio.sleep(LOCK_AGAIN_S)
            except (ChannelAccessRefused, ChannelClosed):
                return
            else:
                await channel.close()
                return
