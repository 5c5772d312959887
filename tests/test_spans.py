"""The spans of a process by themselves: what they say of what became of a message, and whose children they are."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.generated.producer import Application as Producer
from tests.generated.producer.messages.json import Nap
from tests.generated.worker import Application
from tests.harness import ERRANDS, ROOT
from tests.workers.main import handle
from workqueue import Client, Settings, SyncClient, delivery
from workqueue.contract import Message
from workqueue.delivery import Delivery, Properties
from workqueue.errors import NotSent
from workqueue.observe import spans
from workqueue.observe.redacting import LIMIT, RUN, redacted
from workqueue.observe.spans import Spans, context_of
from workqueue.observe.tracing import Outgoing, open_tracing, redriving, takes_context
from workqueue.tasks import events
from workqueue.tasks.events import Event, Started, Stopped, Told, What
from workqueue.testing import MemoryQueue

EXPORTER = InMemorySpanExporter()
NAP = Nap(kind="nap", seconds=0.0)
ON = Settings(tracing="on")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Fragile(SpanProcessor):
    """A processor that somebody has added, and that may raise."""

    breaks = False

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        if Fragile.breaks:
            raise RuntimeError("it is broken")


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    """A process can set one, once."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    provider.add_span_processor(Fragile())
    trace.set_tracer_provider(provider)


@pytest.fixture(autouse=True)
def exported() -> Iterator[Callable[[], list[ReadableSpan]]]:
    """What ended during the test, the first to end first."""
    EXPORTER.clear()
    yield lambda: list(EXPORTER.get_finished_spans())
    Fragile.breaks = False


def arrived(headers: dict[str, Any] | None = None, body: bytes = b"{}", **properties: Any) -> Delivery:
    one = Delivery(body, "errands", "id", None, headers or {}, True, False, 0, lambda way: None)
    return replace(one, properties=Properties(headers=headers or {}, **properties))


def told(what: What, kind: str = "nap", id: str = "7") -> Event:
    return Event("w1", "do_errand", kind, id, 0.5, what)


def listening(*closed: str, tell_begin: bool = False) -> tuple[Callable[[Told], object], list[Told]]:
    heard: list[Told] = []
    return Spans("w1").listener(heard.append, closed, tell_begin=tell_begin), heard


FAILED = StatusCode.ERROR
BOOM = KeyError("boom")


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        (events.Done(2), StatusCode.UNSET, {"outcome": "done"}),
        (events.Retrying(1, 5.0, "KeyError: 'boom'", (), BOOM), FAILED, {"outcome": "retrying", "again_s": 5.0}),
        (
            events.Dead("failed", "KeyError: 'boom'", "buried", (), BOOM),
            FAILED,
            {"outcome": "dead", "reason": "failed", "dead_letters": "buried"},
        ),
        (
            events.Dead("crashed", "2 workers died", "buried"),
            FAILED,
            {"outcome": "dead", "reason": "crashed", "dead_letters": "buried"},
        ),
        (events.Cancelled("by ops: no"), StatusCode.UNSET, {"outcome": "cancelled"}),
        (events.Skipped("done"), StatusCode.UNSET, {"outcome": "skipped", "state": "done"}),
        (events.Delayed("taken", 1.0), StatusCode.UNSET, {"outcome": "delayed", "why": "taken", "again_s": 1.0}),
        (events.LostClaim(1.0), FAILED, {"outcome": "lost_claim"}),
        (events.HandedBack(), StatusCode.UNSET, {"outcome": "handed_back"}),
    ],
)
@pytest.mark.parametrize("runs", [True, False])
def test_a_span_says_what_became_of_the_message(
    what: What, status: StatusCode, said: dict[str, Any], runs: bool, exported: Callable[[], list[ReadableSpan]]
) -> None:
    listener, heard = listening()
    token = delivery.current.set(arrived({"traceparent": PARENT}, b"12345", correlation_id="order-17"))
    before = trace.get_current_span()
    if runs:
        listener(told(Started(2)))
        assert trace.get_current_span() is not before
    listener(told(what))
    assert trace.get_current_span() is before
    delivery.current.reset(token)
    (span,) = exported()
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind, span.status.status_code) == ("process errands", SpanKind.CONSUMER, status)
    assert attributes.pop("error.type", None) == (
        None if status is StatusCode.UNSET else "KeyError" if "boom" in str(what) else said.get("reason", "lost_claim")
    )
    assert attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "errands",
        "messaging.client.id": "w1",
        "messaging.message.id": "7",
        "messaging.message.body.size": 5,
        "messaging.message.conversation_id": "order-17",
        "workqueue.operation": "do_errand",
        "workqueue.kind": "nap",
        **({"workqueue.attempt": 2} if runs else {}),
        **{f"workqueue.{name}": value for name, value in said.items()},
    }
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
    assert [dict(event.attributes or {}) for event in span.events] == (
        [{"exception.type": "KeyError", "exception.message": "'boom'"}] if "boom" in str(what) else []
    )
    assert span.end_time is not None
    assert span.start_time is not None
    if not runs:
        assert 0.4e9 < span.end_time - span.start_time < 0.6e9  # since it was delivered
    (event,) = heard
    assert isinstance(event, Event)
    assert event == told(what)._replace(span=event.span)
    assert event.span == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")


