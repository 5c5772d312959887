"""A task's way as spans of OpenTelemetry, by its semantic conventions for messaging: one trace, from the send on.

| span            | kind     | parent                                                      | from, until         |
|-----------------|----------|-------------------------------------------------------------|---------------------|
| send QUEUE      | producer | the caller's current span                                   | publish, confirm    |
| process QUEUE   | consumer | the context in the message: its send, or its last redrive   | claim, settlement   |
| redrive QUEUE   | producer | the context in the dead letter                              | publish, confirm    |

Errors are redacted, see `redacting`; nothing else is of a body. What fails in here is said once, and harms no task.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from workqueue import delivery
from workqueue.delivery import Delivery
from workqueue.observe.lines import NAMES
from workqueue.observe.redacting import redacted
from workqueue.observe.tracing import Outgoing, context_in
from workqueue.tasks import events
from workqueue.tasks.events import Event, Listener, Told
from workqueue.tasks.stack import describe, type_name

log = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_S = 2.0  # of a provider that is the process's own
TEXT = 200  # characters of what anybody may have chosen

NO_SPAN: Span = trace.INVALID_SPAN

_lock = threading.Lock()
_export_rest: list[Callable[[], None]] = []
"""Of the provider that was set up here, if one was."""
_attempt: ContextVar["Attempt | None"] = ContextVar("attempt", default=None)
_propagator = TraceContextTextMapPropagator()


def open_spans(name: str) -> "Spans":
    """By the process's tracer provider, else by one that is set up. Raises as `otlp.set_up`, and ModuleNotFoundError
    where the SDK is needed and not there."""
    with _lock:
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            from workqueue.observe.otlp import set_up

            _export_rest.append(set_up(name))
    return Spans(name)


class Spans:
    """Makes the spans of one process, `name`."""

    def __init__(self, name: str) -> None:
        self._name, self._tracer, self._said = name, trace.get_tracer("workqueue"), False

    @contextmanager
    def publishing(
        self, what: Literal["send", "redrive"], outgoing: Outgoing, headers: Mapping[str, Any] | None = None
    ) -> Iterator[Mapping[str, str]]:
        """See `Tracer`."""
        span = self.safely(partial(self._publishing, what, outgoing, headers), NO_SPAN)
        try:
            yield carried(span)
        except BaseException as error:
            self.safely(partial(fail, span, type_of(error), redacted(describe(error), b"")), None)
            raise
        finally:
            self.safely(span.end, None)

    def listener(self, tell: Listener, closed: Collection[str], *, tell_begin: bool) -> Listener:
        """See `Tracer`."""
        return Processing(self, tell, closed, tell_begin=tell_begin)

    def start(
        self, what: str, of: Outgoing, parent: Context | None, more: Mapping[str, Any], at_ns: int | None = None
    ) -> Span:
        kind = SpanKind.CONSUMER if what == "process" else SpanKind.PRODUCER
        attributes: dict[str, Any] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": what,
            "messaging.operation.type": "process" if what == "process" else "send",
            "messaging.destination.name": of.queue,
            "messaging.client.id": self._name,
            "messaging.message.body.size": of.size_bytes,
            "workqueue.operation": of.operation,
            "workqueue.kind": of.kind[:TEXT],
        }
        if of.id:
            attributes["messaging.message.id"] = of.id[:TEXT]
        attributes.update(more)
        return self._tracer.start_span(f"{what} {of.queue}", parent, kind, attributes, start_time=at_ns)

    def flush(self) -> None:
        """Export what has ended, since the process is about to; within FLUSH_S."""
        for export_rest in _export_rest:
            export_rest()
        force = getattr(trace.get_tracer_provider(), "force_flush", None)  # of the SDK's, which the API does not know
        if not _export_rest and force is not None:
            flushing = threading.Thread(target=force, name="traces", daemon=True)
            flushing.start()
            flushing.join(FLUSH_S)

    def safely(self, call: Callable[[], T], otherwise: T) -> T:
        """What the call returns. One that raises (a sampler, a processor of somebody's own) is said once."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001  # whatever it is, no task depends on a trace
            if not self._said:
                log.warning("%s  can't make its traces: %s", self._name, describe(error))
            self._said = True
            return otherwise

    def _publishing(self, what: str, outgoing: Outgoing, headers: Mapping[str, Any] | None) -> Span:
        parent = None if headers is None else context_of(headers)
        routing = {"messaging.rabbitmq.destination.routing_key": outgoing.queue}
        return self.start(what, outgoing, parent, routing)


@dataclass(slots=True)
class Attempt:
    """An attempt whose span is current, and the message that brought it."""

    span: Span
    token: Token[Context]
    arrived: Delivery


class Processing:
    """A listener in front of another one, see `Tracer`. Events of a message are told in the context of what handles it:
    what is made current when an attempt begins is so in its handler, and in the handler's threads."""

    def __init__(self, spans: Spans, tell: Listener, closed: Collection[str], *, tell_begin: bool) -> None:
        self._spans, self._tell, self._closed, self._tell_begin = spans, tell, closed, tell_begin
        self._running: dict[int, Attempt] = {}

    def __call__(self, told: Told) -> None:
        if isinstance(told, Event):
            event, what = told, type(told.what)
            if what is events.Started:
                told = self._spans.safely(partial(self._begin, event), event)
            elif what is not events.Running:  # which is told by a timer, in nobody's context
                told = self._spans.safely(partial(self._end, event), event)
            if what is events.Started and not self._tell_begin:
                return
        self._tell(told)
        if isinstance(told, events.Stopped):
            self._spans.safely(self._leave, None)
            self._spans.flush()

    def _begin(self, told: Event) -> Event:
        arrived = delivery.current.get()
        assert isinstance(told.what, events.Started)
        parent = context_of(arrived.headers)
        span = self._start(told, arrived, parent, {"workqueue.attempt": told.what.attempt})
        attempt = Attempt(span, context.attach(trace.set_span_in_context(span)), arrived)
        self._running[id(attempt)] = attempt
        _attempt.set(attempt)
        if not parent and told.operation not in self._closed:
            arrived.headers = {**arrived.headers, **carried(span)}  # its copies belong to the trace that begins here
        return told._replace(span=ids_of(span)) if self._tell_begin else told

    def _end(self, told: Event) -> Event:
        arrived, attempt = delivery.current.get(), _attempt.get()
        if attempt is None or attempt.arrived is not arrived:  # it was settled without an attempt
            at_ns = time.time_ns() - int(1e9 * told.took_s)
            span = self._start(told, arrived, context_of(arrived.headers), {}, at_ns)
        else:
            _attempt.set(None)
            del self._running[id(attempt)]
            context.detach(attempt.token)
            span = attempt.span
        if span.is_recording():
            settle(span, told.what, arrived.body)
        span.end()
        return told._replace(span=ids_of(span))

    def _leave(self) -> None:
        """End the spans of attempts that the worker leaves: it ends while their handlers run."""
        for attempt in self._running.values():
            attempt.span.set_attribute("workqueue.outcome", "left")
            attempt.span.end()
        self._running.clear()

    def _start(
        self, told: Event, arrived: Delivery, parent: Context, more: dict[str, Any], at_ns: int | None = None
    ) -> Span:
        size_bytes = len(arrived.body) if arrived.oversized_bytes is None else arrived.oversized_bytes
        of = Outgoing(arrived.queue, told.operation, told.kind, told.id, size_bytes)
        if arrived.properties.correlation_id:
            more["messaging.message.conversation_id"] = str(arrived.properties.correlation_id)[:TEXT]
        return self._spans.start("process", of, parent, more, at_ns)


def settle(span: Span, what: events.What, body: bytes) -> None:
    """Say in the span what became of the message."""
    span.set_attribute("workqueue.outcome", NAMES[type(what)])
    match what:
        case events.Retrying(_, again_s, error, _, cause):
            span.set_attribute("workqueue.again_s", again_s)
            fail_by(span, cause, "failed", redacted(error, body))
        case events.Dead(reason, error, queue, _, cause):
            span.set_attributes({"workqueue.reason": reason, "workqueue.dead_letters": queue})
            fail_by(span, cause, reason, redacted(error, body))
        case events.LostClaim():
            fail(span, "lost_claim", "the claim ran out while the handler ran")
        case events.Skipped(state):
            span.set_attribute("workqueue.state", state)
        case events.Delayed(why, again_s):
            span.set_attributes({"workqueue.why": why, "workqueue.again_s": again_s})


def fail_by(span: Span, cause: Exception | None, otherwise: str, said: str) -> None:
    """The exception's message is what is said of it: as an attribute, it would not be redacted."""
    if cause is None:
        return fail(span, otherwise, said)
    fail(span, type_of(cause), said)
    message = said.removeprefix(f"{type_name(cause)}: ")
    span.add_event("exception", {"exception.type": type_of(cause), "exception.message": message})


def fail(span: Span, kind: str, said: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, said))


def type_of(error: BaseException) -> str:
    # Its class may have a metaclass that tells neither.
    module, name = (type.__getattribute__(type(error), name) for name in ("__module__", "__qualname__"))
    return str(name) if module == "builtins" else f"{module}.{name}"


def context_of(headers: Mapping[str, Any]) -> Context:
    """Empty where the headers have none, or one that is malformed."""
    return _propagator.extract(context_in(headers), Context())


def carried(span: Span) -> dict[str, str]:
    """The headers that carry the span's context."""
    headers: dict[str, str] = {}
    _propagator.inject(headers, trace.set_span_in_context(span, Context()))
    return headers


def ids_of(span: Span) -> tuple[str, str] | None:
    of = span.get_span_context()
    return (f"{of.trace_id:032x}", f"{of.span_id:016x}") if of.is_valid else None
