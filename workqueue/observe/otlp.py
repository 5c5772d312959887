"""A tracer provider by the standard OTEL_* variables: spans in batches, over OTLP by HTTP.

A collector that is slow, or gone, costs no task anything: spans are dropped, which is said at growing intervals. The
process's end waits for it for FLUSH_S at most.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from workqueue.errors import SettingInvalid, UsageInvalid
from workqueue.observe.redacting import redacted
from workqueue.patience import Patience
from workqueue.settings import hide_password
from workqueue.tasks.stack import describe

log = logging.getLogger(__name__)

FLUSH_S = 2.0  # below what a worker leaves for the closing of its connections
LAST_S = 0.75  # the same, where no export has worked yet: below the exporter's first pause, for one that is refused
SERVICE = "workqueue"
ASKED_FOR = {
    "OTEL_TRACES_EXPORTER": ("otlp", "none"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("http/protobuf",),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ("http/protobuf",),
}


def set_up(name: str) -> Callable[[], None]:
    """Make the process's tracer provider, and return what exports the rest at the end. `name` is the process.

    Raises SettingInvalid, UsageInvalid for variables that ask for what is not done here.
    """
    for variable, known in ASKED_FOR.items():
        if (value := os.environ.get(variable)) and value not in known:
            way_out = f"use {' or '.join(known)}; for others let the script set a tracer provider of its own"
            raise SettingInvalid(variable, value, way_out)
    export = None if os.environ.get("OTEL_TRACES_EXPORTER") == "none" else Export(name)
    provider = TracerProvider(resource=resource(name), shutdown_on_exit=False)  # that would wait as long as it takes
    trace.set_tracer_provider(provider)
    if export is None:
        return lambda: None
    provider.add_span_processor(BatchSpanProcessor(export))
    rest = Rest(name, provider, export)
    atexit.register(rest.export)
    return rest.export


def resource(name: str) -> Resource:
    """What the process says of itself: as the environment has it, and where that says nothing, the name."""
    said = OTELResourceDetector().detect().attributes
    own = {SERVICE_NAME: SERVICE, SERVICE_INSTANCE_ID: name}  # the SDK's own would be a number, and a new one each time
    return Resource.create({attribute: value for attribute, value in own.items() if attribute not in said})


class Export(SpanExporter):
    """Exports by the exporter of the SDK, and says in its place when that fails."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failing: Patience | None = None
        self._overflowing = Patience()
        self._works = self._ending = self._given_up = False
        try:
            self._exporter = OTLPSpanExporter()
        except (ValueError, RuntimeError) as error:
            raise UsageInvalid(f"traces can't be exported as OTEL_... say: {error}") from error
        self._said = Said()
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(self._said)
        logging.getLogger("opentelemetry.sdk._shared_internal").addFilter(self._is_others)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._given_up:
            return SpanExportResult.FAILURE
        result, self._said.first = SpanExportResult.FAILURE, ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001  # older exporters let those of their HTTP client pass
            self._said.first = describe(error)
        self._works = result is SpanExportResult.SUCCESS
        if self._works:
            if self._failing is not None:
                log.info("%s  exports its traces again", self._name)
            self._failing = None
            return result
        self._given_up = self._ending
        self._failing = self._failing or Patience()
        if self._failing.due():
            said = self._said.first.removeprefix("Transient error ").partition(" encountered while ")[0]
            what = "%s  can't export its traces to %s, and drops them: %s"
            log.warning(what, self._name, hide_password(endpoint()), redacted(said, b""))
        return result

    def _is_others(self, record: logging.LogRecord) -> bool:
        """Says in the place of the SDK that more spans end than are exported, unless why was said."""
        if not str(record.msg).startswith("Queue full"):
            return True
        if self._failing is None and self._overflowing.due():
            way_out = "sample, or raise OTEL_BSP_MAX_QUEUE_SIZE"
            log.warning("%s  drops traces: more spans end than are exported in time; %s", self._name, way_out)
        return False

    def end(self) -> None:
        """From now on no export is tried for long, and none after one that failed."""
        if self._ending:
            return
        regular, self._ending = self._exporter, True
        self._exporter = OTLPSpanExporter(timeout=FLUSH_S if self._works else LAST_S)
        regular.shutdown()  # type: ignore[no-untyped-call]  # it wakes up, should it wait before it tries again

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def endpoint() -> str:
    """Where the collector is, as the exporter has it."""
    named = map(os.environ.get, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))
    return next(filter(None, named), "http://localhost:4318")


class Said(logging.Filter):
    """Keeps the first thing that a logger says, and has nothing of it written."""

    first = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.first = self.first or record.getMessage()
        return False


class Rest:
    """A thread that waits for the end of the process, to export the rest: by then none can be started any more."""

    def __init__(self, name: str, provider: TracerProvider, export: Export) -> None:
        self._name, self._provider, self._export = name, provider, export
        self._pid, self._is_late = os.getpid(), False
        self._wanted, self._done = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="traces", daemon=True).start()

    def export(self) -> None:
        """Export what has ended, for FLUSH_S at most. In a child that was forked, nothing: it has not the thread."""
        if os.getpid() == self._pid and not self._is_late:
            self._export.end()
            self._done.clear()
            self._wanted.set()
            self._is_late = not self._done.wait(FLUSH_S)
            if self._is_late:
                log.warning("%s  ends before its last traces were exported", self._name)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self._provider.force_flush()
            self._done.set()
