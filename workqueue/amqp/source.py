"""What the consumers of one queue share: a connection, channels on it, and what is found out about the queue."""

import asyncio
import logging
import math
import time
from typing import Protocol

from workqueue.amqp.connection import Link
from workqueue.amqp.lane import Depth, Lane, NoChannelLeft

log = logging.getLogger(__name__)

FRESH_S = 0.5  # for which a look is good for those who ask after it
SAME_S = 5.0  # within which the same is said once, however many consumers find it


class Member(Protocol):
    """A consumer of the queue."""

    async def move(self) -> None:
        """Leave its channel once what was delivered to it is handled, and join another one."""


class Source:
    """A queue as the consumers of the worker `name` have it: on one connection, and on one channel.

    When a connection ends, RabbitMQ ends its channels one after the other, and gives what was delivered on one that has
    ended to the next, as long as that has not. Each time counts as a delivery: with a hundred channels, a node that is
    killed makes up to a hundred of one message (measured on 3.10), and drops it at the queue's `x-delivery-limit`. What
    all of one channel have goes back at once.

    A consumer that comes back alone does so on a new channel, where those who come back after it join it: if it is
    refused, the others go on as they are. A queue has a connection of its own, so that one whose leader can't be
    reached, and whose consumers therefore move to another node, leaves the others alone. `in_hand` is how many of its
    messages are handled now.
    """

    def __init__(self, name: str, queue: str, link: Link) -> None:
        self._name, self._queue, self._link = name, queue, link
        self.in_hand = 0
        self.proving, self.proved_s = asyncio.Lock(), -math.inf
        self._lane: Lane | None = None
        self._joining = asyncio.Lock()
        self._joined: dict[Lane, set[Member]] = {}
        self._looked_s = -math.inf
        self._looking: asyncio.Future[Depth] | None = None
        self._said: dict[str, float] = {}

    async def open(self) -> None:
        """Connect. Raises as `Link.open`."""
        await self._link.open()

    async def join(self, who: Member, before: Lane | None) -> Lane:
        """A channel for a consumer that was on the one `before`, to be left by it. Raises as `Link.lane`, and what a
        lost connection raises."""
        async with self._joining:
            if self._lane is None or self._lane is before or not self._lane.is_open:
                self._lane = await self._another()
            self._joined.setdefault(self._lane, set()).add(who)
            return self._lane

    async def leave(self, who: Member, lane: Lane) -> None:
        """The last one to leave a channel closes it, which gives what was delivered there and not settled back."""
        self._joined[lane].remove(who)
        if not self._joined[lane]:
            del self._joined[lane]
            if self._lane is lane:
                self._lane = None
            await lane.close()

    async def move(self, lane: Lane) -> None:
        """Have all leave a channel."""
        await asyncio.gather(*(who.move() for who in self._joined[lane]))

    async def look(self) -> Depth:
        """How deep the queue is. All who ask at a time are answered by one look. Raises as `Link.lane`, and what a lost
        connection raises."""
        now_s = time.monotonic()
        if self._looking is None or now_s - self._looked_s > FRESH_S:
            self._looked_s, self._looking = now_s, asyncio.ensure_future(self._look())
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Depth:
        return await (await self._link.lane()).look(self._queue)

    async def _another(self) -> Lane:
        try:
            return await self._link.another()
        except NoChannelLeft as error:  # each of those there are has a consumer that came back alone
            (await self._link.lane()).abort("the broker allows no further channel")
            raise ConnectionError("the broker allows no further channel") from error

    def say(self, what: str) -> None:
        """Tell it once, however many consumers it happens to."""
        now_s = time.monotonic()
        self._said = {said: when_s for said, when_s in self._said.items() if now_s - when_s < SAME_S}
        if what not in self._said:
            self._said[what] = now_s
            log.warning("%s  %s", self._name, what)
