"""What the consumers of one queue share: their connections, and what is found out about the queue."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress

from workqueue.amqp.connection import Link
from workqueue.amqp.lane import Depth, Lane, NoChannelLeft
from workqueue.errors import WorkQueueError

log = logging.getLogger(__name__)

FRESH_S = 0.5  # for which a look is good for those who ask after it
SAME_S = 5.0  # within which the same is said once, however many consumers find it


class Links:
    """The connections of one queue's consumers, for the worker `name`: one, with a channel for each consumer, and
    further ones where the broker allows too few channels on one. `make` makes them.

    They can't share a channel: what more than 32 consumers of one held comes back, on RabbitMQ 3.10, in an order that
    the node forgets at its restart, and acks then count for other messages (24 of 50 lost, seen with 100). The price is
    that a node which is killed gives a message to one dead channel after the other, each a delivery.

    A queue has its own, so that one whose leader can't be reached, and whose consumers therefore move to another node,
    leaves the others alone. `busy` are the consumers that have a message of it in hand.
    """

    def __init__(self, name: str, queue: str, make: Callable[[], Link]) -> None:
        self._name, self._queue, self._make = name, queue, make
        self._links = [make()]
        self.busy = set[object]()
        self.proving, self.proved_s = asyncio.Lock(), -math.inf
        self._looks: dict[Link, tuple[float, asyncio.Future[Depth]]] = {}
        self._said: dict[str, float] = {}

    async def open(self) -> None:
        """Connect. Raises as `Link.open`."""
        await self._links[0].open()

    @property
    def is_open(self) -> bool:
        return any(link.is_open for link in self._links)

    @property
    def away(self) -> str:
        """That no broker could be reached, and why; empty where one is there, or was not tried since it was lost."""
        failure = self._links[0].failure
        if self.is_open or failure is None:
            return ""
        return f"the broker is out of reach: {failure.tried}: {failure.cause}"

    async def open_again(self) -> None:
        """Connect by one try, if the connection was lost. What refuses it the consumers are told, once they want it."""
        with suppress(WorkQueueError):
            await self._links[0].open_again()

    async def channel(self) -> tuple[Link, Lane]:
        """A channel for one consumer, to be closed by it, and the connection it is on. Raises as `Link.lane`, and what
        a lost connection raises."""
        for link in self._links:
            with suppress(NoChannelLeft):
                return link, await link.another()
        link = self._make()
        self._links.append(link)
        return link, await link.another()  # a new one has room for one, and is asked by nobody before

    async def look(self, link: Link) -> Depth:
        """How deep the queue is. All who ask at a time are answered by one look. Raises as `Link.lane`, and what a lost
        connection raises."""
        now_s = time.monotonic()
        looked_s, looking = self._looks.get(link, (-math.inf, None))
        if looking is None or now_s - looked_s > FRESH_S:
            looking = asyncio.ensure_future(self._look(link))
            looking.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._looks[link] = now_s, looking
        return await asyncio.shield(looking)

    async def _look(self, link: Link) -> Depth:
        return await (await link.lane()).look(self._queue)

    def say(self, what: str) -> None:
        """Tell it once, however many consumers it happens to."""
        now_s = time.monotonic()
        self._said = {said: when_s for said, when_s in self._said.items() if now_s - when_s < SAME_S}
        if what not in self._said:
            self._said[what] = now_s
            log.warning("%s  %s", self._name, what)
