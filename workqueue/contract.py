"""The contract as the runtime sees it: `contract.json` of a generated package, read into frozen records.

Pure but for `load`. Whatever the contract says about queues, messages and operations is taken from here, never
from a number or a name in the code.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
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
    """What the contract says of one message: its model's name, AMQP properties and limit, and its JSON Schemas (draft
    07), each of which stands alone."""

    name: str
    content_type: str
    type: str
    max_bytes: int
    schema: Mapping[str, Any]
    headers_schema: Mapping[str, Any]
    fields: frozenset[str]
    """Of the envelope: a JSON object with all of `required` is a whole task, any other is a payload."""
    required: frozenset[str]
    result_schema: Mapping[str, Any] | None
    """Of what a handler returns. None if the contract does not say, as it need not to those who only send."""
    result_max_bytes: int | None

    @property
    def headers(self) -> Mapping[str, Any]:
        """The schema of the headers itself, with no reference in its place."""
        schema: Mapping[str, Any]
        (schema,) = self.headers_schema["allOf"]
        while "$ref" in schema:
            schema = self.headers_schema["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema


@dataclass(frozen=True)
class Send:
    """A send operation: where its message goes and with which AMQP properties."""

    operation: str
    queue: Queue
    message: Message
    persistent: bool
    mandatory: bool
    timestamp: bool
    tag: str | None
    kinds: frozenset[str]
    """As in `Receive`."""

    @cached_property
    def kind_of(self) -> Callable[[Any], str | None]:
        """From the model of a payload to its kind."""
        return kinds.naming(self.tag)


@dataclass(frozen=True)
class Receive:
    """A receive operation: where its message comes from and what becomes of one that fails."""

    operation: str
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
    kinds: frozenset[str]
    """As lines and the ledger have them."""
    time_limits_s: Mapping[str | None, float]
    """By kind; `None` is for the kinds that state no limit of their own."""

    @cached_property
    def kind_of(self) -> Callable[[Any], str | None]:
        """From the model of a payload to its kind."""
        return kinds.naming(self.tag)

    def time_limit_s(self, kind: str | None) -> float | None:
        """How long an attempt at a payload of this kind may take; None is for ever."""
        return self.time_limits_s.get(kind, self.time_limits_s.get(None))

    @property
    def max_attempts(self) -> int:
        """The first attempt and one after each rung."""
        return len(self.rungs) + 1


@dataclass(frozen=True)
class Contract:
    """One application's contract: all the queues it declares, and its operations by the names of their queues."""

    version: str
    digest: str
    """Of all that the contract says: two processes with the same one were compiled from the same words."""
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
    except ContractInvalid as error:
        raise ContractInvalid(f"{package}: {error}") from error


def read(document: Mapping[str, Any]) -> Contract:
    """Read a resolved AsyncAPI 3 document, which `make generate` has checked. Raises ContractInvalid for one that it
    would have refused."""
    try:
        return _Reader(document).contract()
    except KeyError as error:
        raise ContractInvalid(f"the contract does not state {error}; run `make generate`, which says where") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ContractInvalid(f"the contract is not what `make generate` makes ({error})") from error


