"""The processes of a site: what they wrote, what they said, and how they ended."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workqueue.testing import prefork
from workqueue.testing.prefork import Forked

PIPE_BYTES = 4096  # the least that a pipe may hold, so that one which nobody reads is full soon
WAIT_S = 60.0  # generous: a deadline, not a time
LEAST_S, MOST_S = 0.02, 0.1  # between two looks at what is waited for


async def until(condition: Callable[[], Any], what: str, within_s: float = WAIT_S) -> Any:
    """Wait until `condition` (a function, or an async one) is true, and return what it returned.

    It is asked the less often the longer it takes: to ask may cost as much as what is waited for.
    """
    began = time.monotonic()
    deadline = began + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(min(MOST_S, LEAST_S + (time.monotonic() - began) / 20))


@dataclass(frozen=True)
class Note:
    """A line of the record: a handler's start or end. `operation` is the one that the handler is for; empty in a record
    of a version that did not write it."""

    word: str
    id: str
    worker: str
    pid: int
    at: float
    operation: str = ""


@dataclass
class Worker:
    """A worker process that was started."""

    name: str
    process: subprocess.Popen[bytes] | Forked
    log: Path
    read: threading.Event = field(default_factory=threading.Event)
    """Cleared, nobody reads what it writes; for one of a site that is `piped`."""

    def text(self) -> str:
        return self.log.read_text()

    def says(self, word: str) -> list[str]:
        """The lines of its log with this word."""
        return [line for line in self.text().splitlines() if f"  {word}" in line]

    def is_ready(self) -> bool:
        """Whether its log, text or JSON, says so."""
        text = self.text()
        return "  ready  " in text or '"event": "ready"' in text

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, within_s: float = WAIT_S) -> int:
        await until(lambda: self.process.poll() is not None, f"{self.name} ends; it said:\n{self.text()}", within_s)
        return self.process.wait()


@dataclass
class Produced:
    """What a producer that has ended said."""

    code: int
    out: str
    err: str

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


async def run_to_end(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], given: bytes = b"", within_s: float = WAIT_S
) -> Produced:
    """Run `python ARGUMENTS` to its end, with `given` as its standard input. It is killed if it takes longer."""
    reading, writing = os.pipe()
    feeding = asyncio.get_running_loop().run_in_executor(None, feed, writing, given)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = prefork.start(arguments, folder, environment, (reading, out.fileno(), err.fileno()))
        finally:
            os.close(reading)
        try:
            await until(lambda: process.poll() is not None, "the process ends", within_s)
        finally:
            process.kill()
            code = process.wait()
            await feeding
        for said in (out, err):
            said.seek(0)
        return Produced(code, out.read().decode(), err.read().decode())


def feed(pipe: int, given: bytes) -> None:
    with os.fdopen(pipe, "wb") as file, suppress(BrokenPipeError):
        file.write(given)


def drain(worker: Worker) -> None:
    """Read a worker's log into its file, while it may be read."""
    assert isinstance(worker.process, subprocess.Popen)
    pipe = worker.process.stderr
    assert pipe is not None
    with suppress(AttributeError):  # elsewhere than on Linux a pipe takes more before it is full
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with pipe, worker.log.open("ab") as file:
        while data := os.read(pipe.fileno(), PIPE_BYTES):
            file.write(data)
            file.flush()
            worker.read.wait()
