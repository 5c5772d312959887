"""Faults of every kind against a real work queue, and an account of what became of every task.

    python -m tests.chaos [--seed N] [--tasks N] [--seconds S] [--handler SCRIPT] [--ledger sqlite|postgres|none]
                          [--payloads FILE] [--faults KIND,...] [--keep]

It starts a broker, a ledger, three workers and a producer of its own, with a proxy between them and the broker, and
lets tasks flow while a schedule of faults runs; the same seed gives the same schedule and the same tasks. What is
counted is what handlers wrote and what lies among the dead letters, never what the ledger says.

Exit codes: 0 every promise was kept; 1 one was not, and all there is about it is in the folder that is named; 2 wrong
usage; 130 interrupted.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

import aio_pika
import psycopg

from tests.account import Account, Evidence, Letter, Life, Span, account, trail
from tests.harness import Note, Site, fast_copy, until
from tests.proxy import Direction, Flow, Proxy
from tools.broker import ensure_installed
from tools.node import BrokerError, Node
from tools.postgres import Postgres, PostgresError

WORKERS = 3
LEASE_S = 10
LIMIT_S = 60  # a frozen worker's handler does not run into it
FAULT_EVERY_S = 2.0
SETTLE_S = 3.0  # before the first fault: a quorum queue younger than a second may not survive SIGKILL of its node
PATIENCE_S = 60.0  # without anything ending, before the rest is called lost
HELD_BYTES = 21  # of a frame with an ack or a confirm; a heartbeat has 8
HELD_WITHIN_S = 6.0  # after a broker was away, a producer may sleep this long before it comes back
HANDSHAKE_S = 0.5  # a younger connection may have no more to lose than this
ALWAYS = 100  # failures: more than a task has attempts
AGAIN = 500  # tasks that a producer is given though they are done
LINES_AT_ONCE = 100  # about what a pipe takes

KINDS: dict[str, Span] = {
    "worker killed": (0.0, 0.0),
    "worker frozen": (1.0, 6.0),
    "workers restarted in turn": (0.0, 0.0),
    "broker restarted": (0.0, 1.0),
    "broker killed": (0.0, 1.0),
    "connections cut": (0.0, 0.0),
    "network stalled": (1.0, 5.0),
    "cut between publish and confirm": (0.2, 0.5),
    "cut between effect and ack": (0.2, 0.5),
    "cut between copy and ack": (0.2, 0.5),
    "producer killed": (0.0, 0.0),
    "poison sent": (0.0, 0.0),
    "publishers blocked": (2.0, 4.0),
    "ledger out of reach": (1.0, 4.0),
}
"""The kinds of fault, and how long one lasts, in seconds."""
PROVOKED = "killed in the honest window"
"""A kind that only comes when it is asked for: it makes a task be done twice, in the one way that is not promised."""


@dataclass(frozen=True)
class Fault:
    """One line of the schedule. `seconds` is how long it lasts, `worker` which one it hits, where it hits one."""

    at_s: float
    kind: str
    worker: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.kind:<32} worker{self.worker}  {self.seconds:.1f} s"


@dataclass(frozen=True)
class Task:
    """A line for the producer. `failures` is None if it is to fail always."""

    id: str
    line: bytes
    failures: int | None


def plan(seed: int, seconds: float, kinds: Sequence[str]) -> list[Fault]:
    """The schedule: every kind in a random order, then any; as many as there is time for."""
    rng = random.Random(f"faults {seed}")
    count = max(1, int(seconds / FAULT_EVERY_S))
    chosen = rng.sample(kinds, len(kinds))
    chosen = (chosen + rng.choices(kinds, k=count))[:count]
    rng.shuffle(chosen)
    every_s = seconds / count
    return [
        Fault((i + rng.random()) * every_s, kind, rng.randrange(WORKERS) + 1, rng.uniform(*KINDS.get(kind, (0, 0))))
        for i, kind in enumerate(chosen)
    ]


def make_task(rng: random.Random, payload: dict[str, Any]) -> Task:
    id, failures = str(UUID(int=rng.getrandbits(128), version=4)), payload.get("failures", 0)
    text = json.dumps({"id": id, "created_at": "2026-11-25T09:30:00Z", "payload": payload})
    return Task(id, text.encode() + b"\n", None if failures == ALWAYS else failures)


def make_tasks(seed: int, count: int, payloads: Sequence[dict[str, Any]]) -> list[Task]:
    """The tasks in the order they are given, 3 % of them given again a little later."""
    rng = random.Random(f"tasks {seed}")
    tasks = [make_task(rng, rng.choice(payloads) if payloads else some_payload(rng)) for _ in range(count)]
    for index in sorted(rng.sample(range(count), count * 3 // 100), reverse=True):
        tasks.insert(index + rng.randint(1, 100), tasks[index])
    return tasks


def some_payload(rng: random.Random) -> dict[str, Any]:
    simulate: dict[str, Any] = {"kind": "simulate", "seconds": round(rng.uniform(0, 0.02), 4)}
    match rng.choices(["quick", "slow", "failing", "doomed", "checksum"], [86, 4, 5, 1, 4])[0]:
        case "slow":
            return {**simulate, "seconds": 0.2}
        case "failing":
            return {**simulate, "failures": rng.randint(1, 2)}
        case "doomed":
            return {**simulate, "failures": ALWAYS}
        case "checksum":
            return {"kind": "checksum", "path": "a file"}
    return simulate


def poison(rng: random.Random) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bodies and headers that are not the contract's."""
    simulate = {"kind": "simulate", "seconds": 0}
    good = json.loads(make_task(rng, simulate).line)
    text = json.dumps(good).encode()
    yield rng.randbytes(50), {}
    yield b"", {}
    yield text[: rng.randrange(1, len(text))], {}
    yield b"[" * 30_000, {}
    yield text + b" " * 70_000, {}
    yield text.replace(b"simulate", b"\xff\xfe"), {}
    payloads: list[Any] = [{"kind": "nonsense"}, {**simulate, "seconds": -1}, {**simulate, "seconds": "1"}, []]
    for wrong in payloads:
        yield json.dumps({**good, "payload": wrong}).encode(), {}
    yield text.replace(b'"seconds": 0', b'"seconds": NaN'), {}
    for attempts in ("many", 7, 0, None, False, "", {}, {"a": 1}, [1], [{"worker": 1}]):
        yield make_task(rng, simulate).line, {"x-attempts": attempts}


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
        handler: str = "main-worker.py",
        payloads: Sequence[dict[str, Any]] = (),
        kinds: Sequence[str] = tuple(KINDS),
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self._seconds, self._ledger, self._say = folder, seconds, ledger, say
        self._handler = handler if handler == "main-worker.py" else str(Path(handler).resolve())
        self._tasks, self._own_failures = make_tasks(seed, tasks, payloads), bool(payloads)
        self._rng = random.Random(f"more {seed}")
        self.plan = plan(seed, seconds, kinds)
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self._faults: dict[str, Callable[[Fault], Awaitable[bool]]] = {
            "worker killed": self._kill_worker,
            "worker frozen": self._freeze_worker,
            "workers restarted in turn": self._roll_workers,
            "broker restarted": self._restart_broker,
            "broker killed": self._kill_broker,
            "connections cut": self._cut_all,
            "network stalled": self._stall,
            "cut between publish and confirm": self._cut_before_confirm,
            "cut between effect and ack": self._cut_before_ack,
            "cut between copy and ack": self._cut_after_copy,
            "producer killed": self._kill_producer,
            "poison sent": self._poison,
            "publishers blocked": self._block,
            "ledger out of reach": self._lock_ledger,
            PROVOKED: self._kill_in_honest_window,
        }
        self._lives: list[Life] = []
        self._running: dict[int, tuple[Life, subprocess.Popen[bytes]]] = {}
        self._closing = False
        self._producer: Producing | None = None
        self._more: deque[Task] = deque()
        self._given: dict[str, float] = {}
        self._failures: dict[str, int | None] = {}
        self._poisoned: dict[str, str] = {}
        self._letters: list[Letter] = []
        self._unhealthy: list[Span] = []
        self._problems: list[str] = []
        self._versions = ""
        # What changes the broker, or needs it, is done one after the other; so is what changes the ledger, the network.
        self._broker_lock, self._ledger_lock, self._network_lock = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()

    async def run(self) -> Account:
        for fault in self.plan:
            self._say(str(fault))
        async with AsyncExitStack() as closing:
            await self._set_up(closing)
            keepers = [asyncio.create_task(self._keep_worker(number + 1)) for number in range(WORKERS)]
            closing.callback(self._kill_all, keepers)
            await until(lambda: len(self._ready()) == WORKERS, "all workers are ready")
            await asyncio.sleep(SETTLE_S)
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed())
                for fault in self.plan:
                    group.create_task(self._carry_out(fault))
            await self._finish_producer()
            stuck = await self._finish()
            self._closing = True
            await asyncio.gather(*(self._term(number) for number in self._running))
            await asyncio.gather(*keepers)
            left_over = await self._depth()
            await self._take_letters()
            self.evidence = Evidence(
                self._given, self._failures, self._poisoned, self._site.record(), self._letters,
                self._lives, self._unhealthy, left_over, stuck, self._own_failures,
            )  # fmt: skip
        self.account = account(self.evidence)
        self.account.crashed += self._problems
        return self.account

    def describe(self) -> str:
        """The account as text, with the faults by kind."""
        lines = [f"  {kind:<33} {self.hits[kind]} times" for kind in self._faults if self.hits[kind]]
        lines += [
            f"  {kind:<33} {self.misses[kind]} times without effect" for kind in self._faults if self.misses[kind]
        ]
        return "\n".join([self._versions, *lines, str(self.account)])

    def keep_evidence(self) -> None:
        """Write what is known of each offending id to the folder, and leave there what helps to understand it."""
        (self.folder / "account").write_text(self.describe() + "\n")
        (self.folder / "offending").write_text("\n".join(trail(self.account.offending, self.evidence)) + "\n")
        shutil.rmtree(self.folder / "node" / "data", ignore_errors=True)

    # --- the house ---------------------------------------------------------------------------------------------------

    async def _set_up(self, closing: AsyncExitStack) -> None:
        self._node = Node(self.folder / "node")
        closing.callback(self._node.stop)
        await asyncio.to_thread(self._node.start)
        environment = {}
        if self._ledger == "postgres":
            self._postgres = await asyncio.to_thread(Postgres)
            closing.callback(self._postgres.__exit__)
            await asyncio.to_thread(self._postgres.start)
            environment["LEDGER_URL"] = self._postgres.url
        elif self._ledger == "none":
            environment["LEDGER_URL"] = "none"
        self._proxy = await closing.enter_async_context(Proxy(self._node.record.port))
        project = await asyncio.to_thread(fast_copy, self.folder / "project", LEASE_S, LIMIT_S)
        contract = json.loads((project / "generated" / "worker" / "contract.json").read_bytes())
        queues = [channel["bindings"]["amqp"]["queue"]["name"] for channel in contract["channels"].values()]
        self._queues = [name for name in queues if not name.endswith(".dead")]
        (self._dead_queue,) = set(queues) - set(self._queues)
        uri = self._node.uri.replace(f":{self._node.record.port}/", f":{self._proxy.port}/")
        self._site = Site(self.folder, uri, project, environment)
        self._direct = Site(self.folder, self._node.uri, project)
        closing.callback(self._site.stop)
        (self.folder / "a file").write_bytes(bytes(1_000_000))
        connection = await aio_pika.connect(self._node.uri)
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
        if self._ledger != "postgres":
            return ""
        with psycopg.connect(self._postgres.url) as connection:
            return f"PostgreSQL {connection.info.server_version // 10_000}"

    async def _keep_worker(self, number: int) -> None:
        """Have a worker of this number all the time: when one has ended, the next one starts."""
        while not self._closing:
            worker = await self._site.worker(f"worker{number}", ready=False, script=self._handler)
            life = Life(worker.name, worker.process.pid, worker.log, began=time.time())
            self._lives.append(life)
            self._running[number] = life, worker.process
            while worker.process.poll() is None:
                if life.ready is None and worker.says("ready"):
                    life.ready = time.time()
                await asyncio.sleep(0.02)
            life.ended, life.code = time.time(), worker.process.returncode
            if life.code == 3:  # no broker to start with
                await asyncio.sleep(0.5)

    def _ready(self) -> list[Life]:
        return [life for life, _ in self._running.values() if life.ready is not None and life.ended is None]

    def _kill_all(self, keepers: list[asyncio.Task[None]]) -> None:
        self._closing = True
        for keeper in keepers:
            keeper.cancel()
        if self._producer is not None and self._producer.process.returncode is None:
            with suppress(ProcessLookupError):
                self._producer.process.kill()

    async def _term(self, number: int) -> None:
        """End a worker by SIGTERM. One that is starting has no handler for it yet."""
        life, process = self._running[number]
        await until(lambda: life.ready or life.ended, f"{life.name} is ready")
        if life.ended is None and life.killed is None and life.termed is None:
            life.termed = time.time()
            process.send_signal(signal.SIGTERM)
            await until(lambda: life.ended, f"{life.name} ends after SIGTERM, see {life.log}", within_s=60.0)

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Give the producer the tasks, evenly over the time."""
        for index, task in enumerate(self._tasks):
            due = self._began + index * self._seconds / len(self._tasks)
            while self._more:
                await self._give(self._more.popleft())
            await asyncio.sleep(due - time.monotonic())
            await self._give(task)

    def _make_task(self, payload: dict[str, Any]) -> Task:
        return make_task(self._rng, payload)

    async def _give(self, task: Task) -> None:
        self._given.setdefault(task.id, time.time())
        self._failures[task.id] = task.failures
        while self._producer is None or not self._producer.is_reading:
            await self._start_producer()
        await self._producer.write([task])

    async def _start_producer(self) -> None:
        """Start one, and give it what the last one was given: nobody knows what of that the broker has. But for the
        last ones, what is done is not given again: that would be more than all the rest."""
        last = self._producer
        if last is not None:
            await last.process.wait()
            if last.process.returncode == 3:  # there was no broker
                await asyncio.sleep(0.5)
        self._producer = Producing(await self._site.start_producer("--jsonl", "-"))
        process = self._producer.process
        assert process.stderr is not None
        assert process.stdout is not None
        log = self.folder / f"producer-{process.pid}.log"
        self._producer.reading = [
            asyncio.create_task(_copy(pipe, log.with_suffix(suffix)))
            for pipe, suffix in ((process.stderr, ".log"), (process.stdout, ".out"))
        ]
        if last is not None:
            await asyncio.gather(*last.reading)
            self._note_end_of_producer(last)
            ended = {note.id for note in self._site.record() if note.word == "end"}
            older, latest = last.given[:-AGAIN], last.given[-AGAIN:]
            await self._producer.write([task for task in older if task.id not in ended] + latest)

    def _note_end_of_producer(self, last: Producing) -> None:
        code = last.process.returncode
        if code not in (-signal.SIGKILL, 3, 0):
            self._problems.append(f"a producer ended with {code}, see producer-{last.process.pid}.log")

    async def _finish_producer(self) -> None:
        """Let the last producer come to its end, which must be a good one."""
        while self._producer is not None:
            producer = self._producer
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
        while time.monotonic() - moved < PATIENCE_S:
            await self._take_letters()
            notes, depth = self._site.record(), await self._depth()
            ended = {note.id for note in notes if note.word == "end"} | {letter.id for letter in self._letters}
            missing = (self._given.keys() | self._poisoned.keys()) - ended
            quiet = quiet + 1 if not missing and not depth else 0
            if quiet > 2:
                return False
            if last != (now := (len(notes), len(self._letters), depth)):
                last, moved = now, time.monotonic()
            await asyncio.sleep(0.3)
        return True

    async def _depth(self) -> int:
        """How many messages wait, in the queue and on its rungs; those in a worker's hands are not among them."""
        async with self._direct.amqp() as channel:
            declared = [await channel.declare_queue(name, passive=True) for name in self._queues]
            return sum(queue.declaration_result.message_count or 0 for queue in declared)

    async def _take_letters(self) -> None:
        async with self._direct.amqp() as channel:
            queue = await channel.declare_queue(self._dead_queue, passive=True)
            while (message := await queue.get(fail=False)) is not None:
                await message.ack()
                id = str(message.message_id)
                with suppress(ValueError, TypeError, KeyError):
                    id = id if id in self._poisoned else json.loads(message.body)["id"]
                self._letters.append(Letter(id, message.headers))

    # --- faults ------------------------------------------------------------------------------------------------------

    async def _carry_out(self, fault: Fault) -> None:
        await asyncio.sleep(self._began + fault.at_s - time.monotonic())
        hit = await self._faults[fault.kind](fault)
        (self.hits if hit else self.misses)[fault.kind] += 1
        elapsed_s = time.monotonic() - self._began
        self._say(
            f"{elapsed_s:6.1f} s  {fault.kind} {'over' if hit else 'had no effect'}; {len(self._given)} tasks given"
        )

    @asynccontextmanager
    async def _unusable(self) -> AsyncIterator[None]:
        """Something that all depend on is out of use meanwhile."""
        since = time.time()
        try:
            yield
        finally:
            self._unhealthy.append((since, time.time()))

    async def _kill_worker(self, fault: Fault) -> bool:
        life, process = self._running[fault.worker]
        if life.ended is not None or process.poll() is not None:
            return False
        process.kill()
        life.killed = time.time()
        return True

    async def _freeze_worker(self, fault: Fault) -> bool:
        life, process = self._running[fault.worker]
        since = time.time()
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            process.send_signal(signal.SIGCONT)
            life.frozen.append((since, time.time()))
        return life.ended is None

    async def _roll_workers(self, fault: Fault) -> bool:
        for number in range(1, WORKERS + 1):
            await self._term(number)
        return True

    async def _restart_broker(self, fault: Fault) -> bool:
        async with self._broker_lock, self._unusable():
            await asyncio.to_thread(self._node.stop)
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(self._node.start)
        return True

    async def _kill_broker(self, fault: Fault) -> bool:
        async with self._broker_lock, self._unusable():
            await asyncio.to_thread(self._node.kill)
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(self._node.start)
        return True

    async def _cut_all(self, fault: Fault) -> bool:
        async with self._broker_lock:
            with suppress(AssertionError):
                await until(lambda: self._proxy.flows, "somebody is connected", HELD_WITHIN_S)
            return self._proxy.cut_all() > 0

    async def _stall(self, fault: Fault) -> bool:
        async with self._network_lock, self._unusable():
            self._proxy.stall()
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                self._proxy.resume()
        return True

    async def _cut_before_confirm(self, fault: Fault) -> bool:
        return await self._cut_while_held(r"producer-\d+", lambda flow: flow.to_client, fault.seconds)

    async def _cut_before_ack(self, fault: Fault) -> bool:
        return await self._cut_while_held(rf"worker{fault.worker}\.\d+", lambda flow: flow.to_broker, fault.seconds)

    async def _cut_after_copy(self, fault: Fault) -> bool:
        for _ in range(2 * WORKERS):  # so that there are copies
            self._more.append(self._make_task({"kind": "simulate", "seconds": 0, "failures": 1}))
        return await self._cut_while_held(r"worker\d publishes", lambda flow: flow.to_client, fault.seconds)

    async def _cut_while_held(self, name: str, way: Callable[[Flow], Direction], seconds: float) -> bool:
        """Hold back what goes this way on these connections, until there is something, and a little longer; then cut
        them. False: there was nothing."""
        async with self._broker_lock, self._network_lock:
            deadline = time.monotonic() + HELD_WITHIN_S
            flows: list[Flow] = []
            while not any(way(flow).held >= HELD_BYTES for flow in flows) and time.monotonic() < deadline:
                flows = [f for f in self._proxy.named(name) if time.monotonic() - f.opened > HANDSHAKE_S]
                for flow in flows:
                    way(flow).open.clear()
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            hit = any(way(flow).held >= HELD_BYTES for flow in flows)
            for flow in flows:
                flow.cut()
            return hit

    async def _kill_producer(self, fault: Fault) -> bool:
        if self._producer is None or self._producer.process.returncode is not None:
            return False
        self._producer.process.kill()
        await self._producer.process.wait()
        return True

    async def _poison(self, fault: Fault) -> bool:
        async with self._broker_lock:
            for body, headers in poison(self._rng):
                id = f"poison-{len(self._poisoned) + 1}"
                self._poisoned[id] = f"{body[:100]!r} headers {headers}"
                await self._direct.publish(body, message_id=id, headers=headers, delivery_mode=2)
        return True

    async def _block(self, fault: Fault) -> bool:
        async with self._broker_lock, self._unusable():
            try:
                await asyncio.to_thread(self._node.ctl, "set_vm_memory_high_watermark", "0.0000001")
                await asyncio.sleep(fault.seconds)
            finally:
                await asyncio.to_thread(self._node.ctl, "set_vm_memory_high_watermark", "0.4")
        return True

    async def _lock_ledger(self, fault: Fault) -> bool:
        if self._ledger == "postgres":
            async with self._ledger_lock, self._unusable():
                await asyncio.to_thread(self._postgres.kill if fault.worker == 1 else self._postgres.stop)
                await asyncio.sleep(fault.seconds / 2)
                await asyncio.to_thread(self._postgres.start)
        else:
            async with self._held_ledger():
                await asyncio.sleep(fault.seconds)
        return True

    @asynccontextmanager
    async def _held_ledger(self) -> AsyncIterator[None]:
        """No worker can claim or complete anything meanwhile."""
        async with self._ledger_lock, self._unusable():
            if self._ledger == "postgres":  # not locked: a server carries out what waits, though its client be dead
                await asyncio.to_thread(self._postgres.stop)
                try:
                    yield
                finally:
                    await asyncio.to_thread(self._postgres.start)
                return
            path = self.folder / "ledger.db"
            file = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            try:
                await asyncio.to_thread(file.execute, "BEGIN EXCLUSIVE")
                yield
            finally:
                file.close()

    async def _kill_in_honest_window(self, fault: Fault) -> bool:
        """Kill a worker after the end of its handler and before the record of it, which the locked ledger holds up."""
        task = self._make_task({"kind": "simulate", "seconds": 1.0})
        self._more.append(task)

        def noted(word: str) -> Note | None:
            return next((note for note in self._site.record() if (note.word, note.id) == (word, task.id)), None)

        await until(lambda: noted("start"), "the task has begun")
        async with self._held_ledger():
            end = await until(lambda: noted("end"), "its handler has ended")
            life, process = next(running for running in self._running.values() if running[0].pid == end.pid)
            process.kill()
            life.killed = time.time()
            await until(lambda: life.ended, "it is dead")
        return True