def test_what_begins_is_told_to_the_log_only_where_that_is_asked_for() -> None:
    for tell_begin in (False, True):
        listener, heard = listening(tell_begin=tell_begin)
        token = delivery.current.set(arrived())
        for what in (Started(1), events.Running(), events.Done(1)):
            listener(told(what))
        delivery.current.reset(token)
        kinds = [type(event.what) for event in heard if isinstance(event, Event)]
        assert kinds == [Started, events.Running, events.Done][not tell_begin :]


def test_an_attempt_without_a_context_gives_its_own_to_the_copies_unless_the_contract_forbids() -> None:
    for closed in ((), ("do_errand",)):
        listener, _ = listening(*closed)
        one = arrived({"mine": 1, "traceparent": "nonsense"})
        token = delivery.current.set(one)
        listener(told(Started(1)))
        current = trace.get_current_span().get_span_context()
        listener(told(events.Done(1)))
        delivery.current.reset(token)
        begun = f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"
        assert one.headers == {"mine": 1, "traceparent": "nonsense" if closed else begun}


def test_what_somebodys_own_processor_raises_is_said_once_and_harms_no_task(
    caplog: pytest.LogCaptureFixture, exported: Callable[[], list[ReadableSpan]]
) -> None:
    Fragile.breaks = True
    listener, heard = listening()
    token = delivery.current.set(arrived())
    for what in (Started(1), events.Done(1), Started(1), events.Done(1)):
        listener(told(what))
    delivery.current.reset(token)
    assert heard == [told(events.Done(1))] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "w1  can't make its traces: RuntimeError: it is broken"
    ]
    with Spans("w1").publishing("send", Outgoing("errands", "send_errand", "nap", "7", 9)) as headers:
        assert headers == {}
    assert exported() == []


def test_the_spans_of_attempts_that_a_worker_leaves_are_ended(exported: Callable[[], list[ReadableSpan]]) -> None:
    def leave() -> None:
        listener, _ = listening()
        delivery.current.set(arrived())
        listener(told(Started(1)))
        listener(Stopped("w1", 0, 1))

    copy_context().run(leave)
    (span,) = exported()
    assert dict(span.attributes or {})["workqueue.outcome"] == "left"


def test_a_send_that_fails_says_so_without_a_password(exported: Callable[[], list[ReadableSpan]]) -> None:
    of = Outgoing("errands", "send_errand", "nap", "7", 9)
    with pytest.raises(NotSent), Spans("w1").publishing("send", of):
        raise NotSent("7", "refused at amqp://me:hunter22@host/v")
    (span,) = exported()
    assert (span.name, span.kind, span.status.status_code) == ("send errands", SpanKind.PRODUCER, FAILED)
    assert "refused at amqp://me:***@host/v" in (span.status.description or "")
    assert dict(span.attributes or {})["error.type"] == "workqueue.errors.NotSent"


