"""The endpoints of generated applications, as the kernel asks for them."""

import asyncio
from typing import Unpack

from asyncapi_python.kernel.endpoint.message import WireMessage
from asyncapi_python.kernel.wire import AbstractWireFactory, EndpointParams

from workqueue.amqp.connection import Link
from workqueue.amqp.consumer import Consumer, Fatal, Incoming
from workqueue.amqp.publisher import Publisher
from workqueue.codec import Body
from workqueue.contract import Contract, Send
from workqueue.settings import Settings


class Producer:
    """Sends what a generated application's send operation gives it, as the contract's binding says."""

    def __init__(self, link: Link, send: Send, name: str, contract: Contract, deadline_s: float) -> None:
        self._link, self._send = link, send
        self._publisher, self._deadline_s = Publisher(link, name), deadline_s
        self._headers = {"x-contract": contract.version}

    async def start(self) -> None:
        await self._link.open()

    async def send_batch(self, messages: list[WireMessage], *, address_override: str | None = None) -> None:
        """See `Publisher.send` for what it guarantees and raises."""
        for message in messages:
            body = message.payload
            await self._publisher.send(
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

    def publisher(self) -> Publisher:
        """For what a worker publishes. On a connection of its own, opened when it is first needed: the broker stops
        reading from one that publishes when memory or disk run out, and the acks of the consumers must get through
        (https://www.rabbitmq.com/docs/alarms)."""
        return Publisher(self._link(f"{self._name} publishes"), self._name)

    async def drain(self) -> None:
        await asyncio.gather(*(consumer.drain() for consumer in self._consumers))

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links))

    def _link(self, name: str) -> Link:
        link = Link(self._settings, name, self._contract.queues)
        self._links.append(link)
        return link


def _queue_name(params: EndpointParams) -> str:
    return str(params["channel"].bindings.amqp.queue.name)  # type: ignore[union-attr]  # read() has checked it
