"""The endpoints of generated applications, as the kernel asks for them."""

import asyncio
from collections.abc import Callable
from typing import Unpack

from asyncapi_python.kernel.endpoint.message import WireMessage
from asyncapi_python.kernel.wire import AbstractWireFactory, EndpointParams

from workqueue.amqp.connection import Link
from workqueue.amqp.consumer import Consumer, Fatal, Incoming
from workqueue.amqp.marker import Marked, Marker
from workqueue.amqp.publisher import Publisher
from workqueue.amqp.topology import Topology
from workqueue.codec import Body
from workqueue.contract import Contract, Message, Send
from workqueue.settings import Settings

Connect = Callable[..., Link]
"""Makes the connections: `Link`, or what takes its place in tests without a broker, with the same arguments."""


class Producer:
    """Sends what a generated application's send operation gives it, as the contract's binding says."""

    def __init__(self, link: Link, send: Send, name: str, contract: Contract, deadline_s: float) -> None:
        self._link, self._send = link, send
        self._publisher, self._deadline_s = Publisher(link, name), deadline_s
        self._headers = {"x-contract": contract.version}

    async def start(self) -> None:
        await self._link.open()

    async def send_batch(self, messages: list[WireMessage], *, address_override: str | None = None) -> None:
        """As `send`, for the kernel."""
        for message in messages:
            await self.send(message.payload)

    async def send(self, body: bytes, *, within_s: float | None = None) -> None:
        """Send an encoded message; `within_s` is WORKQUEUE_SEND_S unless given. See `Publisher.send` for what it
        guarantees and raises."""
        await self._publisher.send(
            self._send.queue,
            body,
            message_id=body.message_id if isinstance(body, Body) else None,
            message_type=self._send.message.type,
            content_type=self._send.message.content_type,
            headers=self._headers,
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
        connect: Connect = Link,
    ) -> None:
        self._settings, self._contract, self._name, self._fatal = settings, contract, name, fatal
        self._ledger, self._connect = ledger, connect
        self._topology = Topology(contract.queues, name)
        self._links: list[Link] = []
        self._consumers: list[Consumer] = []

    async def create_consumer(self, **params: Unpack[EndpointParams]) -> Consumer:
        tag = f"{self._name}.{len(self._consumers) + 1}"
        receive = self._contract.receives[_queue_name(params)]
        link = self._link(tag, self._marker(receive.queue.name, hold=True))
        consumer = Consumer(link, receive, tag, self._settings, self._fatal, joins=bool(self._consumers))
        self._consumers.append(consumer)
        return consumer

    async def create_producer(self, **params: Unpack[EndpointParams]) -> Producer:
        return self.producer(self._contract.sends[_queue_name(params)])

    def producer(self, send: Send) -> Producer:
        """For a send operation. On a connection of its own."""
        link = self._link(self._name, self._marker(send.queue.name, hold=False))
        return Producer(link, send, self._name, self._contract, self._settings.send_s)

    def publisher(self) -> Publisher:
        """For what a worker publishes. On a connection of its own, opened when it is first needed: the broker stops
        reading from one that publishes when memory or disk run out, and the acks of the consumers must get through
        (https://www.rabbitmq.com/docs/alarms)."""
        receives = self._contract.receives.values()
        ours = {name for receive in receives for name in declared_headers(receive.message)}
        return Publisher(self._link(f"{self._name} publishes"), self._name, restores=True, ours=ours)

    async def drain(self) -> None:
        await asyncio.gather(*(consumer.drain() for consumer in self._consumers))

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links))

    def _marker(self, queue: str, *, hold: bool) -> Marker | None:
        return None if self._ledger is None else Marker(queue, self._ledger, hold=hold)

    def _link(self, name: str, marker: Marker | None = None) -> Link:
        first = sum(self._name.encode()) + len(self._links)
        link = self._connect(self._settings, name, self._topology, marker, first=first)
        self._links.append(link)
        return link


def declared_headers(message: Message) -> set[str]:
    """The names of the headers that the contract declares for a message."""
    (schema,) = message.headers_schema["allOf"]
    while "$ref" in schema:
        schema = message.headers_schema["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return set(schema.get("properties", {}))


def _queue_name(params: EndpointParams) -> str:
    return str(params["channel"].bindings.amqp.queue.name)  # type: ignore[union-attr]  # read() has checked it
