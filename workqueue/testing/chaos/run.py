"""One run of chaos: a broker, a ledger, three workers and a producer, with proxies between, and the tasks' way
through them."""

import asyncio
import json
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aio_pika
import psycopg
from aio_pika.exceptions import ChannelNotFoundEntity

from workqueue.dev.node import Node
from workqueue.dev.postgres import Postgres
from workqueue.testing.account import Account, Evidence, Letter, Life, Span, account, trail
from workqueue.testing.chaos.faults import SETTLE_S, Faults
from workqueue.testing.chaos.load import EXAMPLES_NAP, NAP, Task, make_tasks
from workqueue.testing.chaos.plan import KINDS, Fault, plan, usable
from workqueue.testing.processes import Worker, until
from workqueue.testing.proxy import Proxy
from workqueue.testing.scripts import Scripts
from workqueue.testing.site import Site

WORKERS = 3
PATIENCE_S = 60.0  # without anything ending, and beyond the longest delay, before the rest is called lost
START_S = 120.0
STOP_S = 180.0  # of a process that starts, or ends, on a machine with far too much to do
SIGNALS_APART_S = 0.001  # at the very same moment they would be one
STARVED_LOOK_S = 0.5
STARVED_SHARE = 0.5  # of that time on a processor's queue: the machine has too much to do, not the worker too little
AGAIN = 500  # tasks that a producer is given though they are done
MOST_PROBLEMS = 3  # producers that end as none should, before the run is given up
LINES_AT_ONCE = 100  # about what a pipe takes


@dataclass
class Producing:
    """A producer process, and all that it was given."""

    process: asyncio.subprocess.Process
    given: list[Task] = field(default_factory=list)
    reading: list[asyncio.Task[None]] = field(default_factory=list)

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


