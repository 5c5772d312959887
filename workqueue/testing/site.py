"""What tests with a broker stand on: a site with a vhost, a ledger and processes of its own.

A site runs the project's real scripts as real processes, from its folder or from a copy with another contract. It looks
at the broker through a connection of its own, by the plain AMQP client, so that nothing of ours is between.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from workqueue import contract
from workqueue.testing import prefork
from workqueue.testing.prefork import Forked
from workqueue.testing.processes import WAIT_S, Note, Produced, Worker, drain, run_to_end, until
from workqueue.testing.scripts import MAIN, Operation, Scripts
from workqueue.testing.stand_in import StandIn, skip

RECORDER = str(Path(__file__).with_name("recorder.py"))
PRODUCER_S = 220.0  # below the time limit of a test, so that what was running is stopped
LAST_LINES = 40  # of what a worker said, shown where its test fails


@dataclass
class Site:
    """A place where the project runs."""

    folder: Path
    uri: str
    project: Path = field(default_factory=Path.cwd)
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    scripts: Scripts = MAIN
    operation: str = ""
    """The receive operation that it sends to and looks at; the contract's first one if this is empty."""
    stand_in: bool = False
    """Its workers have stand-ins for their handlers, which do the tasks of `tasks` as those say; see `StandIn`."""
    recorder: str = RECORDER
    piped: bool = False
    """Its workers write to pipes, each of which is read to the log's file as long as the worker's `read` is set."""
    _notes: list[Note] = field(default_factory=list, init=False)
    _noted_bytes: int = field(default=0, init=False)

    @cached_property
    def _operation(self) -> Operation:
        operations = self.scripts.operations(self.project)
        return operations[self.operation or next(iter(operations))]

    @property
    def receive(self) -> contract.Receive:
        """Its operation, as the contract of this site has it."""
        return self._operation.receive

    @property
    def to(self) -> tuple[str, ...]:
        """The flags with which a producer sends lines to its operation. Skips the test where none can."""
        if self._operation.send is None:
            skip(f"nothing in this project sends to {self.queue}")
        return self._operation.to

    @property
    def queue(self) -> str:
        return self.receive.queue.name

    @property
    def dead_queue(self) -> str:
        return self.receive.dead.name

    @property
    def ledger_url(self) -> str:
        return self.environment.get("LEDGER_URL", f"sqlite:{self.folder / 'ledger.db'}")

    @cached_property
    def _stand_in(self) -> StandIn:
        return StandIn(self.folder / "stand-in", self.receive)

    def tasks(self, count: int, seconds: float = 0.0, failures: int = 0) -> list[dict[str, Any]]:
        """Whole tasks, of the contract's kinds in turn, that stand-ins take so long for, after so many failures."""
        return self._stand_in.tasks(count, seconds, failures)

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        own = {"AMQP_URI": self.uri, "LEDGER_URL": self.ledger_url, "RECORD": str(self.folder / "record")}
        if self.stand_in:
            own["STAND_IN"] = str(self._stand_in.folder)
        return {**os.environ, **own, **self.environment, **more}

    async def worker(
        self, name: str = "", *flags: str, ready: bool = True, script: str = "", **environment: str
    ) -> Worker:
        """Start a worker, one that records what its handler does, and wait until it says that it is ready."""
        name = name or f"worker{len(self.workers) + 1}"
        log = self.folder / f"{name}-{secrets.token_hex(6)}.log"
        command = [self.recorder, script or self.scripts.worker, name, *flags]
        told = self._environment(environment)
        process: subprocess.Popen[bytes] | Forked
        with log.open("wb") as out:
            if self.piped:
                process = subprocess.Popen(  # noqa: ASYNC220  # it is quick, and tests signal it as they like
                    [sys.executable, *command], cwd=self.project, env=told, stdout=out, stderr=subprocess.PIPE
                )
            else:
                process = prefork.start(command, self.project, told, (0, out.fileno(), out.fileno()))
        worker = Worker(name, process, log)
        if self.piped:
            worker.read.set()
            threading.Thread(target=drain, args=(worker,), name=f"log of {name}", daemon=True).start()
        self.workers.append(worker)
        if ready:
            await until(lambda: worker.is_ready() or process.poll() is not None, f"{name} is ready: {worker.text()}")
            assert process.poll() is None, worker.text()
        return worker

    def producing(self, *flags: str) -> tuple[str, ...]:
        """Python's arguments for a producer with these flags."""
        return (*self.scripts.producer, *flags)

    async def start_producer(self, *flags: str, **environment: str) -> asyncio.subprocess.Process:
        """Start a producer, with pipes for what it reads and says."""
        pipe = subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *self.producing(*flags),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=self.project,
            env=self._environment(environment),
        )

    async def producer(self, *flags: str, lines: str | bytes = "", **environment: Any) -> Produced:
        """Run a producer to its end. `lines` is its standard input."""
        given = lines.encode() if isinstance(lines, str) else lines
        told = self._environment(environment)
        return await run_to_end(self.producing(*flags), self.project, told, given, PRODUCER_S)

    async def workqueue(self, *arguments: str, given: str = "", **environment: str) -> Produced:
        """Run `python -m workqueue ARGUMENTS` to its end, on this project, its broker and its ledger."""
        home = (self.project / self.scripts.generated).parent
        command = ("-m", "workqueue", *arguments, *(() if "--project" in arguments else ("--project", str(home))))
        return await run_to_end(command, self.project, self._environment(environment), given.encode(), PRODUCER_S)

    async def send(self, payloads: list[dict[str, Any]], *flags: str, **environment: str) -> Produced:
        """Send these payloads, or whole tasks, with a producer that must succeed."""
        text = "".join(json.dumps(payload) + "\n" for payload in payloads)
        to = () if "--to" in flags else self.to
        produced = await self.producer("--jsonl", "-", *to, *flags, lines=text, **environment)
        assert produced.code == 0, produced.err
        return produced

    async def run(self, payloads: list[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
        """Send these, wait until all are finished, and return the lines of the results file."""
        results = self.folder / f"results-{secrets.token_hex(6)}.jsonl"
        text = "".join(json.dumps(payload) + "\n" for payload in payloads)
        flags = ("--jsonl", "-", "--wait", "--results", str(results), *self.to)
        produced = await self.producer(*flags, lines=text, **environment)
        print(f"the producer ended with {produced.code} and said:\n{produced.err}")  # shown where the test fails
        assert produced.code in (0, 1)  # 1: some of them died
        return [json.loads(line) for line in results.read_text().splitlines()]

    @asynccontextmanager
    async def amqp(self) -> AsyncIterator[AbstractChannel]:
        """A channel of a plain client."""
        connection = await aio_pika.connect(self.uri)
        async with connection:
            yield await connection.channel(on_return_raises=True)

    async def publish(self, body: bytes, queue: str | None = None, **properties: Any) -> None:
        """Publish as a client does that knows nothing of us."""
        async with self.amqp() as channel:
            await channel.default_exchange.publish(
                aio_pika.Message(body, **properties), routing_key=queue or self.queue
            )

    async def depth_is(self, messages: int, queue: str | None = None) -> bool:
        """Whether so many messages wait in the queue; those that are delivered and unacked do not count."""
        async with self.amqp() as channel:
            try:
                declared = await channel.declare_queue(queue or self.queue, passive=True)
            except ChannelNotFoundEntity:
                return False  # nobody has declared it yet
            return declared.declaration_result.message_count == messages

    async def dead_letters(self, count: int, within_s: float = WAIT_S) -> list[AbstractIncomingMessage]:
        """Take this many dead letters off their queue, and see that there are no more."""
        taken: list[AbstractIncomingMessage] = []
        async with self.amqp() as channel:
            queue = await channel.declare_queue(self.dead_queue, passive=True)

            async def take() -> bool:
                while (message := await queue.get(fail=False)) is not None:
                    await message.ack()
                    taken.append(message)
                return len(taken) >= count

            await until(take, f"{count} dead letters; there are {len(taken)}", within_s)
        assert len(taken) == count
        return taken

    def record(self) -> list[Note]:
        """What the handlers wrote, in the order of its writing."""
        with suppress(FileNotFoundError), (self.folder / "record").open("rb") as file:
            file.seek(self._noted_bytes)
            whole, end, _ = file.read().rpartition(b"\n")  # one may be half written just now
            fields = map(str.split, whole.decode().splitlines())
            self._notes += [
                Note(word, id, name, int(pid), float(at), *more) for word, id, name, pid, at, *more in fields
            ]
            self._noted_bytes += len(whole + end)
        return [*self._notes]

    def ended(self) -> Counter[str]:
        """How often each task's handler came to its end."""
        return Counter(note.id for note in self.record() if note.word == "end")

    async def all_end(self, tasks: list[dict[str, Any]], within_s: float = WAIT_S) -> None:
        """Wait until each of these tasks was done, and see that each was done just once, and nothing else."""
        ids = {task["id"] for task in tasks}
        await until(lambda: ids <= self.ended().keys(), f"all of {len(ids)} tasks are done", within_s)
        assert self.ended() == Counter(ids)

    def stop(self) -> None:
        """End every process that was started here."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.process.kill()
        for worker in self.workers:
            worker.process.wait()

    def tell(self) -> None:
        """Print what its workers said last, for a test that fails."""
        for worker in self.workers:
            tail = "\n".join(worker.text().splitlines()[-LAST_LINES:])
            print(f"{worker.name} ended with {worker.process.returncode}; it said last:\n{tail}")
