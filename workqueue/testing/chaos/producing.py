"""The producers of a run: one for each operation, started anew as often as it ends."""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.house import House
from workqueue.testing.chaos.load import Task
from workqueue.testing.scripts import Operation

ENDS_S = 120.0  # once it was given all
AGAIN = 500  # tasks that a producer is given though they are done
MOST_PROBLEMS = 3  # producers that end as none should, before the run is given up
LINES_AT_ONCE = 100  # about what a pipe takes


@dataclass
class Process:
    """A producer process, and all that it was given."""

    process: asyncio.subprocess.Process
    log: Path
    given: list[Task] = field(default_factory=list)
    reading: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        for pipe, to in ((self.process.stderr, self.log), (self.process.stdout, self.log.with_suffix(".out"))):
            self.reading.append(asyncio.create_task(_copy(pipe, to)))

    @property
    def is_reading(self) -> bool:
        assert self.process.stdin is not None
        return self.process.returncode is None and not self.process.stdin.is_closing()

    async def write(self, tasks: list[Task]) -> None:
        """Give it these, as fast as it takes them. One that ends meanwhile has not got them all."""
        assert self.process.stdin is not None
        self.given += tasks
        for start in range(0, len(tasks), LINES_AT_ONCE):
            if self.is_reading:
                self.process.stdin.write(b"".join(task.line for task in tasks[start : start + LINES_AT_ONCE]))
                with suppress(ConnectionError):
                    await self.process.stdin.drain()

    async def ended(self) -> int:
        """Wait for its end, and for the last of what it said."""
        code = await self.process.wait()
        await asyncio.gather(*self.reading)
        return code


class Producer:
    """Of one operation. `more` are tasks that faults add to its others."""

    def __init__(self, operation: Operation, house: House, book: Book) -> None:
        self._operation, self._house, self._book = operation, house, book
        self.more: deque[Task] = deque()
        self._running: Process | None = None
        self._started = 0

    async def feed(self, tasks: Sequence[tuple[float, Task]], over: asyncio.Event) -> None:
        """Give it each of these when it is due, by the monotonic clock; and those that faults add, until `over`."""
        for due, task in tasks:
            await self._give_more()
            await asyncio.sleep(due - time.monotonic())
            await self._give(task)
        while not over.is_set():
            await self._give_more()
            await asyncio.sleep(0.05)
        await self._give_more()

    async def _give_more(self) -> None:
        while self.more:
            await self._give(self.more.popleft())

    async def _give(self, task: Task) -> None:
        self._book.note_given(task)
        running = self._running
        while running is None or not running.is_reading:
            running = await self._start()
        await running.write([task])

    async def _start(self) -> Process:
        """Start one, and give it what the last one was given: nobody knows what of that the broker has. But for the
        last ones, what is done is not given again: that would be more than all the rest."""
        last = self._running
        if last is not None and await last.process.wait() == 3:  # there was no broker
            await asyncio.sleep(0.5)
        self._started += 1
        site = self._house.sites[self._started % len(self._house.sites)]
        process = await site.start_producer("--jsonl", "-", *self._operation.to)
        self._running = started = Process(process, site.folder / f"producer-{process.pid}.log")
        if last is not None:
            self._note_end(last, await last.ended())
            ended = {note.id for note in self._house.site.record() if note.word == "end"}
            older, latest = last.given[:-AGAIN], last.given[-AGAIN:]
            await started.write([task for task in older if task.id not in ended] + latest)
        return started

    def _note_end(self, last: Process, code: int) -> None:
        problems = self._book.problems
        if code not in (-signal.SIGKILL, 3, 0):
            problems.append(f"a producer ended with {code}, see {last.log.name}")
        if len(problems) > MOST_PROBLEMS:  # the next one would end like this too
            raise RuntimeError(problems[-1])

    async def finish(self) -> None:
        """Let the last one come to its end, which must be a good one, with an account of all that it was given."""
        while (running := self._running) is not None:
            assert running.process.stdin is not None
            running.process.stdin.close()
            async with asyncio.timeout(ENDS_S):
                code = await running.ended()
            self._note_end(running, code)
            if code == 0:
                said = running.log.read_text()
                if f"sent: {len(running.given)} confirmed, 0 refused, 0 unknown" not in said:
                    self._book.problems.append(f"a producer was given {len(running.given)} tasks; {said.strip()}")
                return
            await self._start()

    async def kill(self) -> bool:
        """False: none is running."""
        running = self._running
        if running is None or running.process.returncode is not None:
            return False
        running.process.kill()
        await running.process.wait()
        return True

    def end(self) -> None:
        """Leave none running."""
        if self._running is not None and self._running.process.returncode is None:
            with suppress(ProcessLookupError):
                self._running.process.kill()


async def _copy(pipe: asyncio.StreamReader, to: Path) -> None:
    with to.open("wb") as file:
        while data := await pipe.read(65536):
            file.write(data)
            file.flush()
