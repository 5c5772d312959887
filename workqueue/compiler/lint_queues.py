"""What the queues of a receive operation must be to one another, so that no message loops or is lost."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from workqueue.amqp.arguments import can_be_sent
from workqueue.amqp.topology import BROKERS_LIMIT
from workqueue.compiler.documents import mapping
from workqueue.compiler.findings import Findings, channel_at, channel_of, shown

LOOKS = 1_000_000  # deliveries that a dead letter must stand: each look is one
MOVES = (
    *("x-message-ttl", "x-max-length", "x-max-length-bytes"),
    *("x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy"),
)
"""What makes a message leave a queue by itself."""
QUORUM_ONLY = ("x-dead-letter-strategy", "x-delivery-limit", "x-quorum-initial-group-size")


def binding(channel: Any) -> Mapping[str, Any]:
    amqp = mapping(mapping(mapping(channel).get("bindings")).get("amqp"))
    return mapping(amqp.get("queue"))


def check(found: Findings) -> None:
    _names(found)
    _on_the_wire(found)
    _classic(found)
    _operations(found)
    for name, operation in mapping(found.document.get("operations")).items():
        if mapping(operation).get("action") == "receive":
            _Received(found, str(name), operation).check()


def _names(found: Findings) -> None:
    """A queue has one name, which one channel states."""
    owners: dict[str, str] = {}
    for key, channel in mapping(found.document.get("channels")).items():
        name, address = binding(channel).get("name"), mapping(channel).get("address")
        if address is not None and name is not None and address != name:
            found.say(("channels", key, "address"), f"{shown(address)} is not the queue's name, {name!r}; say the same")
        if isinstance(name, str) and owners.setdefault(name, key) != key:
            found.say(
                (*_queue(key), "name"), f"{name!r} is the queue of the channel {owners[name]} too; one channel a queue"
            )


def _on_the_wire(found: Findings) -> None:
    """What has no form in AMQP: a text of more bytes than one may count, a number that is too large."""
    for key, channel in mapping(found.document.get("channels")).items():
        for name, message in mapping(mapping(channel).get("messages")).items():
            amqp = mapping(mapping(mapping(message).get("bindings")).get("amqp"))
            kind, at = amqp.get("messageType"), ("channels", key, "messages", name, "bindings", "amqp", "messageType")
            if isinstance(kind, str) and len(kind.encode()) > 255 >= len(kind):
                found.say(at, f"{len(kind.encode())} bytes of UTF-8; AMQP allows 255")
        for argument, value in mapping(binding(channel).get("arguments")).items():
            here = (*_queue(key), "arguments", argument)
            if len(argument.encode()) > 128:
                found.say(here, f"{len(argument.encode())} bytes of UTF-8; AMQP allows a name 128")
            elif not can_be_sent(value):
                found.say(here, f"{shown(value)} can't be sent; AMQP has integers of 64 bits, texts, lists and tables")


def _classic(found: Findings) -> None:
    for key, channel in mapping(found.document.get("channels")).items():
        arguments = mapping(binding(channel).get("arguments"))
        for argument in QUORUM_ONLY if arguments.get("x-queue-type") == "classic" else ():
            if argument in arguments:
                text = "a classic queue has no such thing; take it out, or say x-queue-type: quorum"
                found.say((*_queue(key), "arguments", argument), text)


def _operations(found: Findings) -> None:
    """One operation of each direction on a queue, and one that is received: a worker runs one handler."""
    taken: dict[tuple[Any, str], str] = {}
    for name, operation in mapping(found.document.get("operations")).items():
        action, (key, _) = str(mapping(operation).get("action")), channel_of(found, operation)
        first = taken.setdefault((action, key), name)
        if key and first != name:
            found.say(
                ("operations", name, "channel"), f"the operation {first} is to {action} on this queue too; keep one"
            )


def _queue(key: str) -> tuple[str, ...]:
    return ("channels", key, "bindings", "amqp", "queue")


class _Received:
    """One receive operation with the queues around it."""

    def __init__(self, found: Findings, name: str, operation: Any) -> None:
        self.found, self.at, self.operation = found, ("operations", name), operation
        self.key, _ = channel_of(found, operation)
        self.dead, _ = channel_of(found, mapping(operation).get("x-deadLetter"))
        routes = mapping(mapping(operation).get("x-retry")).get("channels")
        self.delays = [channel_at(found, route)[0] for route in routes] if isinstance(routes, list) else []

    def check(self) -> None:
        self._loops()
        self._attempts()
        self._tasks()
        self._delays()
        if self.dead and self.dead not in (self.key, *self.delays):
            self._dead_letters()

    def _arguments(self, key: str) -> Mapping[str, Any]:
        _, channel = channel_at(self.found, {"$ref": f"#/channels/{key}"})
        return mapping(binding(channel).get("arguments"))

    def _name(self, key: str) -> Any:
        return binding(channel_at(self.found, {"$ref": f"#/channels/{key}"})[1]).get("name")

    def _say(self, key: str, argument: str, text: str) -> None:
        self.found.say((*_queue(key), "arguments", argument), text)

    def _loops(self) -> None:
        dead_at = (*self.at, "x-deadLetter", "channel")
        if self.dead and self.dead == self.key:
            self.found.say(
                dead_at,
                "leads to the operation's own queue, so that a dead letter is a task again, for ever; name another",
            )
        elif self.dead and self.dead in self.delays:
            self.found.say(
                dead_at, f"leads to the delay {self.dead}, and from there back to the tasks, for ever; name another"
            )
        for index, delay in enumerate(self.delays):
            here = (*self.at, "x-retry", "channels", index)
            if delay and delay == self.key:
                self.found.say(
                    here, "leads to the operation's own queue: a task that fails would be tried again at once"
                )
            elif delay and delay in self.delays[:index]:
                self.found.say(here, f"{delay} is there twice; keep one")

    def _attempts(self) -> None:
        retry = mapping(mapping(self.operation).get("x-retry"))
        stated, there_are = retry.get("maxAttempts"), len(self.delays) + 1
        if isinstance(stated, int) and stated >= 2 and self.delays and stated != there_are:
            self.found.say(
                (*self.at, "x-retry", "maxAttempts"),
                f"{stated}, and with {len(self.delays)} channels there are {there_are} attempts; say that, or nothing",
            )

    def _tasks(self) -> None:
        arguments = self._arguments(self.key)
        if "x-message-ttl" in arguments:
            self._say(
                self.key,
                "x-message-ttl",
                "a task that waited so long would be a dead letter without a reason; take it out",
            )
        if self.dead:
            self._leads_to(self.key, self.dead, "a task that the broker gives up on")
        self._stored(self.key)
        limit, crashes = arguments.get("x-delivery-limit", BROKERS_LIMIT), mapping(self.operation).get("x-crash-limit")
        if (
            arguments.get("x-queue-type") == "quorum"
            and isinstance(limit, int)
            and isinstance(crashes, int)
            and crashes >= limit >= 1
        ):
            self._say(
                self.key,
                "x-delivery-limit",
                f"{limit}: the broker would give up on a task before {crashes} workers died (x-crash-limit); say more",
            )

    def _delays(self) -> None:
        waits: list[tuple[int, str]] = []
        for delay in self.delays:
            if not delay or delay in (self.key, self.dead):
                continue
            ttl = self._arguments(delay).get("x-message-ttl")
            if ttl is None:
                self._say(
                    delay,
                    "x-message-ttl",
                    "is missing: what is sent here would never come back; say milliseconds, such as 1000",
                )
            elif isinstance(ttl, int):
                waits.append((ttl, delay))
            self._leads_to(delay, self.key, "what has waited here")
            self._stored(delay)
            if "x-max-length" in self._arguments(delay) or "x-max-length-bytes" in self._arguments(delay):
                self._say(delay, "x-max-length", "a task that finds no room here can't be put off; take it out")
        for (before, _), (ttl, delay) in pairwise(waits):
            if ttl <= before:
                order = "as long as the one before it" if ttl == before else f"shorter than the one before it, {before}"
                self._say(delay, "x-message-ttl", f"{ttl} ms is {order}; delays go from short to long, each once")

    def _dead_letters(self) -> None:
        arguments = self._arguments(self.dead)
        for argument in MOVES:
            if argument in arguments:
                self._say(self.dead, argument, "a dead letter stays until somebody takes it; take this out")
        limit = arguments.get("x-delivery-limit", 0)
        if arguments.get("x-queue-type") == "quorum" and isinstance(limit, int) and 0 <= limit < LOOKS:
            self._say(
                self.dead,
                "x-delivery-limit",
                f"each look is a delivery, and after {limit or BROKERS_LIMIT} RabbitMQ 4 drops it; say 1000000000",
            )
        if self.dead in (channel_of(self.found, other)[0] for other in self.found.document["operations"].values()):
            self.found.say(
                (*self.at, "x-deadLetter", "channel"),
                f"{self.dead} is sent to or received from by an operation; dead letters need a queue of their own",
            )
        _, channel = channel_at(self.found, {"$ref": f"#/channels/{self.dead}"})
        for message in mapping(channel.get("messages")):
            self.found.rule("deadLetter", channel["messages"][message], ("channels", self.dead, "messages", message))

    def _leads_to(self, key: str, target: str, what: str) -> None:
        arguments, name = self._arguments(key), self._name(target)
        if "x-dead-letter-exchange" not in arguments:
            self._say(key, "x-dead-letter-exchange", f"is missing: {what} would be dropped; say ''")
        routing_key = arguments.get("x-dead-letter-routing-key")
        if name is not None and routing_key != name:
            self._say(
                key,
                "x-dead-letter-routing-key",
                f"{shown(routing_key)}: {what} goes to {name!r} by this contract; say that",
            )

    def _stored(self, key: str) -> None:
        """Nothing that is stored is dropped: by a full queue, or on its way from one queue to the next."""
        arguments = self._arguments(key)
        kind, strategy = arguments.get("x-queue-type"), arguments.get("x-dead-letter-strategy")
        if kind == "quorum" and strategy != "at-least-once":
            self._say(
                key,
                "x-dead-letter-strategy",
                f"{shown(strategy)}: what moves on is lost if its target can't take it just then; say at-least-once",
            )
        bounded = "x-max-length" in arguments or "x-max-length-bytes" in arguments
        if arguments.get("x-overflow") is None and (kind == "quorum" or bounded):
            self._say(
                key,
                "x-overflow",
                "is missing: at-least-once needs it, and a full queue would drop its oldest; say reject-publish",
            )
