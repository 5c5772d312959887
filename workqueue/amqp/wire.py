"""The endpoints of generated applications, as the kernel asks for them."""

import asyncio
from collections.abc import Mapping
from itertools import chain
from typing import Unpack

from asyncapi_python.kernel.endpoint.message import WireMessage
from asyncapi_python.kernel.wire import AbstractWireFactory, EndpointParams

from workqueue.amqp.connection import Connect, Link
from workqueue.amqp.consumer import Consumer, Fatal, Incoming
from workqueue.amqp.lane import Declaration
from workqueue.amqp.links import Links
from workqueue.amqp.marker import Marked, Marker
from workqueue.amqp.publisher import Publisher
from workqueue.amqp.topology import Topology
from workqueue.codec import Body
from workqueue.contract import Contract, Send
from workqueue.settings import Settings


class Producer:
    """Sends what a generated application's send operation gives it, as the contract's binding says."""

    def __init__(self, link: Link, publisher: Publisher, send: Send, contract: str, deadline_s: float) -> None:
        self._link, self._publisher, self._send = link, publisher, send
        self._headers, self._deadline_s = {"x-contract": contract}, deadline_s

    async def start(self) -> None:
        """Connect, if nothing that shares the connection has. Raises as `Link.open`."""
        if not self._link.is_open:
            await self._link.open()

    async def send_batch(self, messages: list[WireMessage], *, address_override: str | None = None) -> None:
        """As `send`, for the kernel."""
        for message in messages:
            await self.send(message.payload)

    async def send(
        self, body: bytes, *, within_s: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send an encoded message, with these headers beside the contract's; `within_s` is WORKQUEUE_SEND_S unless
        given. See `Publisher.send` for what it guarantees and raises."""
        await self._publisher.send(
            self._send.queue,
            body,
            message_id=body.message_id if isinstance(body, Body) else None,
            message_type=self._send.message.type,
            content_type=self._send.message.content_type,
            headers={**self._headers, **headers} if headers else self._headers,
            deadline_s=self._deadline_s if within_s is None else within_s,
            persistent=self._send.persistent,
            mandatory=self._send.mandatory,
            timestamp=self._send.timestamp,
        )

    async def stop(self) -> None:
        await self._link.close()


class Wire(AbstractWireFactory[WireMessage, Incoming]):
    """Makes the endpoints of generated applications. `name` tells in the broker's lists who this process is.

    With this process's `ledger`, others that use another one for the same queue are noticed, see `marker`.

    Opening a connection declares nothing. These do, on each connection that they open, before they use it:

    | who          | what                                                                                          |
    |--------------|-----------------------------------------------------------------------------------------------|
    | consumers    | the contract's queues; with a `ledger`, their queue's marker, which they keep alive           |
    | producers    | the contract's queues; with a `ledger`, the markers of theirs                                 |
    | a publisher  | the contract's queues; and once more each that has vanished when it publishes to it           |

    Connections begin at different brokers of AMQP_URI, those of one process in turn, and so do processes whose names
    count up (worker1, worker2). When the node with a quorum queue's leader falls silent, RabbitMQ 3 serves those who
    consume and publish by the other nodes within seconds, and nobody who comes to them then, for up to net_ticktime.
    """

    def __init__(
        self,
        settings: Settings,
        contract: Contract,
        name: str,
        fatal: Fatal,
        ledger: Marked | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._settings, self._contract, self._name, self._fatal = settings, contract, name, fatal
        self._ledger, self._connect = ledger, connect
        self._topology = Topology(contract.queues, name)
        self._links: list[Link] = []
        self._producing: tuple[Link, Publisher] | None = None
        self._consumers: list[Consumer] = []
        self._consuming: dict[str, Links] = {}
        self._paused = set[tuple[str, str]]()  # queues, each with whose wish that is

    async def create_consumer(self, **params: Unpack[EndpointParams]) -> Consumer:
        tag = f"{self._name}.{len(self._consumers) + 1}"
        receive = self._contract.receives[_queue_name(params)]
        links, joins = self._links_to(receive.queue.name), bool(self._consumers)
        consumer = Consumer(links, receive, tag, self._settings, self._fatal, joins=joins)
        if self._is_paused(receive.queue.name):
            await consumer.pause()
        self._consumers.append(consumer)
        return consumer

    async def create_producer(self, **params: Unpack[EndpointParams]) -> Producer:
        return self.producer(self._contract.sends[_queue_name(params)])

    def producer(self, send: Send) -> Producer:
        """For a send operation. All of a process's share a connection."""
        if self._producing is None:
            markers = [self._marker(one.queue.name, self._name, hold=False) for one in self._contract.sends.values()]
            link = self._link(self._name, self._topology.declare, *chain(*markers))
            self._producing = link, Publisher(link, self._name)
        return Producer(*self._producing, send, self._contract.version, self._settings.send_s)

    def publisher(self) -> Publisher:
        """For what a worker publishes. On a connection of its own, opened when it is first needed: the broker stops
        reading from one that publishes when memory or disk run out, and the acks of the consumers must get through
        (https://www.rabbitmq.com/docs/alarms)."""
        receives = self._contract.receives.values()
        ours = {name for receive in receives for name in receive.message.headers.get("properties", {})}
        link = self._link(f"{self._name} publishes", self._topology.declare)
        return Publisher(link, self._name, topology=self._topology, ours=ours)

    def not_consumed(self) -> dict[str, str]:
        """The queues from which this process takes no messages, nor would but for a pause, and why, empty where the
        broker is there. One whose consumers all have something in hand, of a session that is over, is taken from after
        that, if its broker is there."""
        return {
            queue: links.away for queue, links in sorted(self._consuming.items()) if not self._is_consumed(queue, links)
        }

    def _is_consumed(self, queue: str, links: Links) -> bool:
        consumers = [consumer for consumer in self._consumers if consumer.queue == queue]
        if any(consumer.is_consuming for consumer in consumers):
            return True
        return links.is_open and links.busy.issuperset(consumers)

    async def open_again(self) -> None:
        """Connect where a connection was lost and consumers are busy with what came by it: those that are not see to it
        themselves. So it is known whether the broker is there, and the queue keeps its marker, however long that is."""
        lost = [links for queue, links in self._consuming.items() if links.busy and not self._is_consumed(queue, links)]
        await asyncio.gather(*(links.open_again() for links in lost))

    async def pause(self, queue: str, by: str) -> None:
        """Take no message from the queue until all who have paused it have it resumed; what is in hand goes on."""
        self._paused.add((queue, by))
        await asyncio.gather(*(consumer.pause() for consumer in self._consumers if consumer.queue == queue))

    def resume(self, queue: str, by: str) -> None:
        self._paused.discard((queue, by))
        for consumer in self._consumers:
            if consumer.queue == queue and not self._is_paused(queue):
                consumer.resume()

    def _is_paused(self, queue: str) -> bool:
        return any(paused == queue for paused, _ in self._paused)

    async def drain(self) -> None:
        await asyncio.gather(*(consumer.drain() for consumer in self._consumers))

    async def close(self) -> None:
        await asyncio.gather(*(link.end() for link in self._links))

    def _links_to(self, queue: str) -> Links:
        name = f"{self._name} consumes {queue}"

        def make() -> Link:
            return self._link(name, self._topology.declare, *self._marker(queue, self._name, hold=True))

        if queue not in self._consuming:
            self._consuming[queue] = Links(self._name, queue, make)
        return self._consuming[queue]

    def _marker(self, queue: str, name: str, *, hold: bool) -> list[Declaration]:
        return [] if self._ledger is None else [Marker(queue, self._ledger, name, hold=hold).check]

    def _link(self, name: str, *declares: Declaration) -> Link:
        first = sum(self._name.encode()) + len(self._links)
        link = Link(self._settings, name, *declares, first=first, connect=self._connect)
        self._links.append(link)
        return link


def _queue_name(params: EndpointParams) -> str:
    return str(params["channel"].bindings.amqp.queue.name)  # type: ignore[union-attr]  # read() has checked it
