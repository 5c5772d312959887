"""WORKQUEUE_TRACING: what the runtime asks of traces. `spans` makes them, and is imported only where they are on."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from workqueue.contract import Message, Receive
from workqueue.extras import needed
from workqueue.settings import Settings
from workqueue.tasks.events import Listener

CONTEXT = frozenset({"traceparent", "tracestate"})
"""The headers that carry a trace from process to process (https://www.w3.org/TR/trace-context/)."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that is about to be published: the queue, the contract's operation, the task's kind and id."""

    queue: str
    operation: str
    kind: str
    id: str
    size_bytes: int


class Tracer(Protocol):
    """Makes the spans of one process."""

    def publishing(
        self, what: Literal["send", "redrive"], outgoing: Outgoing, headers: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[Mapping[str, str]]:
        """A span around a publish, which gives the headers that carry it. Its parent is the context in `headers`, if
        they are given, else the caller's current span."""

    def listener(self, tell: Listener, closed: Collection[str], *, tell_begin: bool) -> Listener:
        """A listener in front of another one: a span for each message that a worker settles, current while the handler
        runs. `closed` are the operations whose messages take no headers of a trace; without `tell_begin` the next one
        is not told of what begins."""


def open_tracing(settings: Settings, name: str) -> Tracer | None:
    """What makes the spans of this process, `name`; None where tracing is off. Raises ExtraMissing, SettingInvalid."""
    if settings.tracing == "off":
        return None
    with needed("WORKQUEUE_TRACING=on"):
        from workqueue.observe.spans import open_spans

        return open_spans(name)


@contextmanager
def redriving(
    tracer: Tracer | None, receive: Receive, kind: str, id: str, size_bytes: int, headers: Mapping[str, Any]
) -> Iterator[Mapping[str, str]]:
    """Around the publish of a task in the place of its dead letter, whose `headers` are given: the headers by which
    what follows belongs to the letter's trace."""
    takes = takes_context(receive.message)
    if tracer is None:
        yield context_in(headers) if takes else {}
        return
    outgoing = Outgoing(receive.queue.name, receive.operation, kind, id, size_bytes)
    with tracer.publishing("redrive", outgoing, headers) as context:
        yield context if takes else {}


def context_in(headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers that carry a trace, of a message's; what can't be a context is left out."""
    return {name: value for name in CONTEXT if isinstance(value := headers.get(name), str) and len(value) <= 512}


def takes_context(message: Message) -> bool:
    """Whether a message's headers may carry a trace by the contract: they are open, or it declares them."""
    schema = message.headers
    return schema.get("additionalProperties", True) is not False or schema.get("properties", {}).keys() >= CONTEXT
