"""How the queues of a broker differ from those of the contract, found out by AMQP alone, with nothing changed.

A queue that exists is declared as the contract has it: the broker names the first argument that differs, with its own
value. So it is declared again with that value, until nothing differs. One that does not exist is not declared. What
AMQP shows to nobody: policies, messages that are with consumers, and the consumer timeout.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from aiormq.abc import AbstractConnection
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from workqueue.amqp.connection import Link
from workqueue.amqp.handshake import GONE, place, words
from workqueue.amqp.topology import Declaring
from workqueue.contract import Queue
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings

DIFFERS = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' .*but current is (?:none|the value '(?P<value>.*)' of type '(?P<type>\w+)'|"
    r"'(?P<property>.*)')"
)
PROPERTIES = frozenset({"durable", "exclusive", "auto_delete"})


@dataclass(frozen=True)
class Difference:
    """An argument, or a property, of a queue: None where it is not stated."""

    name: str
    contract: Any
    broker: Any


@dataclass(frozen=True)
class Compared:
    """A queue of the contract, and what the broker has: `exists` is None where it does not say.

    `unseen` is why no more could be found out, in the broker's words: what is in `differences` is true, and there may
    be others.
    """

    queue: Queue
    exists: bool | None
    differences: tuple[Difference, ...] = ()
    unseen: str | None = None


@dataclass(frozen=True)
class Server:
    """The broker that answered."""

    place: str
    product: str
    version: str


async def compare(settings: Settings, queues: Iterable[Queue], name: str) -> tuple[Server, list[Compared]]:
    """Compare each queue. Raises BrokerUnreachable."""
    link = Link(settings, name)
    try:
        connection = (await link.open()).connection
        declaring = Declaring(connection)
        try:
            found = [await _compare(declaring, queue) for queue in queues]
            await declaring.close()
        except GONE as error:
            raise BrokerUnreachable(place(connection.url), words(error)) from error
        return _server(connection), found
    finally:
        await link.end()


async def _compare(declaring: Declaring, queue: Queue) -> Compared:
    try:
        await declaring.look(queue.name)
    except ChannelNotFoundEntity:
        return Compared(queue, exists=False)
    except ChannelLockedResource as error:
        return Compared(queue, True, (Difference("exclusive", queue.exclusive, True),), words(error))
    except ChannelAccessRefused as error:
        return Compared(queue, exists=None, unseen=words(error))
    like, differences = queue, list[Difference]()
    while True:
        try:
            await declaring.declare(like, like.arguments)
        except ChannelPreconditionFailed as error:
            difference = _difference(queue, words(error))
            if difference is None or difference in differences:
                return Compared(queue, True, tuple(differences), words(error))
            differences.append(difference)
            like = _with(like, difference)
        except ChannelAccessRefused as error:
            return Compared(queue, True, tuple(differences), words(error))
        except ChannelLockedResource as error:
            return Compared(queue, True, (Difference("exclusive", queue.exclusive, True),), words(error))
        else:
            return Compared(queue, True, tuple(differences))


def _difference(queue: Queue, text: str) -> Difference | None:
    found = DIFFERS.search(text)
    if found is None:
        return None
    name, there = found["name"], _value(found)
    ours = getattr(queue, name) if name in PROPERTIES else queue.arguments.get(name)
    if isinstance(ours, int) and isinstance(there, str) and re.fullmatch(r"-?\d+", there):
        there = int(there)  # some arguments are told without their type
    return Difference(name, ours, there)


def _value(found: re.Match[str]) -> Any:
    if found["property"] is not None:
        return {"true": True, "false": False}.get(found["property"], found["property"])
    value, kind = found["value"], found["type"] or ""
    if value is None:
        return None
    if "int" in kind or kind in ("long", "short", "byte"):
        return int(value)
    return value == "true" if kind == "bool" else value


def _with(queue: Queue, difference: Difference) -> Queue:
    """The queue with the broker's value."""
    if difference.name in PROPERTIES:
        return replace(queue, **{difference.name: difference.broker})
    arguments = {name: value for name, value in queue.arguments.items() if name != difference.name}
    if difference.broker is not None:
        arguments[difference.name] = difference.broker
    return replace(queue, arguments=arguments)


def _server(connection: AbstractConnection) -> Server:
    told = getattr(connection, "server_properties", {})

    def text(name: str) -> str:
        value = told.get(name, "?")
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    return Server(place(connection.url), text("product"), text("version"))
