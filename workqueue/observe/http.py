"""WORKQUEUE_HTTP: `/metrics`, `/livez` and `/readyz` of a worker, answered by a thread of their own."""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from workqueue.errors import SettingInvalid
from workqueue.observe.health import Health
from workqueue.process.children import forget, keep_from_children

REQUEST_S = 5.0  # a client that sends nothing is heard no longer
WHOLE_S = 10.0  # for all of a request
AT_ONCE = 16
TEXT = [("Content-Type", "text/plain; charset=utf-8")]
METRICS = [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")]


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is nothing to be told."""

    def address_string(self) -> str:
        return str(self.client_address[0])  # no name is looked up


class _Server(ThreadingMixIn, WSGIServer):
    """Answers AT_ONCE clients at a time, none for longer than WHOLE_S: who sends a byte now and then gets no more of
    the worker's descriptors and threads than that."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, *given: Any) -> None:
        self._began: dict[Any, float] = {}
        self._lock = threading.Lock()
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        now_s = time.monotonic()
        with self._lock:
            for other, began_s in self._began.items():
                if now_s - began_s > WHOLE_S:
                    with suppress(OSError):
                        other.shutdown(socket.SHUT_RDWR)
            full = len(self._began) >= AT_ONCE
            if not full:
                self._began[request] = now_s
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's looks up a name, which may take long
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class Http:
    """Serves until `close`. `address` is where: with port 0 the system has chosen one."""

    def __init__(self, where: str, health: Health, metrics: Callable[[], bytes]) -> None:
        """Raises SettingInvalid where it can't listen there."""
        self._health, self._metrics = health, metrics
        host, _, port = where.rpartition(":")
        kind = _Server6 if host.startswith("[") else _Server
        try:
            self._server = make_server(
                host.strip("[]"), int(port), self._answer, server_class=kind, handler_class=_Handler
            )
        except OSError as error:
            way_out = "name a free port of this host; each worker needs its own"
            raise SettingInvalid("WORKQUEUE_HTTP", where, f"{error.strerror}: {way_out}") from error
        keep_from_children(self._server.fileno())
        bound, number = self._server.server_address[:2]
        self.address = f"{bound!s}:{number}"
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        forget(self._server.fileno())
        with suppress(OSError):
            self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [*TEXT, ("Allow", "GET, HEAD")])
            return [b"GET, please\n"]
        match environ["PATH_INFO"]:
            case "/metrics":
                start_response("200 OK", [*METRICS])
                return [self._metrics()]
            case "/livez":
                return _verdict(self._health.dead(), "alive", start_response)
            case "/readyz":
                return _verdict(self._health.not_ready(), "ready", start_response)
        start_response("404 Not Found", [*TEXT])
        return [b"there are /metrics, /livez and /readyz\n"]


def _verdict(problems: list[str], good: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("503 Service Unavailable" if problems else "200 OK", [*TEXT])
    return ["".join(f"{line}\n" for line in problems or [good]).encode()]
