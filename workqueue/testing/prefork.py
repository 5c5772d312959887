"""Python scripts that start fast: forks of a process that has imported what nearly all of them do.

Imports took a third of the processor time that tests with a broker need. A fork runs the script itself, with arguments,
folder, environment and output of its own, and imports the project's own modules.

    python -m workqueue.testing.prefork DESCRIPTOR     asked over that socket, until it is closed
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

MODULES = (
    "aio_pika", "asyncapi_python.contrib.codec.registry", "jsonschema_rs", "psycopg", "rich.live", "typer", "uvloop",
    "workqueue.cli.operate", "workqueue.client", "workqueue.ledger.postgres", "workqueue.ledger.sqlite",
    "workqueue.process", "workqueue.worker",
)  # fmt: skip
IS_POSSIBLE = hasattr(os, "pidfd_open")  # Linux
LOOK_S = 0.01
MESSAGE_BYTES = 200_000  # that a socket takes
Streams = tuple[int, int, int]
"""The descriptors of standard input, output and error."""


class Forked:
    """See subprocess.Popen."""

    def __init__(self, pid: int, look: Callable[[], None]) -> None:
        self.pid, self._look = pid, look
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self._look()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout)
            time.sleep(LOOK_S)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Prefork:
    """The process that is forked, seen from the one that asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._running: dict[int, Forked] = {}
        atexit.register(self.close)

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Streams) -> Forked:
        """See `start`."""
        asked = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
        with self._lock:
            socket.send_fds(self._socket, [asked], streams)
            while (started := self._hear()) is None:
                pass
            return started

    def look(self) -> None:
        """See what has ended."""
        with self._lock, suppress(BlockingIOError):
            while True:
                self._hear(socket.MSG_DONTWAIT)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # whoever else has it by now
        self._socket.close()
        self._process.wait()

    def _hear(self, flags: int = 0) -> Forked | None:
        """One word of it: that a process has started, or ended. A number may be another one's after that."""
        pid, code = json.loads(self._socket.recv(MESSAGE_BYTES, flags))
        if code is None:
            self._running[pid] = Forked(pid, self.look)
            return self._running[pid]
        self._running.pop(pid).returncode = code
        return None


@cache
def _server(network: str) -> Prefork:
    """One for each network namespace: a fork is where its server is."""
    return Prefork()


def start(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Streams
) -> Forked | subprocess.Popen[bytes]:
    """Start `python ARGUMENTS` in this folder: a fork, where that makes no difference."""
    if IS_POSSIBLE and at_start(environment) == at_start(os.environ):
        network = os.readlink("/proc/thread-self/ns/net")
        return _server(network).start(arguments, folder, environment, streams)
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr
    )


def at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads at its start."""
    return {name: value for name, value in environment.items() if name.startswith(("PYTHON", "LC_", "LANG"))}


# --- the process that is forked ---------------------------------------------------------------------------------------


def serve(asking: socket.socket) -> list[str] | None:
    """Fork for whoever asks. None: nobody does any more. In a fork: the arguments that it was asked for."""
    with selectors.DefaultSelector() as selector:
        selector.register(asking, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(key.data, 0)
                    asking.send(json.dumps([key.data, os.waitstatus_to_exitcode(status)]).encode())
                    continue
                asked, given, _, _ = socket.recv_fds(asking, MESSAGE_BYTES, 3)
                if not asked:
                    return None
                arguments, folder, environment = json.loads(asked)
                pid = os.fork()
                if not pid:
                    for number, descriptor in enumerate(given):
                        os.dup2(descriptor, number)
                    os.chdir(folder)
                    os.environ.clear()
                    os.environ.update(environment)
                    ours = [one.fd for one in selector.get_map().values()]
                    for descriptor in {*given, *ours} - {0, 1, 2, asking.fileno()}:
                        os.close(descriptor)
                    return list(arguments)
                for descriptor in given:
                    os.close(descriptor)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                asking.send(json.dumps([pid, None]).encode())


def run(arguments: list[str]) -> None:
    """As the interpreter does with its arguments."""
    first, *more = arguments
    if first == "-m":
        sys.argv, sys.path[0] = more, os.getcwd()
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of a group: it ends with whoever asks
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        for module in MODULES:
            with suppress(ImportError):  # an extra that is not there
                importlib.import_module(module)
        gc.freeze()
        arguments = serve(asking)
    if arguments is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(arguments)


if __name__ == "__main__":
    main()