def test_every_attribute_is_on_the_page_and_no_other() -> None:
    name = r"(?:messaging|workqueue|error)\.[a-z_.]+"
    rows = re.findall(r"(?m)^\| (`.*?) \|", (ROOT / "docs/tracing.md").read_text().partition("## Attributes")[2])
    source = Path(spans.__file__).read_text()
    assert {one for row in rows for one in re.findall(f"`({name})`", row)} == set(re.findall(f'"({name})"', source))


# --- whose children they are ------------------------------------------------------------------------------------------


class Traced(MemoryQueue[Any]):
    """A queue in memory whose worker traces."""

    async def _work(self, stack: AsyncExitStack, resources: Any) -> None:
        self.settings = replace(self.settings, tracing="on")
        tracer = open_tracing(self.settings, "worker")
        assert tracer is not None
        listener = tracer.listener(self.events.append, (), tell_begin=False)
        self.events = cast("list[Told]", SimpleNamespace(append=listener))
        await super()._work(stack, resources)


def by_name(found: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in found if span.name == name]


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def in_a_span(task: Any, context: Any) -> Any:
    with trace.get_tracer("t").start_as_current_span("inside"):
        return await handle(task, context)


async def test_the_callers_span_is_the_parent_of_a_send_and_that_of_the_attempt(
    exported: Callable[[], list[ReadableSpan]],
) -> None:
    handlers = {"do_errand": in_a_span, "do_chore": in_a_span}
    async with Traced(Application, handlers, Client(Producer, settings=ON), concurrency=3) as queue:
        with trace.get_tracer("t").start_as_current_span("request") as request:
            await queue.client.send(NAP, to="send_errand")
            await queue.client.send_many([NAP] * 20, to="send_errand")
        await queue.client.send(NAP, to="send_errand")
        await queue.idle()
    found = exported()
    sent = by_name(found, "send errands")
    here = request.get_span_context().span_id
    assert sorted(map(str, map(parent, sent))) == sorted([str(here)] * 21 + ["None"])
    process = by_name(found, "process errands")
    assert len({span.context.span_id for span in process}) == 22
    assert {parent(span) for span in process} == {span.context.span_id for span in sent}
    assert sorted(map(str, map(parent, by_name(found, "inside")))) == sorted(
        str(span.context.span_id) for span in process
    )


