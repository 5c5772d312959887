"""WORKQUEUE_TRACING: a task's whole way is one trace, which holds nothing of its body, and costs no task anything."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.collector import Collector, Seen, collecting
from tests.harness import CHORES, ROOT, Site, simulate, task
from tests.operators import workqueue
from workqueue.observe.otlp import FLUSH_S
from workqueue.testing import Worker, until

TRACED = str(ROOT / "tests/workers/traced.py")
FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "Zq7-the-whole-text-of-a-task-9Xw"
SLACK_S = 1.5  # for the rest of a worker's end, on a machine that has other things to do


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as one:
        yield one


@pytest.fixture
def broken(fast: Site) -> Path:
    """While this file exists, every attempt fails."""
    file = fast.folder / "broken"
    file.touch()
    fast.environment["BROKEN"] = str(file)
    return file


@pytest.fixture
def mended(broken: Path) -> None:
    """No attempt fails."""
    broken.unlink()


async def ended(worker: Worker) -> float:
    """End it in good order; how long that took, in seconds."""
    began = time.monotonic()
    worker.process.terminate()
    assert await worker.ended() == 0, worker.text()
    return time.monotonic() - began


def outcomes(spans: list[Seen]) -> list[tuple[Any, Any]]:
    return [(span.attributes.get("workqueue.attempt"), span.outcome) for span in spans]


async def until_dead(site: Site) -> None:
    await until(lambda: site.depth_is(1, site.dead_queue), "it is dead")


async def test_the_whole_way_of_a_task_is_one_trace(fast: Site, broken: Path, collector: Collector) -> None:
    traced = collector.environment()
    worker = await fast.worker("one", script=TRACED, **traced)
    (one,) = simulate(1)
    await fast.send([one], **traced)
    await until_dead(fast)
    await asyncio.to_thread(broken.unlink)
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes", **traced)
    assert (told.code, told.out) == (0, "redrive: 1 of 1 letters\n"), told.err
    await until(lambda: len(fast.ended()) == 1, "it is done")
    await ended(worker)

    (sent,), (back,) = collector.named("send errands"), collector.named("redrive errands")
    attempts = collector.named("process errands")
    assert sent.parent_id == ""
    assert {span.trace_id for span in collector.spans} == {sent.trace_id}
    assert outcomes(attempts) == [(1, "retrying"), (2, "retrying"), (3, "dead"), (1, "done")]
    assert [span.parent_id for span in attempts] == [sent.span_id] * 3 + [back.span_id]
    assert back.parent_id == sent.span_id
    assert [span.parent_id for span in collector.named("inside")] == [span.span_id for span in attempts]
    error, unset = Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET
    assert [span.status for span in attempts] == [error, error, error, unset]
    assert [span.attributes.get("error.type") for span in attempts] == [
        "ValueError", "ValueError", "workqueue.verdicts.GiveUp", None,
    ]  # fmt: skip
    dead = attempts[2].attributes
    assert (dead["workqueue.reason"], dead["workqueue.dead_letters"]) == ("gave-up", fast.dead_queue)
    assert {span.attributes["messaging.message.id"] for span in (sent, back, *attempts)} == {one["id"]}
    assert (sent.of["service.name"], attempts[0].of["service.instance.id"]) == ("workqueue", "one")


async def test_a_mended_letter_is_of_the_same_trace_though_it_is_another_task(
    fast: Site, broken: Path, collector: Collector
) -> None:
    """Also where the operator's shell does not trace: the context is in the letter."""
    traced = collector.environment()
    worker = await fast.worker("one", script=TRACED, **traced)
    for environment in ({}, traced):
        (one,) = simulate(1, seconds=0.01)
        await fast.send([one], **traced)
        await until_dead(fast)
        await asyncio.to_thread(broken.unlink)
        told = await workqueue(fast, "dead", "edit", one["id"], "seconds=0", "--yes", **environment)
        assert told.code == 0, told.err
        await until(lambda: fast.depth_is(0, fast.dead_queue), "the letter is gone")
        await until(lambda: fast.depth_is(0), "it is done")
        await asyncio.to_thread(broken.touch)
    await asyncio.to_thread(broken.unlink)
    await ended(worker)
    first, second = collector.named("send errands")
    (back,) = collector.named("redrive errands")
    done = [span for span in collector.named("process errands") if span.outcome == "done"]
    assert [span.trace_id for span in done] == [first.trace_id, second.trace_id]
    assert [span.parent_id for span in done] == [first.span_id, back.span_id]
    assert back.parent_id == second.span_id
    assert len({span.attributes["messaging.message.id"] for span in collector.named("process errands")}) == 4


@pytest.mark.parametrize("operation", ["do_chore"])
async def test_the_span_of_a_handler_in_a_thread_nests(fast: Site, mended: None, collector: Collector) -> None:
    worker = await fast.worker("one", script=TRACED, **collector.environment())
    await fast.send(simulate(3), **collector.environment())
    await until(lambda: len(fast.ended()) == 3, "they are done")
    await ended(worker)
    attempts = collector.named(f"process {CHORES.queue.name}")
    assert [span.parent_id for span in collector.named("inside")] == [span.span_id for span in attempts]