class _Reader:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document, self._channels = document, document["channels"]
        self._schemas: Mapping[str, Any] = document["components"]["schemas"]

    def contract(self) -> Contract:
        sends: dict[str, Send] = {}
        receives: dict[str, Receive] = {}
        for name, operation in self._document["operations"].items():
            made = self._send(name, operation) if operation["action"] == "send" else self._receive(name, operation)
            known: Mapping[str, Send | Receive] = sends if isinstance(made, Send) else receives
            if made.queue.name in known:
                other = known[made.queue.name].operation
                raise ContractInvalid(f"{other} and {name} are on the same queue, {made.queue.name}; keep one")
            if isinstance(made, Send):
                sends[made.queue.name] = made
            else:
                receives[made.queue.name] = made
        queues = tuple(_queue(channel) for channel in self._channels.values())
        said = json.dumps(self._document, sort_keys=True).encode()
        digest = blake2b(said, digest_size=6).hexdigest()
        return Contract(self._document["info"]["version"], digest, queues, sends, receives)

    def _send(self, name: str, operation: Mapping[str, Any]) -> Send:
        channel, amqp = self._channel(operation), operation["bindings"]["amqp"]
        return Send(
            operation=name,
            queue=_queue(channel),
            message=self._message(_only(channel)),
            persistent=amqp["deliveryMode"] == 2,
            mandatory=amqp["mandatory"],
            timestamp=amqp["timestamp"],
            tag=self._tag(_only(channel)),
            kinds=kinds.names(self._payload(_only(channel)), self._schemas),
        )

    def _receive(self, name: str, operation: Mapping[str, Any]) -> Receive:
        channel, dead_letters = self._channel(operation), self._channel(operation["x-deadLetter"])
        message, payload = self._message(_only(channel)), _only(channel)["payload"]
        routes = operation["x-retry"]["channels"]
        if not routes:
            raise ContractInvalid(f"{name} has no channels in x-retry; name one or more")
        if message.result_schema is None or message.result_max_bytes is None:
            raise KeyError("x-result")
        return Receive(
            operation=name,
            queue=_queue(channel),
            message=message,
            prefetch=operation["bindings"]["amqp"]["x-prefetch"],
            result_schema=message.result_schema,
            result_max_bytes=message.result_max_bytes,
            rungs=tuple(_rung(_queue(self._named(route))) for route in routes),
            dead=_queue(dead_letters),
            dead_message_type=_type(_only(dead_letters)),
            dead_max_attempts=self._story(_only(dead_letters))["x-attempts"]["maxItems"],
            lease_s=float(operation["x-lease-s"]),
            crash_limit=int(operation["x-crash-limit"]),
            tag=self._tag(_only(channel)),
            kinds=kinds.names(self._payload(_only(channel)), self._schemas),
            time_limits_s=kinds.time_limits_s(payload, self._schemas),
        )

    def _tag(self, message: Mapping[str, Any]) -> str | None:
        return kinds.payload_tag(self._payload(message), self._schemas)

    def _payload(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return kinds.field(message["payload"], "payload", self._schemas) or {}

    def _message(self, message: Mapping[str, Any]) -> Message:
        envelope, result = self._target(message["payload"]), message.get("x-result")
        return Message(
            name=message["name"],
            content_type=message["contentType"],
            type=_type(message),
            max_bytes=message["x-max-bytes"],
            schema=self._alone(message["payload"]),
            headers_schema=self._alone(message["headers"]),
            fields=frozenset(self._said(envelope, "properties")),
            required=frozenset(self._said(envelope, "required")),
            result_schema=None if result is None else self._alone(result),
            result_max_bytes=None if result is None else self._target(result)["x-max-bytes"],
        )

    def _said(self, schema: Mapping[str, Any], key: str) -> list[str]:
        """The names under this key of an object's schema, and of what its `allOf` adds."""
        below = (self._said(self._target(part), key) for part in schema.get("allOf", ()))
        return [*schema.get(key, ()), *(name for names in below for name in names)]

    def _story(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The headers of a dead letter, by name."""
        headers = self._target(message["headers"])["properties"]
        return {name: self._target(schema) for name, schema in headers.items()}

    def _channel(self, operation: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._named(operation["channel"])

    def _named(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._channels[reference["$ref"].rpartition("/")[2]]
        return found

    def _alone(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """A schema that stands alone: in draft 07 the siblings of a `$ref` are ignored, hence the `allOf`."""
        return {"allOf": [schema], "components": {"schemas": self._schemas}}

    def _target(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema


def _only(channel: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message of a channel, of which there is one."""
    messages = channel["messages"]
    if len(messages) != 1:
        queue = _queue(channel)
        raise ContractInvalid(f"queue {queue.name} has {len(messages)} messages; say just one")
    (message,) = messages.values()
    found: Mapping[str, Any] = message
    return found


def _queue(channel: Mapping[str, Any]) -> Queue:
    queue = channel["bindings"]["amqp"]["queue"]
    return Queue(queue["name"], queue["durable"], queue["exclusive"], queue["autoDelete"], queue["arguments"])


def _rung(queue: Queue) -> Rung:
    return Rung(queue, queue.arguments["x-message-ttl"] / 1000)


def _type(message: Mapping[str, Any]) -> str:
    return str(message["bindings"]["amqp"]["messageType"])
