"""The contract's queues on the broker: declared, or looked at where we may not declare."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from yarl import URL

from workqueue.amqp.handshake import lost, place, words
from workqueue.amqp.lane import Depth
from workqueue.contract import Queue
from workqueue.errors import BrokerRefused, ContractInvalid

log = logging.getLogger(__name__)

LIMIT = "x-delivery-limit"
BROKERS_LIMIT = 20  # of a quorum queue that states none, from RabbitMQ 4 on
LIMIT_DIFFERS = re.compile(rf"inequivalent arg '{LIMIT}' .* current is (?:none|(?:the value )?'(\d+)')")


class Topology:
    """Declares the contract's queues on one connection after the other; `name` is for what it says, each thing once.

    Each queue is declared actively, so that one which exists with other properties is found at once. Two things are
    tolerated, and said: the user may not declare, but the queue exists; and a queue of an older contract, with another
    delivery limit. A low one drops good messages: a dead letter that was looked at too often, a task that many idle
    consumers lost one after the other as their node died.
    """

    def __init__(self, queues: Iterable[Queue], name: str) -> None:
        self._queues, self._name = tuple(queues), name
        self._said: set[str] = set()

    async def declare(self, connection: AbstractConnection) -> None:
        """Declare all queues. Raises ContractInvalid, BrokerRefused, and what a lost connection raises."""
        await self._declare(connection, self._queues)

    async def restore(self, connection: AbstractConnection, queue: Queue) -> None:
        """Declare one that has vanished. Raises as `declare`."""
        await self._declare(connection, (queue,))

    async def _declare(self, connection: AbstractConnection, queues: Iterable[Queue]) -> None:
        declaring, unchecked = Declaring(connection), []
        for queue in queues:
            try:
                await declaring.declare(queue, queue.arguments)
            except ChannelAccessRefused as error:
                unchecked.append(queue.name)
                await self._look(connection, declaring, queue, error)
            except ChannelPreconditionFailed as error:
                if "limit" in words(error) and "reached" in words(error):  # of queues in the vhost
                    raise BrokerRefused(place(connection.url), 406, words(error), "raise the limit") from error
                await self._tolerate(connection, declaring, queue, error)
            except ChannelLockedResource as error:
                raise _differs(connection, error) from error
        if unchecked:
            user, names = connection.url.user, ", ".join(unchecked)
            self._say(f"user {user!r} may not declare queues: what is declared of {names} is unchecked")
        await declaring.close()

    async def _look(
        self, connection: AbstractConnection, declaring: "Declaring", queue: Queue, refusal: ChannelClosed
    ) -> None:
        try:
            await declaring.look(queue.name)
        except ChannelNotFoundEntity as error:
            url = connection.url
            way_out = (
                f"have it declared, or let {url.user} do it: rabbitmqctl set_permissions -p {_vhost(url)} {url.user} "
                "<configure> <write> <read>"
            )
            text = f"there is no queue {queue.name!r}, and it may not be declared: {words(refusal)}"
            raise BrokerRefused(place(connection.url), 403, text, way_out) from error
        except ChannelLockedResource as error:
            raise _differs(connection, error) from error

    async def _tolerate(
        self, connection: AbstractConnection, declaring: "Declaring", queue: Queue, refusal: ChannelClosed
    ) -> None:
        differs = LIMIT_DIFFERS.search(words(refusal))
        if differs is None:
            raise _differs(connection, refusal) from refusal
        limit = int(differs[1]) if differs[1] else None
        there: dict[str, Any] = {name: value for name, value in queue.arguments.items() if name != LIMIT}
        try:
            await declaring.declare(queue, there if limit is None else there | {LIMIT: limit})  # the only difference
        except ChannelClosed as error:
            raise _differs(connection, error) from error
        has = f"queue {queue.name!r} was declared " + (
            f"without the contract's {LIMIT}" if limit is None else f"with {LIMIT} {limit}, not as the contract has it"
        )
        if is_low(limit, queue):
            self._say(f"{has}; it is used as it is, no policy raises that, and `workqueue plan` has the steps")
        else:
            self._say(f"{has}; unless a policy says it, run: {limit_policy(queue, _vhost(connection.url))}")

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s  %s", self._name, what)


class Declaring:
    """A channel for declaring, a new one after each refusal: that closes the one it is given on."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._channel: AbstractChannel | None = None

    async def declare(self, queue: Queue, arguments: Mapping[str, Any]) -> None:
        await self._ask(
            queue.name,
            durable=queue.durable,
            exclusive=queue.exclusive,
            auto_delete=queue.auto_delete,
            arguments=dict(arguments),
        )

    async def look(self, queue: str) -> Depth:
        told = await self._ask(queue, passive=True)
        return Depth(told.message_count or 0, told.consumer_count or 0)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _ask(self, name: str, **how: Any) -> Any:
        with lost():
            if self._channel is None:
                self._channel = await self._connection.channel(publisher_confirms=False)
            try:
                told = await self._channel.queue_declare(name, **how)
            except ChannelClosed:
                self._channel = None
                raise
        return told


def _differs(connection: AbstractConnection, error: ChannelClosed) -> ContractInvalid:
    return ContractInvalid(
        f"a queue at {place(connection.url)} is not what the contract declares: {words(error)}; "
        "change spec/, or delete the queue there, and with it all that is in it; `workqueue plan` tells what differs"
    )


def is_low(limit: int | None, queue: Queue) -> bool:
    """Whether the delivery limit that a queue was declared with is lower than the contract's: of an argument and a
    policy RabbitMQ takes the lower one (seen on 4.0), so that only a new queue gets a higher one."""
    return limit is not None and limit < queue.arguments.get(LIMIT, math.inf)


def limit_policy(queue: Queue, vhost: str) -> str:
    """The command that gives a queue of an older contract the delivery limit that it lacks."""
    return (
        f"rabbitmqctl set_policy -p {vhost} {queue.name} '^{re.escape(queue.name)}$' "
        f"'{{\"delivery-limit\":{queue.arguments[LIMIT]}}}' --apply-to queues"
    )


def _vhost(url: URL) -> str:
    return url.path[1:] or "/"
