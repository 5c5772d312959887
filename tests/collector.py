"""A collector of traces on loopback: it takes what is exported by OTLP, and keeps it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Seen:
    """A span that was exported. `events` and `of` (what its process says of itself) are as dicts."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    description: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    of: dict[str, Any]
    began_ns: int
    ended_ns: int

    @property
    def outcome(self) -> Any:
        return self.attributes.get("workqueue.outcome")


@dataclass
class Collector:
    """`raw` has the requests as they came."""

    endpoint: str = ""
    spans: list[Seen] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    delay_s: float = 0.0
    status: int = 200

    def environment(self) -> dict[str, Any]:
        return {
            "WORKQUEUE_TRACING": "on",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def named(self, name: str) -> list[Seen]:
        """The oldest first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.began_ns)

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of = values(resource.resource.attributes)
            self.spans += [seen(span, of) for scope in resource.scope_spans for span in scope.spans]


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def seen(span: Any, of: dict[str, Any]) -> Seen:
    events = [(event.name, values(event.attributes)) for event in span.events]
    return Seen(
        span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.kind, span.status.code,
        span.status.message, values(span.attributes), events, of, span.start_time_unix_nano, span.end_time_unix_nano,
    )  # fmt: skip


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(collector.delay_s)
            if collector.status == 200:
                collector.take(body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