async def _copy(pipe: asyncio.StreamReader, to: Path) -> None:
    with to.open("wb") as file:
        while data := await pipe.read(65536):
            file.write(data)
            file.flush()


async def _run(chaos: Chaos) -> Account:
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # once: what is set up must come down
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    return await chaos.run()


def main() -> int:
    flags = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the schedule and the tasks")
    flags.add_argument("--tasks", type=int, default=3000)
    flags.add_argument("--seconds", type=float, default=60.0, help="how long faults come")
    flags.add_argument("--handler", default="main-worker.py", metavar="SCRIPT", help="a worker's script")
    flags.add_argument("--ledger", choices=["sqlite", "postgres", "none"], default="sqlite")
    flags.add_argument("--payloads", metavar="FILE", help="a line of JSON each, instead of this suite's own")
    flags.add_argument("--faults", metavar="KIND,...", default=",".join(KINDS), help=", ".join([*KINDS, PROVOKED]))
    flags.add_argument("--keep", action="store_true", help="the folder, with all logs, even if all is well")
    given = flags.parse_args()
    kinds = [kind.strip() for kind in given.faults.split(",")]
    if unknown := set(kinds) - {*KINDS, PROVOKED}:
        flags.error(f"there is no such fault: {', '.join(unknown)}")
    payloads = [json.loads(line) for line in Path(given.payloads).read_text().splitlines()] if given.payloads else []
    folder = Path(tempfile.mkdtemp(prefix="workqueue-chaos-"))
    print(f"chaos: seed {given.seed}, {given.tasks} tasks in {given.seconds:g} s, {given.ledger}, in {folder}")
    chaos = Chaos(
        folder, seed=given.seed, seconds=given.seconds, tasks=given.tasks, ledger=given.ledger, handler=given.handler,
        payloads=payloads, kinds=kinds, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    try:
        ensure_installed()
        result = asyncio.run(_run(chaos))
    except (asyncio.CancelledError, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    except (BrokerError, PostgresError) as error:
        print(f"chaos: {error}; see {folder}", file=sys.stderr)
        return 3
    print(f"seed {given.seed}, {given.ledger}, {chaos.describe()}")
    if result.kept and not given.keep:
        shutil.rmtree(folder)
        return 0
    chaos.keep_evidence()
    if result.kept:
        print(f"chaos: the logs and the record are in {folder}", file=sys.stderr)
        return 0
    print("\n".join((folder / "offending").read_text().splitlines()[:60]))
    print(f"chaos: promises were broken; the logs and the record are in {folder}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
