"""A log that nobody reads: no line blocks, what is lost is counted and told, and the process can end."""

import asyncio
import io
import os
import pty
import signal
import socket
import sys
import termios
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Site, simulate
from workqueue.process import stderr
from workqueue.process.stderr import KEPT_BYTES, Stderr
from workqueue.testing import RECORDER, until

LINE = "x" * 99 + "\n"
SLOW_S = 10.0  # nobody reads: a write that blocks would never return


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Where the log is read, and where it is written."""
    if request.param == "pipe":
        return os.pipe()
    if request.param == "socket":
        return tuple(end.detach() for end in socket.socketpair())  # type: ignore[return-value]
    reading, writing = pty.openpty()
    mode = termios.tcgetattr(writing)
    mode[1] &= ~termios.OPOST
    termios.tcsetattr(writing, termios.TCSANOW, mode)
    return reading, writing


def quickly(call: Callable[[], Any]) -> None:
    began = time.monotonic()
    call()
    assert time.monotonic() - began < SLOW_S


def fill(log: Stderr, lines: int) -> None:
    for number in range(lines):
        log.write(f"{number:09} {LINE}")


class Reader(threading.Thread):
    """Reads all that comes."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd, self.text = fd, b""
        self.start()

    def run(self) -> None:
        try:
            while data := os.read(self.fd, 65536):
                self.text += data
        except OSError:
            pass


async def test_a_line_that_is_read_is_written_at_once_and_whole(ends: tuple[int, int]) -> None:
    reading, writing = ends
    log, reader = Stderr(writing), Reader(reading)
    fill(log, 3000)
    log.end()
    await until(lambda: reader.text.count(b"\n") == 3000, "all is read")
    assert [int(line[:9]) for line in reader.text.splitlines()] == list(range(3000))


async def test_lines_that_nobody_reads_are_kept_and_come_in_their_order(ends: tuple[int, int]) -> None:
    reading, writing = ends
    log = Stderr(writing)
    quickly(lambda: fill(log, 3000))
    reader = Reader(reading)
    await until(lambda: reader.text.count(b"\n") == 3000, "all is read")
    fill(log, 1)
    await until(lambda: reader.text.count(b"\n") == 3001, "and what comes after that")
    assert [int(line[:9]) for line in reader.text.splitlines()] == [*range(3000), 0]


async def test_beyond_a_bound_lines_are_counted_and_that_is_told_when_somebody_reads_again(
    ends: tuple[int, int],
) -> None:
    reading, writing = ends
    log, lines = Stderr(writing), 3 * KEPT_BYTES // len(LINE)
    quickly(lambda: fill(log, lines))
    assert log._kept_bytes <= KEPT_BYTES
    reader = Reader(reading)
    await until(lambda: b"were dropped" in reader.text, "it is told")
    log.end()
    *kept, told = reader.text.splitlines()
    assert told.decode() == f"{lines - len(kept)} lines were dropped: nobody read the log"
    assert [int(line[:9]) for line in kept] == list(range(len(kept)))


async def test_what_was_dropped_is_one_gap_and_told_in_its_place(ends: tuple[int, int]) -> None:
    """A reader that goes on for a moment makes room, while the lines before are still to come."""
    reading, writing = ends
    log, lines = Stderr(writing), 2 * KEPT_BYTES // len(LINE)
    fill(log, lines)
    begin = log._kept_bytes
    text = b""
    while log._kept_bytes > begin - 10 * len(LINE):
        text += os.read(reading, 4096)
    fill(log, 5)
    reader = Reader(reading)
    await until(lambda: b"were dropped" in reader.text, "it is told")
    fill(log, 1)
    await until(lambda: reader.text.endswith(f"{0:09} {LINE}".encode()), "and what comes after that")
    *kept, told, _ = (text + reader.text).splitlines()
    assert [int(line[:9]) for line in kept] == list(range(len(kept)))
    assert told.decode() == f"{lines + 5 - len(kept)} lines were dropped: nobody read the log"