class Chaos:
    """One run, in a folder of its own. `run` gives the account; nothing is left running after it, however it ends."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        seconds: float,
        tasks: int,
        ledger: str = "sqlite",
        concurrency: int = 1,
        project: Path,
        scripts: Scripts,
        odd_ways: Sequence[str] = (),
        payloads: Sequence[dict[str, Any]] = (),
        old: Path | None = None,
        kinds: Sequence[str] = tuple(KINDS),
        say: Callable[[str], None] = print,
    ) -> None:
        """Without `payloads` the tasks are of the example's contract, and known to fail just where they are told to;
        with `odd_ways`, of one with the kinds `nap`, `odd` and `deadly`, as this package's tests have it.
        Each worker has from 1 to `concurrency` tasks in hand at a time. `old` is an older version of the project:
        every other worker and producer is of that one."""
        self.folder, self._seconds, self._ledger, self._say = folder, seconds, ledger, say
        self._project, self._scripts, self._concurrency = project, scripts, concurrency
        self.own, self._old = not payloads, old
        self.odd_ways = tuple(odd_ways)
        self.kind = NAP if odd_ways else EXAMPLES_NAP
        self.tasks = make_tasks(seed, tasks, payloads, self.kind)
        self._rng = random.Random(f"workers {seed}")
        self.plan = plan(
            seed, seconds, usable(kinds, own=self.own and bool(odd_ways), server=ledger == "postgres"), WORKERS
        )
        self._faults = Faults(self, seed)
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self._lives: list[Life] = []
        self.running: dict[int, tuple[Life, Worker]] = {}
        self._closing = self._faults_over = False
        self.producer: Producing | None = None
        self._producers = 0
        self.more: deque[Task] = deque()
        """Tasks that faults add to the others."""
        self._given: dict[str, float] = {}
        self._failures: dict[str, int | None] = {}
        self.poisoned: dict[str, str] = {}
        self.curable: dict[str, str] = {}
        self.odd: set[str] = set()
        self.deadly: set[str] = set()
        self.flooded: set[str] = set()
        self.moved: list[Letter] = []
        self.deleted = 0
        self._letters: list[Letter] = []
        self.unhealthy: list[Span] = []
        self._problems: list[str] = []
        self._versions = ""
        self.postgres: Postgres | None = None
        self.ledger_proxy: Proxy | None = None

    async def run(self) -> Account:
        for fault in self.plan:
            self._say(str(fault))
        async with AsyncExitStack() as closing:
            await self._set_up(closing)
            keepers = [asyncio.create_task(self._keep_worker(number + 1)) for number in range(WORKERS)]
            closing.callback(self._kill_all, keepers)
            await until(lambda: len(self._ready()) == WORKERS, "all workers are ready", within_s=START_S)
            await asyncio.sleep(SETTLE_S)
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed())
                async with asyncio.TaskGroup() as faults:
                    for fault in self.plan:
                        faults.create_task(self._carry_out(fault))
                self._faults_over = True
            await self._finish_producer()
            stuck = await self._finish()
            self._closing = True
            await asyncio.gather(*(self.term(number) for number in self.running))
            await asyncio.gather(*keepers)
            left_over = await self._depth()
            await self._take_letters()
            self.evidence = self._evidence(left_over, stuck)
        self.account = account(self.evidence)
        self.account.crashed += self._problems
        return self.account

    def _evidence(self, left_over: int, stuck: bool) -> Evidence:
        receive = self.site.receive
        return Evidence(
            given=self._given, failures=self._failures, poison=self.poisoned, curable=self.curable,
            notes=self.site.record(), letters=self._letters, lives=self._lives,
            unhealthy=self.unhealthy, left_over=left_over, stuck=stuck,
            own_failures=not self.own, odd=frozenset(self.odd), deadly=frozenset(self.deadly),
            flooded=frozenset(self.flooded), moved=self.moved, deleted=self.deleted,
            max_attempts=receive.max_attempts, crash_limit=receive.crash_limit,
        )  # fmt: skip

    def describe(self) -> str:
        """The account as text, with the faults by kind."""
        kinds = self._faults.by_kind
        lines = [f"  {kind:<33} {self.hits[kind]} times" for kind in kinds if self.hits[kind]]
        lines += [f"  {kind:<33} {self.misses[kind]} times without effect" for kind in kinds if self.misses[kind]]
        return "\n".join([self._versions, *lines, str(self.account)])

    def keep_evidence(self) -> None:
        """Write what is known of each offending id to the folder, and leave there what helps to understand it."""
        (self.folder / "account").write_text(self.describe() + "\n")
        (self.folder / "offending").write_text("\n".join(trail(self.account.offending, self.evidence)) + "\n")
        shutil.rmtree(self.folder / "node" / "data", ignore_errors=True)

    # --- the house ---------------------------------------------------------------------------------------------------

    async def _set_up(self, closing: AsyncExitStack) -> None:
        self.node = Node(self.folder / "node")
        closing.callback(self.node.stop)
        await asyncio.to_thread(self.node.start)
        environment = {"none": {"LEDGER_URL": "none"}}.get(self._ledger, {})
        if self._ledger == "postgres":
            self.postgres = await asyncio.to_thread(Postgres)
            closing.callback(self.postgres.__exit__)
            await asyncio.to_thread(self.postgres.start)
            port = psycopg.conninfo.conninfo_to_dict(self.postgres.url)["port"]
            self.ledger_proxy = await closing.enter_async_context(Proxy(int(str(port))))
            environment["LEDGER_URL"] = self.postgres.url.replace(f":{port}/", f":{self.ledger_proxy.port}/")
        self.proxy = await closing.enter_async_context(Proxy(self.node.record.port))
        uri = self.node.uri.replace(f":{self.node.record.port}/", f":{self.proxy.port}/")
        if self.own and self.kind == EXAMPLES_NAP:
            environment["WORKQUEUE_ROOT"] = str(self.folder)
            (self.folder / "a file").write_bytes(bytes(1_000_000))
        self.site = Site(self.folder, uri, self._project, environment, scripts=self._scripts, piped=True)
        self.direct = Site(self.folder, self.node.uri, self._project, scripts=self._scripts)
        self._sites = [self.site]
        if self._old is not None:  # with its own way of recording: what is wrapped is its own runtime
            places = ("workqueue/testing/recorder.py", "tests/recording_worker.py")
            recorder = next(str(self._old / place) for place in places if (self._old / place).exists())
            self._sites.append(replace(self.site, project=self._old, recorder=recorder, workers=[]))
        for site in self._sites:
            closing.callback(site.stop)
        rungs = self.site.receive.rungs
        self._queues = [self.site.queue, *(rung.queue.name for rung in rungs)]
        self._patience_s = PATIENCE_S + rungs[-1].delay_s
        connection = await aio_pika.connect(self.node.uri)
        async with connection:
            underlay: Any = connection.transport
            broker = underlay.connection.server_properties["version"]
        if isinstance(broker, bytes):
            broker = broker.decode()
        self._versions = f"RabbitMQ {broker}, Python {sys.version.split()[0]}, aio-pika {version('aio-pika')}, " + {
            "sqlite": f"SQLite {sqlite3.sqlite_version}",
            "none": "no ledger",
        }.get(self._ledger, self._server())

    def _server(self) -> str:
        if self.postgres is None:
            return ""
        with psycopg.connect(self.postgres.url) as connection:
            return f"PostgreSQL {connection.info.server_version // 10_000}"

    async def _keep_worker(self, number: int) -> None:
        """Have a worker of this number all the time: when one has ended, the next one starts."""
        while not self._closing:
            at_once = self._rng.randint(1, self._concurrency)
            flags = ("--concurrency", str(at_once)) if at_once > 1 else ()
            site = self._sites[number % len(self._sites)]
            worker = await site.worker(f"worker{number}", *flags, ready=False, WORKQUEUE_LOG_FORMAT="json")
            life = Life(worker.name, worker.process.pid, worker.log, began=time.time(), concurrency=at_once)
            self._lives.append(life)
            self.running[number] = life, worker
            looked, queued = life.began, 0.0
            while worker.process.poll() is None:
                if life.ready is None and worker.is_ready():
                    life.ready = time.time()
                await asyncio.sleep(0.02)
                if (now := time.time()) - looked > STARVED_LOOK_S:
                    before_s, queued = queued, queued_s(life.pid, queued)
                    if queued - before_s > STARVED_SHARE * (now - looked):
                        life.frozen.append((looked, now))
                    looked = now
            life.ended, life.code = time.time(), worker.process.returncode
            if life.code == 3:  # no broker to start with
                await asyncio.sleep(0.5)

    def _ready(self) -> list[Life]:
        return [life for life, _ in self.running.values() if life.ready is not None and life.ended is None]

    def _kill_all(self, keepers: list[asyncio.Task[None]]) -> None:
        self._closing = True
        for keeper in keepers:
            keeper.cancel()
        if self.producer is not None and self.producer.process.returncode is None:
            with suppress(ProcessLookupError):
                self.producer.process.kill()

    async def term(self, number: int, *signals: signal.Signals) -> bool:
        """End a worker, by SIGTERM if nothing else is said. One that is starting has no handler for it yet. False: it
        was ending already."""
        life, worker = self.running[number]
        await until(lambda: life.ready or life.ended, f"{life.name} is ready", within_s=STOP_S)
        if life.ended is not None or life.killed is not None or life.termed is not None:
            return False
        life.termed = time.time()
        for one in signals or (signal.SIGTERM,):
            worker.signal(one)
            time.sleep(SIGNALS_APART_S)  # noqa: ASYNC251  # less than the event loop can be trusted with
        await until(lambda: life.ended, f"{life.name} ends after a signal, see {life.log}", within_s=STOP_S)
        return True

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Give the producer the tasks, evenly over the time, and those that faults add, as long as there are faults."""
        for index, task in enumerate(self.tasks):
            due = self._began + index * self._seconds / len(self.tasks)
            await self._give_more()
            await asyncio.sleep(due - time.monotonic())
            await self._give(task)
        while not self._faults_over:
            await self._give_more()
            await asyncio.sleep(0.05)
        await self._give_more()

    async def _give_more(self) -> None:
        while self.more:
            await self._give(self.more.popleft())

    def note_given(self, task: Task) -> None:
        self._given.setdefault(task.id, time.time())
        if self.own:
            self._failures[task.id] = task.failures

    async def _give(self, task: Task) -> None:
        self.note_given(task)
        while self.producer is None or not self.producer.is_reading:
            await self._start_producer()
        await self.producer.write([task])

    async def _start_producer(self) -> None:
        """Start one, and give it what the last one was given: nobody knows what of that the broker has. But for the
        last ones, what is done is not given again: that would be more than all the rest."""
        last = self.producer
        if last is not None:
            await last.process.wait()
            if last.process.returncode == 3:  # there was no broker
                await asyncio.sleep(0.5)
        self._producers += 1
        site = self._sites[self._producers % len(self._sites)]
        self.producer = Producing(await site.start_producer("--jsonl", "-", *self.site.to))
        process = self.producer.process
        assert process.stderr is not None
        assert process.stdout is not None
        log = self.folder / f"producer-{process.pid}.log"
        self.producer.reading = [
            asyncio.create_task(_copy(pipe, log.with_suffix(suffix)))
            for pipe, suffix in ((process.stderr, ".log"), (process.stdout, ".out"))
        ]
        if last is not None:
            await asyncio.gather(*last.reading)
            self._note_end_of_producer(last)
            ended = {note.id for note in self.site.record() if note.word == "end"}
            older, latest = last.given[:-AGAIN], last.given[-AGAIN:]
            await self.producer.write([task for task in older if task.id not in ended] + latest)

    def _note_end_of_producer(self, last: Producing) -> None:
        code = last.process.returncode
        if code not in (-signal.SIGKILL, 3, 0):
            self._problems.append(f"a producer ended with {code}, see producer-{last.process.pid}.log")
        if len(self._problems) > MOST_PROBLEMS:  # the next one would end like this too
            raise RuntimeError(self._problems[-1])

    async def _finish_producer(self) -> None:
        """Let the last producer come to its end, which must be a good one."""
        while self.producer is not None:
            producer = self.producer
            assert producer.process.stdin is not None
            producer.process.stdin.close()
            async with asyncio.timeout(2 * PATIENCE_S):
                await producer.process.wait()
                await asyncio.gather(*producer.reading)
            self._note_end_of_producer(producer)
            if producer.process.returncode == 0:
                said = (self.folder / f"producer-{producer.process.pid}.log").read_text()
                if f"sent: {len(producer.given)} confirmed, 0 refused, 0 unknown" not in said:
                    self._problems.append(f"the producer was given {len(producer.given)} tasks; {said.strip()}")
                return
            await self._start_producer()

    async def _finish(self) -> bool:
        """Wait until everything that was sent is done or dead. True: nothing moved any more."""
        last: tuple[int, ...] = ()
        moved, quiet = time.monotonic(), 0
        while time.monotonic() - moved < self._patience_s:
            await self._take_letters()
            notes, depth = self.site.record(), await self._depth()
            ended = {note.id for note in notes if note.word == "end"} | {letter.id for letter in self._letters}
            ended |= {poison for poison, task in self.curable.items() if task in ended}
            missing = (self._given.keys() | self.poisoned.keys()) - ended
            quiet = quiet + 1 if not missing and not depth else 0
            if quiet > 2 and not await self._in_hand():
                return False
            if last != (now := (len(notes), len(self._letters), depth)):
                last, moved = now, time.monotonic()
            await asyncio.sleep(0.3)
        return True

    async def _depth(self) -> int:
        """How many messages wait, in the queue and on its rungs; those in a worker's hands are not among them."""
        waiting = 0
        for name in self._queues:
            async with self.direct.amqp() as channel:
                with suppress(ChannelNotFoundEntity):  # deleted, and not needed since
                    queue = await channel.declare_queue(name, passive=True)
                    waiting += queue.declaration_result.message_count or 0
        return waiting

    async def _in_hand(self) -> int:
        """How many messages there are at all, those in workers' hands too. It takes half a second of a processor."""
        rows = await asyncio.to_thread(self.node.ctl, "list_queues", "name", "messages", "--formatter", "json")
        return sum(row["messages"] for row in json.loads(rows) if row["name"] != self.site.dead_queue)

    async def _take_letters(self) -> None:
        async with self.direct.amqp() as channel:
            with suppress(ChannelNotFoundEntity):
                queue = await channel.declare_queue(self.site.dead_queue, passive=True)
                while (message := await queue.get(fail=False)) is not None:
                    await message.ack()
                    self._letters.append(Letter(self.id_of(message), message.headers))

    def id_of(self, message: aio_pika.abc.AbstractIncomingMessage) -> str:
        """The task's id, if it has one, else the message's."""
        id = str(message.message_id)
        with suppress(ValueError, TypeError, KeyError):
            return id if id in self.poisoned else str(json.loads(message.body)["id"])
        return id

    # --- faults ------------------------------------------------------------------------------------------------------

    async def _carry_out(self, fault: Fault) -> None:
        await asyncio.sleep(self._began + fault.at_s - time.monotonic())
        hit = await self._faults.by_kind[fault.kind](fault)
        (self.hits if hit else self.misses)[fault.kind] += 1
        elapsed_s = time.monotonic() - self._began
        self._say(
            f"{elapsed_s:6.1f} s  {fault.kind} {'over' if hit else 'had no effect'}; {len(self._given)} tasks given"
        )


def queued_s(pid: int, otherwise_s: float) -> float:
    """How long a process's main thread has been ready to run, and did not, for want of a processor."""
    with suppress(OSError, IndexError):  # it has just ended; or it is not Linux
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return otherwise_s


async def _copy(pipe: asyncio.StreamReader, to: Path) -> None:
    with to.open("wb") as file:
        while data := await pipe.read(65536):
            file.write(data)
            file.flush()