def test_the_span_of_a_thread_is_the_parent_of_what_it_sends(exported: Callable[[], list[ReadableSpan]]) -> None:
    handlers = {"do_errand": handle, "do_chore": handle}
    parents: dict[str, int] = {}
    with Traced(Application, handlers, SyncClient(Producer, settings=ON)) as queue:

        def request() -> None:
            with trace.get_tracer("t").start_as_current_span("request") as span:
                sent = queue.client.send(NAP, to="send_errand")
                parents[str(sent.id)] = span.get_span_context().span_id

        threads = [threading.Thread(target=request) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sent = {str((span.attributes or {})["messaging.message.id"]): span for span in by_name(exported(), "send errands")}
    assert {id: parent(span) for id, span in sent.items()} == parents


async def test_a_client_that_does_not_trace_sends_no_context(exported: Callable[[], list[ReadableSpan]]) -> None:
    seen: list[Any] = []

    async def look(task: Any, context: Any) -> Any:
        seen.append(delivery.current.get().headers.keys())
        return await handle(task, context)

    async with MemoryQueue(Application, {"do_errand": look, "do_chore": look}, Client(Producer)) as queue:
        with trace.get_tracer("t").start_as_current_span("request"):
            await queue.client.send(NAP, to="send_errand")
        await queue.idle()
    assert [span.name for span in exported()] == ["request"]
    assert [set(names) for names in seen] == [{"x-contract"}]


def message(**schema: Any) -> Message:
    headers = {"allOf": [{"$ref": "#/components/schemas/A"}], "components": {"schemas": {"A": {"$ref": "#/x/B"}}}}
    headers["components"]["schemas"]["B"] = {"type": "object", **schema}  # type: ignore[index]
    return replace(ERRANDS.message, headers_schema=headers)


def test_headers_that_are_closed_carry_no_context_unless_they_declare_it() -> None:
    open_, closed = message(properties={}), message(properties={"x-attempts": {}}, additionalProperties=False)
    declared = message(properties={"traceparent": {}, "tracestate": {}}, additionalProperties=False)
    assert [takes_context(one) for one in (ERRANDS.message, open_, closed, declared)] == [True, True, False, True]
    for one, carried in ((open_, {"traceparent": PARENT}), (closed, {})):
        receive = replace(ERRANDS, message=one)
        with redriving(None, receive, "nap", "7", 9, {"traceparent": PARENT, "x-reason": "failed"}) as context:
            assert context == carried
        with redriving(Spans("desk"), receive, "nap", "7", 9, {"traceparent": PARENT}) as context:
            assert context.keys() == carried.keys()


async def test_a_send_to_headers_that_are_closed_is_traced_and_carries_nothing(
    monkeypatch: pytest.MonkeyPatch, exported: Callable[[], list[ReadableSpan]]
) -> None:
    monkeypatch.setattr("workqueue.client.sending.takes_context", lambda message: False)
    seen: list[Any] = []

    async def look(task: Any, context: Any) -> Any:
        seen.append(set(delivery.current.get().headers))
        return await handle(task, context)

    client = Client(Producer, settings=ON)
    async with MemoryQueue(Application, {"do_errand": look, "do_chore": look}, client) as queue:
        await client.send(NAP, to="send_errand")
        await queue.idle()
    assert seen == [{"x-contract"}]
    assert len(by_name(exported(), "send errands")) == 1


@pytest.mark.parametrize(
    "header", ["", "00", PARENT[:-3], PARENT.upper(), f"ff{PARENT[2:]}", f"{PARENT}-x", 7, None, b"x", ["a"], "0" * 999]
)
def test_a_context_that_is_malformed_is_none(header: Any) -> None:
    assert not context_of({"traceparent": header, "tracestate": "a=1"})
    assert context_of({"traceparent": PARENT, "tracestate": header})


# --- what is not in them ----------------------------------------------------------------------------------------------

texts = st.text(min_size=RUN, max_size=60)


@settings(max_examples=300, deadline=None)
@given(texts, texts, st.integers(0, 20), st.sampled_from(["{}", "{!r}", "input_value={!r}, input_type=str", "[{}]"]))
def test_no_run_of_a_bodys_text_is_quoted(text: str, other: str, cut: int, form: str) -> None:
    body = json.dumps({"id": str(uuid4()), "payload": {"kind": "digest", "text": text, "more": {other: [1, None]}}})
    said = redacted(form.format(text[cut:]) + form.format(other), body.encode())
    for value in (text, other):
        assert not [value[at : at + RUN] for at in range(len(value) - RUN + 1) if value[at : at + RUN] in said]


def test_what_is_not_of_the_body_is_shown() -> None:
    body = b'{"id": "1", "payload": {"kind": "nap", "seconds": "long", "port": 54321}}'
    assert redacted('/payload/seconds: "long" is not of type "number"', body) == (
        '/payload/seconds: "***" is not of type "number"'
    )
    assert redacted("nap: connection to port 54321\nrefused", body) == "nap: connection to port *** refused"
    assert redacted("at postgresql://me:secret@host/db?sslpassword=x y", b"") == (
        "at postgresql://me:***@host/db?sslpassword=*** y"
    )
    assert redacted("password=secret api_key: 'a b' tokens='x", b"") == "password=*** api_key: *** tokens=***"
    assert redacted("no JSON: the-whole-of-it", b"the-whole-of-it {") == "no JSON: ***"
    assert redacted("x", b'"' + b"a" * 300_000 + b'"') == "***"
    assert len(redacted("word " * 1000, b"")) <= LIMIT


@pytest.mark.parametrize("word", ["password", "passwordx", "a", "a.", "key\t", "a://"])
def test_no_error_takes_long_to_redact(word: str) -> None:
    """It happens in the worker's event loop, and whoever sends a task may have a say in its error."""
    began_s = time.process_time()
    redacted(word * 4000, b"")
    assert time.process_time() - began_s < 0.2


def test_tracing_that_is_off_makes_nothing() -> None:
    assert open_tracing(Settings(), "w1") is None
    assert spans._export_rest == []