async def test_the_lines_of_two_that_share_a_pipe_stay_whole() -> None:
    """A traceback is one text of many lines, longer than what a pipe takes in one piece."""
    reading, writing = os.pipe()
    reader, records = Reader(reading), 80  # less than is kept

    def write(name: str) -> None:
        log = Stderr(writing)
        for _ in range(records):
            log.write((name * 2999 + "\n") * 3)
        log.end()

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    await until(lambda: reader.text.count(b"\n") == 2 * 3 * records, "all is read")
    assert {len(line) for line in reader.text.splitlines()} == {2999}


def test_a_terminal_that_is_stopped_holds_up_nothing() -> None:
    reading, writing = pty.openpty()
    log = Stderr(writing)
    termios.tcflow(writing, termios.TCOOFF)
    quickly(lambda: fill(log, 100))
    termios.tcflow(writing, termios.TCOON)
    reader = Reader(reading)
    log.end()
    while reader.text.count(b"\n") < 100:
        time.sleep(0.01)


def test_the_end_waits_for_a_slow_reader_and_not_for_one_that_reads_nothing(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr, "LAST_S", 0.2)
    reading, writing = ends
    log = Stderr(writing)
    fill(log, 3000)
    began = time.monotonic()
    log.end()
    assert 0.2 <= time.monotonic() - began < 0.2 + SLOW_S
    monkeypatch.setattr(stderr, "LAST_S", 30.0)
    reader = Reader(reading)
    log.end()
    os.close(writing)
    while reader.text.count(b"\n") < 3000:
        time.sleep(0.01)


def test_the_descriptor_that_others_share_still_blocks(ends: tuple[int, int]) -> None:
    _, writing = ends
    fill(Stderr(writing), 3000)
    assert os.get_blocking(writing)


@pytest.mark.parametrize("again", [False, True])
def test_a_reader_that_is_gone_is_no_error(ends: tuple[int, int], again: bool) -> None:
    reading, writing = ends
    log = Stderr(writing)
    if again:
        fill(log, 3000)
    os.close(reading)
    fill(log, 10)
    log.end()


def test_a_full_disk_is_no_error() -> None:
    with open("/dev/full", "w") as full:
        log = Stderr(full.fileno())
        fill(log, 10)
        log.end()


def test_it_is_a_text_stream_like_the_interpreters_own(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = Stderr(file.fileno(), "ascii")
        assert isinstance(log, io.TextIOBase)
        assert (log.fileno(), log.isatty(), log.writable(), log.encoding) == (file.fileno(), False, True, "ascii")
        print("a", "ü", "\udcff", file=log)
        log.write("no end")
        assert (tmp_path / "log").read_bytes() == b"a \\xfc \\udcff\n"
        log.flush()
    assert (tmp_path / "log").read_bytes() == b"a \\xfc \\udcff\nno end"


async def test_a_worker_whose_log_nobody_reads_does_its_tasks_once_keeps_its_claims_and_ends(fast: Site) -> None:
    command, environment = [sys.executable, RECORDER, fast.scripts.worker, "unread"], fast._environment({})
    reading, writing = os.pipe()
    while True:  # full from the start
        os.set_blocking(writing, False)
        try:
            os.write(writing, b"\n" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    worker = await asyncio.create_subprocess_exec(*command, cwd=fast.project, env=environment, stderr=writing)
    try:
        tasks, (long,) = simulate(300), simulate(1, seconds=5.0)  # the lease is 2 s
        await fast.send([*tasks, long])
        await until(lambda: len(fast.ended()) == 301, "all are done", within_s=60)
        second = await fast.worker("second")
        assert {line["worker"] for line in await fast.run([*tasks, long])} == {"unread"}
        await fast.all_end([*tasks, long])
        assert not second.says("done  ")
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 20) == 0
    finally:
        if worker.returncode is None:
            worker.kill()
        os.close(reading)
        os.close(writing)


async def test_a_producer_whose_problems_are_read_slowly_tells_each_of_them(site: Site) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *site.scripts.producer, "--jsonl", "-", *site.to),
        cwd=site.project, env=site._environment({}), stdin=PIPE, stderr=PIPE, limit=1024,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"bad\n" * 5000)
    process.stdin.close()
    await asyncio.sleep(1.0)  # a reader that takes its time
    said = (await process.stderr.read()).decode().splitlines()
    assert await process.wait() == 2
    assert len(said) == 5001
    assert said[-1] == "sent: 0 confirmed, 0 refused, 0 unknown, 5000 unreadable"
