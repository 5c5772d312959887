"""Faults of the broker and of the network before it."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.house import SETTLE_S, House
from workqueue.testing.chaos.load import make_task, nap
from workqueue.testing.chaos.plan import Fault
from workqueue.testing.chaos.producing import Producer
from workqueue.testing.processes import until
from workqueue.testing.proxy import Direction, Flow, Proxy

HELD_BYTES = 21  # of a frame with an ack or a confirm; a heartbeat has 8
HELD_WITHIN_S = 6.0  # after a broker was away, a producer may sleep this long before it comes back
HANDSHAKE_S = 0.5  # a younger connection may have no more to lose than this


class Broker:
    def __init__(self, house: House, producers: Mapping[str, Producer], book: Book, rng: random.Random) -> None:
        self._house, self._producers, self._book, self._rng = house, producers, book, rng
        self.by_kind = {
            "broker restarted": self._restart,
            "broker killed": self._kill,
            "publishers blocked": self._block,
            "connections cut": self._cut_all,
            "network stalled": self._stall_network,
            "cut between publish and confirm": self._cut_before_confirm,
            "cut between effect and ack": self._cut_before_ack,
            "cut between copy and ack": self._cut_after_copy,
        }

    async def _restart(self, fault: Fault) -> bool:
        await self._interrupt(self._house.node.stop, fault.seconds)
        return True

    async def _kill(self, fault: Fault) -> bool:
        await self._interrupt(self._house.node.kill, fault.seconds)
        return True

    async def _interrupt(self, end: Callable[[], None], seconds: float) -> None:
        async with self._house.broker_lock:
            if self._house.deleted:
                await self._have_old_queues()
            async with self._book.unusable():
                await asyncio.to_thread(end)
                await asyncio.sleep(seconds)
                await asyncio.to_thread(self._house.node.start)
                self._house.broker_began = time.monotonic()

    async def _have_old_queues(self) -> None:
        """Have every queue be there for a while: a quorum queue younger than a second may come back without a leader,
        for good, from a SIGKILL of its node (RabbitMQ 3.10)."""
        async with self._house.direct.amqp() as channel:
            for queue in self._house.deleted:
                await channel.declare_queue(queue.name, durable=queue.durable, arguments=dict(queue.arguments))
        self._house.deleted.clear()
        await asyncio.sleep(SETTLE_S)

    async def _block(self, fault: Fault) -> bool:
        async with self._house.broker_lock, self._book.unusable():
            try:
                await asyncio.to_thread(self._house.node.ctl, "set_vm_memory_high_watermark", "0.0000001")
                await asyncio.sleep(fault.seconds)
            finally:
                await asyncio.to_thread(self._house.node.ctl, "set_vm_memory_high_watermark", "0.4")
        return True

    async def _cut_all(self, fault: Fault) -> bool:
        async with self._house.broker_lock:
            with suppress(AssertionError):
                await until(lambda: self._house.proxy.flows, "somebody is connected", HELD_WITHIN_S)
            return self._house.proxy.cut_all() > 0

    async def _stall_network(self, fault: Fault) -> bool:
        async with self._house.network_lock:
            await stall(self._house.proxy, fault.seconds, self._book)
        return True

    async def _cut_before_confirm(self, fault: Fault) -> bool:
        return await self._cut_while_held(r"producer-\d+", lambda flow: flow.to_client, fault.seconds)

    async def _cut_before_ack(self, fault: Fault) -> bool:
        return await self._cut_while_held(rf"worker{fault.worker}\.\d+", lambda flow: flow.to_broker, fault.seconds)

    async def _cut_after_copy(self, fault: Fault) -> bool:
        settings, operation = self._house.settings, fault.operation
        if settings.own:  # so that there are copies
            failing = nap(failures=1, kind=settings.nap)
            self._producers[operation].more.extend(make_task(self._rng, failing, operation) for _ in range(6))
        return await self._cut_while_held(r"worker\d publishes", lambda flow: flow.to_client, fault.seconds)

    async def _cut_while_held(self, name: str, way: Callable[[Flow], Direction], seconds: float) -> bool:
        """Hold back what goes this way on these connections, until there is something, and a little longer; then cut
        them. False: there was nothing."""
        async with self._house.broker_lock, self._house.network_lock:
            deadline = time.monotonic() + HELD_WITHIN_S
            flows: list[Flow] = []
            while not any(way(flow).held >= HELD_BYTES for flow in flows) and time.monotonic() < deadline:
                flows = [f for f in self._house.proxy.named(name) if time.monotonic() - f.opened > HANDSHAKE_S]
                for flow in flows:
                    way(flow).open.clear()
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            hit = any(way(flow).held >= HELD_BYTES for flow in flows)
            for flow in flows:
                flow.cut()
            return hit


async def stall(proxy: Proxy, seconds: float, book: Book) -> None:
    """Pass nothing on for so long."""
    async with book.unusable():
        proxy.stall()
        try:
            await asyncio.sleep(seconds)
        finally:
            proxy.resume()