async def test_a_foreign_context_is_kept_by_every_copy_and_by_a_redrive(
    fast: Site, broken: Path, collector: Collector
) -> None:
    """By workers and operators that trace nothing, too."""
    worker = await fast.worker("one", script=TRACED)
    body = json.dumps(simulate(1)[0]).encode()
    await fast.publish(body, headers={"traceparent": FOREIGN, "tracestate": "them=1", "mine": "kept"})
    await until_dead(fast)
    await ended(worker)
    told = await workqueue(fast, "dead", "redrive", "--all", "--yes")
    assert told.code == 0, told.err
    worker = await fast.worker("two", script=TRACED, **collector.environment())
    await until_dead(fast)
    (letter,) = await fast.dead_letters(1)
    await ended(worker)
    assert (letter.headers["traceparent"], letter.headers["tracestate"]) == (FOREIGN, "them=1")
    attempts = collector.named("process errands")
    assert attempts
    assert {(span.trace_id, span.parent_id) for span in attempts} == {tuple(FOREIGN.split("-")[1:3])}


async def test_of_a_sender_that_knows_of_no_trace_or_says_nonsense_the_first_attempt_begins_one(
    fast: Site, broken: Path, collector: Collector
) -> None:
    worker = await fast.worker("one", script=TRACED, **collector.environment())
    zeros = FOREIGN.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)
    given: list[Any] = [None, "nonsense", FOREIGN.upper(), zeros, 7, ["a"], "x" * 999]
    for traceparent in given:
        await fast.publish(json.dumps(simulate(1)[0]).encode(), headers={"traceparent": traceparent})
    await until(lambda: fast.depth_is(len(given), fast.dead_queue), "they are dead")
    await ended(worker)
    attempts = collector.named("process errands")
    traces = {span.trace_id: [one for one in attempts if one.trace_id == span.trace_id] for span in attempts}
    assert len(traces) == len(given)
    for spans in traces.values():
        assert outcomes(spans) == [(1, "retrying"), (2, "retrying"), (3, "dead")]
        first, *others = spans
        assert first.parent_id == ""
        assert {span.parent_id for span in others} == {first.span_id}
    assert "Traceback" not in "".join(line for line in worker.text().splitlines() if "opentelemetry" in line)


async def test_nothing_of_a_body_and_no_password_is_exported(fast: Site, broken: Path, collector: Collector) -> None:
    """Neither from a handler that quotes its task, nor from the contract's own words about a broken one."""
    worker = await fast.worker("one", script=TRACED, **collector.environment())
    await fast.send([task({"kind": "digest", "text": SECRET})], **collector.environment())
    bad = [task({"kind": "digest", "text": "a", "algorithm": SECRET}), {"id": SECRET}, SECRET]
    for body in bad:
        await fast.publish(json.dumps(body).encode())
    await fast.publish(f"no JSON: {SECRET}".encode())
    await until(lambda: fast.depth_is(2 + len(bad), fast.dead_queue), "they are dead")
    await asyncio.to_thread(broken.unlink)
    told = await workqueue(fast, "dead", "redrive", "--reason", "gave-up", "--yes", **collector.environment())
    assert told.code == 0, told.err
    await until(lambda: len(fast.ended()) == 1, "it is done")
    await ended(worker)
    dead = [span for span in collector.spans if span.outcome == "dead"]
    assert [span.attributes["workqueue.reason"] for span in dead].count("invalid") == len(bad)
    assert len(dead) == 2 + len(bad)
    exported = b"".join(collector.raw)
    runs = [SECRET[at : at + 8].encode() for at in range(len(SECRET) - 7)]
    assert [run for run in runs if run in exported] == []
    assert b"hunter22" not in exported
    assert b"guest:guest" not in exported
    assert SECRET in worker.text()  # it is the log's, and the dead letter's


async def test_a_line_of_the_log_names_its_trace(fast: Site, mended: None, collector: Collector) -> None:
    worker = await fast.worker("one", script=TRACED, WORKQUEUE_LOG_FORMAT="json", **collector.environment())
    await fast.send(simulate(1), **collector.environment())
    await until(lambda: len(fast.ended()) == 1, "it is done")
    await ended(worker)
    told = [json.loads(line) for line in worker.text().splitlines()]
    (done,) = [line for line in told if line["event"] == "done"]
    (span,) = collector.named("process errands")
    assert (done["trace_id"], done["span_id"]) == (span.trace_id, span.span_id)
    assert [line["event"] for line in told if "trace_id" in line] == ["done"]


# --- collectors that are no good --------------------------------------------------------------------------------------


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def down() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def busy() -> Iterator[str]:
    with collecting() as one:
        one.status = 503
        yield one.endpoint


