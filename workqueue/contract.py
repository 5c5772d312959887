"""The contract as the runtime sees it: `contract.json` of a generated package, read into frozen records.

Pure but for `load`. Whatever the contract says about queues, messages and operations is taken from here, never
from a number or a name in the code.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from workqueue import kinds
from workqueue.errors import ContractInvalid


@dataclass(frozen=True)
class Queue:
    """A queue as it is declared (AMQP channel binding 0.3.0, `arguments` as RabbitMQ's x-arguments)."""

    name: str
    durable: bool
    exclusive: bool
    auto_delete: bool
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Rung:
    """A delay queue: what is published to it comes back to the tasks after `delay_s`."""

    queue: Queue
    delay_s: float


@dataclass(frozen=True)
class Message:
    """What the contract says of one message: its name, AMQP properties and limit, and its JSON Schemas (draft 07)."""

    name: str
    content_type: str
    type: str
    max_bytes: int
    schema: Mapping[str, Any]
    headers_schema: Mapping[str, Any]


@dataclass(frozen=True)
class Send:
    """A send operation: where its message goes and with which AMQP properties."""

    queue: Queue
    message: Message
    persistent: bool
    mandatory: bool
    timestamp: bool


@dataclass(frozen=True)
class Receive:
    """A receive operation: where its message comes from and what becomes of one that fails."""

    queue: Queue
    message: Message
    prefetch: int
    result_schema: Mapping[str, Any]
    result_max_bytes: int
    rungs: tuple[Rung, ...]
    dead: Queue
    dead_message_type: str
    dead_max_attempts: int
    """How many attempts the story of a dead letter may tell."""
    lease_s: float
    crash_limit: int
    tag: str | None
    """The property of a payload whose constant names its kind; None if nothing tells the kinds apart."""
    time_limits_s: Mapping[str | None, float]
    """By kind; `None` is for the kinds that state no limit of their own."""

    @cached_property
    def kind_of(self) -> Callable[[Any], str | None]:
        """From the model of a payload to its kind."""
        return kinds.naming(self.tag)

    def time_limit_s(self, payload: Any) -> float | None:
        """How long an attempt at this payload may take; None is for ever."""
        return self.time_limits_s.get(self.kind_of(payload), self.time_limits_s.get(None))

    @property
    def max_attempts(self) -> int:
        """The first attempt and one after each rung."""
        return len(self.rungs) + 1


@dataclass(frozen=True)
class Contract:
    """One application's contract: all the queues it declares, and its operations by the names of their queues."""

    version: str
    queues: tuple[Queue, ...]
    sends: Mapping[str, Send]
    receives: Mapping[str, Receive]


@cache
def load(package: str) -> Contract:
    """Read `contract.json` of a generated package, such as "generated.worker". Raises ContractInvalid."""
    try:
        return read(json.loads(files(package).joinpath("contract.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise ContractInvalid(f"{package}: no readable contract.json ({error}); run `make generate`") from error
    except KeyError as error:
        raise ContractInvalid(f"{package}: the contract does not state {error}; see spec/") from error


def read(document: Mapping[str, Any]) -> Contract:
    """Read a resolved AsyncAPI 3 document. Raises KeyError for what it does not state."""
    channels = {key: _queue(channel) for key, channel in document["channels"].items()}
    schemas = document["components"]["schemas"]
    sends, receives = {}, {}
    for operation in document["operations"].values():
        queue = _queue(operation["channel"])
        if len(operation["channel"]["messages"]) != 1:
            raise ContractInvalid(
                f"queue {queue.name} has {len(operation['channel']['messages'])} messages; say just one"
            )
        (message,) = operation["channel"]["messages"].values()
        amqp = operation["bindings"]["amqp"]
        if operation["action"] == "send":
            sends[queue.name] = Send(
                queue=queue,
                message=_message(message, schemas),
                persistent=amqp["deliveryMode"] == 2,
                mandatory=amqp["mandatory"],
                timestamp=amqp["timestamp"],
            )
            continue
        retry = operation["x-retry"]
        if not retry["rungs"]:
            raise ContractInvalid(f"queue {queue.name} has no rungs in x-retry; name one or more")
        result = operation["x-result"]
        receives[queue.name] = Receive(
            queue=queue,
            message=_message(message, schemas),
            prefetch=amqp["x-prefetch"],
            result_schema=_with_definitions(result, schemas),
            result_max_bytes=_target(result, schemas)["x-max-bytes"],
            rungs=tuple(sorted((_rung(channels[key]) for key in retry["rungs"]), key=lambda rung: rung.delay_s)),
            dead=channels[retry["deadLetter"]],
            dead_message_type=_type(next(iter(document["channels"][retry["deadLetter"]]["messages"].values()))),
            dead_max_attempts=_story(document["channels"][retry["deadLetter"]], schemas)["x-attempts"]["maxItems"],
            lease_s=float(operation["x-lease-s"]),
            crash_limit=operation["x-crash-limit"],
            tag=kinds.payload_tag(kinds.field(message["payload"], "payload", schemas) or {}, schemas),
            time_limits_s=kinds.time_limits_s(message["payload"], schemas),
        )
    return Contract(document["info"]["version"], tuple(channels.values()), sends, receives)


def _queue(channel: Mapping[str, Any]) -> Queue:
    queue = channel["bindings"]["amqp"]["queue"]
    return Queue(queue["name"], queue["durable"], queue["exclusive"], queue["autoDelete"], queue["arguments"])


def _story(channel: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """The headers of a dead letter, by name."""
    (message,) = channel["messages"].values()
    headers: Mapping[str, Any] = _target(message["headers"], schemas)["properties"]
    return headers


def _rung(queue: Queue) -> Rung:
    return Rung(queue, queue.arguments["x-message-ttl"] / 1000)


def _message(message: Mapping[str, Any], schemas: Mapping[str, Any]) -> Message:
    return Message(
        name=message["name"],
        content_type=message["contentType"],
        type=_type(message),
        max_bytes=message["x-max-bytes"],
        schema=_with_definitions(message["payload"], schemas),
        headers_schema=_with_definitions(message["headers"], schemas),
    )


def _type(message: Mapping[str, Any]) -> str:
    return str(message["bindings"]["amqp"]["messageType"])


def _with_definitions(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema that stands alone: in draft 07 the siblings of a `$ref` are ignored, hence the `allOf`."""
    return {"allOf": [schema], "components": {"schemas": schemas}}


def _target(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