@pytest.mark.parametrize(("collector_is", "waits_s"), [(down, 0.0), (silent, FLUSH_S), (busy, 0.0)])
async def test_a_collector_that_is_no_good_delays_no_task_no_drain_and_hardly_an_exit(
    fast: Site, mended: None, collector_is: Any, waits_s: float
) -> None:
    with collector_is() as endpoint:
        traced = {"WORKQUEUE_TRACING": "on", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        began = time.monotonic()
        produced = await fast.send(simulate(300), **traced)
        dropped, sent = sorted(produced.err.splitlines())
        assert sent == "sent: 300 confirmed, 0 refused, 0 unknown"
        expected = f"can't export its traces to {endpoint}, and drops them: "
        assert expected in dropped or "ends before its last traces were exported" in dropped
        assert time.monotonic() - began < waits_s + SLACK_S + 5.0  # with the start of its interpreter
        worker = await fast.worker("one", script=TRACED, **traced)
        await until(lambda: len(fast.ended()) == 300, "they are done", 20.0)
        await asyncio.sleep(1.0)
        took_s = await ended(worker)
    assert took_s < waits_s + SLACK_S
    said = [line for line in worker.text().splitlines() if " done  nap" not in line]
    assert len(said) < 8, said
    assert "opentelemetry" not in worker.text()


async def test_a_slow_collector_gets_all_of_it(fast: Site, mended: None, collector: Collector) -> None:
    collector.delay_s = 0.3
    worker = await fast.worker("one", script=TRACED, **collector.environment())
    await fast.send(simulate(50), **collector.environment())
    await until(lambda: len(fast.ended()) == 50, "they are done")
    await ended(worker)
    assert len(collector.named("send errands")) == len(collector.named("process errands")) == 50
    assert "export" not in worker.text()


async def test_spans_that_end_faster_than_they_are_exported_are_dropped_and_that_is_said(
    fast: Site, collector: Collector
) -> None:
    collector.delay_s = 0.2
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
    produced = await fast.send(simulate(500), **collector.environment(), **small)
    said = [line for line in produced.err.splitlines() if "drops traces: more spans end than are exported" in line]
    assert (len(said), len(produced.err.splitlines())) == (1, 2), produced.err
    assert 0 < len(collector.spans) < 500


# --- off, and wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def without(tmp_path: Path) -> dict[str, Any]:
    """An environment in which nobody can import OpenTelemetry."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['opentelemetry'] = None\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


async def test_off_it_is_not_imported(fast: Site, without: dict[str, Any]) -> None:
    worker = await fast.worker("one", **without)
    await fast.send(simulate(1), **without)
    await until(lambda: len(fast.ended()) == 1, "it is done")
    assert "trace" not in (await fast.send(simulate(1), **without)).err
    told = await workqueue(fast, "send", "nap", "seconds=0", "failures=0", *fast.to, **without)
    assert told.code == 0, told.err
    await ended(worker)


async def test_without_the_extra_it_is_one_line_and_exit_2(fast: Site, without: dict[str, Any]) -> None:
    on = {**without, "WORKQUEUE_TRACING": "on"}
    needs = "needs opentelemetry, which is not installed; install asyncapi-workqueue[tracing]\n"
    worker = await fast.worker("one", ready=False, **on)
    assert await worker.ended() == 2
    assert worker.text() == f"main.py: WORKQUEUE_TRACING=on: {needs}"
    produced = await fast.producer("--jsonl", "-", *fast.to, lines="", **on)
    assert (produced.code, produced.err.splitlines()[0] + "\n") == (2, f"producer.py: WORKQUEUE_TRACING=on: {needs}")
    told = await workqueue(fast, "send", "nap", "seconds=0", "failures=0", *fast.to, **on)
    assert (told.code, told.out) == (2, "")
    assert told.err.endswith(f"WORKQUEUE_TRACING=on: {needs}")


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("WORKQUEUE_TRACING", "yes", "use off or on"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "use otlp or none; for others "),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "use http/protobuf; for others "),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "none", "traces can't be exported as OTEL_... say: "),
    ],
)
async def test_what_can_not_be_done_is_one_line_and_exit_2(fast: Site, name: str, value: str, way_out: str) -> None:
    worker = await fast.worker("one", ready=False, **{"WORKQUEUE_TRACING": "on", name: value})
    assert await worker.ended() == 2
    assert worker.text().count("\n") == 1, worker.text()
    assert way_out in worker.text()


async def test_the_environment_names_the_service_and_the_processs_own_provider_is_used(
    fast: Site, collector: Collector, tmp_path: Path
) -> None:
    own = {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "team=a,service.instance.id=7"}
    await fast.send(simulate(1), **collector.environment(), **own)
    (sent,) = collector.spans
    assert [sent.of[name] for name in ("service.name", "service.instance.id", "team")] == ["shop", "7", "a"]
    script = tmp_path / "own.py"
    script.write_text(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import ConsoleSpanExporter, BatchSpanProcessor\n"
        "provider = TracerProvider(shutdown_on_exit=False)\n"
        "provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(), schedule_delay_millis=600_000))\n"
        "trace.set_tracer_provider(provider)\n"
        f"exec(open({str(ROOT / 'tests/workers/main.py')!r}).read())\n"
    )
    worker = await fast.worker("one", script=str(script), **collector.environment())
    await until(lambda: len(fast.ended()) == 1, "it is done")
    await ended(worker)
    assert worker.text().count('"name": "process errands"') == 1
    assert "Overriding" not in worker.text()
    assert len(collector.spans) == 1
