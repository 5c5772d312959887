"""Hosts that fall silent: a work queue on hosts of its own, packets that vanish, and an account of what came of it.

    python -m tests.partition [--seed N] [--seconds S] [--tasks N] [--faults KIND,...] [--keep]

Three RabbitMQ hosts as one cluster, a PostgreSQL, three workers and two producers, each in a network namespace of its
own, while one fault after the other cuts hosts off from others, without a reset, or puts them far away. What is counted
is what handlers wrote and what processes logged, never what the ledger says. Needs root and Linux, and ends all that it
started, however it ends.

Exit codes: 0 every promise was kept, in time; 1 one was not, and all there is about it is in the folder that is named;
2 wrong usage, or there can be no such hosts here; 3 RabbitMQ or PostgreSQL did not start; 130 interrupted.
"""

import argparse
import asyncio
import functools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.account import Account, Evidence, Letter, account, trail
from tests.harness import Note, Site, fast_copy, simulate
from tests.hosts import Broker, Database, Host, Network, isolated, lacking, start_cluster, ways
from tests.kept import KeptProducer, KeptWorker
from tests.outage import EFFECT_S, Effects, Outage, done_twice, effects, log_lines, started_twice
from tools.node import BrokerError, until
from tools.postgres import PostgresError
from tools.project import ROOT

WORKERS = BROKERS = 3
LEASE_S, LIMIT_S = 10, 60
RATE = 16.0  # tasks in a second, by default: enough to see within a second who works, and who does not
FAR_S = 0.15  # one way; a quorum queue's counters are asked for with a timeout of 0.25 s
SETTLE_S = 6.0  # about what it takes until all work again, for the schedule
STEADY_S = 3.0  # who did nothing for this long does not work
SETTLED_WITHIN_S = 60.0
PATIENCE_S = 60.0  # at the end, without anything being done, before the rest is called lost
LONG_S = 5.0  # a task of this length has its effect together with its completion
BEHIND = 40  # tasks that may be given and not done while all is well

KINDS = {
    "leader cut off": 40.0,
    "worker's broker cut off from its peers": 50.0,
    "producer's broker cut off from its peers": 50.0,
    "broker vanishes": 35.0,
    "worker cut off while it works": 25.0,
    "worker dies inside completion": 60.0,
    "ledger cut off": 60.0,
    "broker not heard by its peers": 30.0,
    "one way between worker and broker lost": 30.0,
    "leader far away from idle workers": 25.0,
    "all hosts far apart": 25.0,
}
"""The kinds of fault, and how long one lasts, in seconds; at most, where it ends once it had its effect."""


@dataclass(frozen=True)
class Fault:
    """One line of the schedule. `pick` chooses among those that it could hit."""

    kind: str
    seconds: float
    pick: int

    def __str__(self) -> str:
        return f"{self.kind:<42} {self.seconds:4.0f} s"


def plan(seed: int, seconds: float | None, kinds: Sequence[str]) -> list[Fault]:
    """The schedule: every kind in a random order, then any, as many as there is time for; without a time, all once."""
    rng = random.Random(f"partition {seed}")
    order = rng.sample(kinds, len(kinds))
    faults: list[Fault] = []
    left_s = seconds if seconds is not None else sum(KINDS[kind] + SETTLE_S for kind in kinds)
    while True:
        kind = order.pop(0) if order else rng.choice(kinds)
        left_s -= KINDS[kind] + SETTLE_S
        if left_s < 0 and faults:
            return faults
        faults.append(Fault(kind, KINDS[kind], rng.randrange(1000)))


class Partition:
    """One run, in a folder and a world of its own. `run` gives what was broken, in words."""

    def __init__(self, folder: Path, faults: Sequence[Fault], seed: int, rate: float) -> None:
        self.folder, self._faults, self._seed, self._rate = folder, faults, seed, rate
        self._carry_out: dict[str, Callable[[Fault], Outage]] = {
            "leader cut off": self._cut_leader,
            "worker's broker cut off from its peers": self._cut_workers_broker,
            "producer's broker cut off from its peers": self._cut_producers_broker,
            "broker vanishes": self._cut_broker,
            "worker cut off while it works": self._cut_worker,
            "worker dies inside completion": self._kill_host,
            "ledger cut off": self._cut_ledger,
            "broker not heard by its peers": self._mute_broker,
            "one way between worker and broker lost": self._cut_one_way,
            "leader far away from idle workers": self._leader_far,
            "all hosts far apart": self._all_far,
        }
        self._outages: list[Outage] = []
        self._letters: list[Letter] = []
        self._ended: set[str] = set()

    def run(self) -> list[str]:
        self._set_up()
        for worker in self._workers:
            worker.start()
        _wait(lambda: all(worker.is_ready for worker in self._workers), "all workers are ready", 60)
        for producer in self._producers:
            producer.start()
        self._settle(time.time())
        for fault in self._faults:
            outage = self._carry_out[fault.kind](fault)
            self._outages.append(outage)
            self._start_anew(outage.healed)
            self._say(f"over; all work again {outage.settled - outage.healed:.1f} s later")
        return self._judge(self._finish())

    def _say(self, text: str) -> None:
        given = sum(len(producer.given) for producer in self._producers)
        print(f"{time.time() - self._began:6.1f} s  {given} tasks given  {text}", flush=True)

    # --- the house ---------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self._began = time.time()
        self._network = Network(self.folder / "network.log")
        self._network.add("observer", own=True)
        self._broker_hosts = [self._network.add(f"rabbit{number + 1}") for number in range(BROKERS)]
        self._ledger_host = self._network.add("ledger")
        worker_hosts = [self._network.add(f"worker{number + 1}") for number in range(WORKERS)]
        producer_hosts = [self._network.add(f"producer{number + 1}") for number in range(2)]
        self._network.start()
        self._database = Database(self._ledger_host)
        self._database.start()
        with psycopg.connect(self._database.url) as connection:
            connection.execute("CREATE TABLE effect (id uuid NOT NULL)")
        self._brokers = start_cluster(self._broker_hosts, self.folder)
        project = fast_copy(self.folder / "project", LEASE_S, LIMIT_S)
        contract = json.loads((project / "generated" / "worker" / "contract.json").read_bytes())
        (receive,) = (one for one in contract["operations"].values() if one["action"] == "receive")
        self._queue = receive["channel"]["bindings"]["amqp"]["queue"]["name"]
        queues = [channel["bindings"]["amqp"]["queue"]["name"] for channel in contract["channels"].values()]
        self._dead_queue = f"{self._queue}.dead"
        self._live_queues = [name for name in queues if name != self._dead_queue]
        self._site = Site(
            self.folder, self._brokers[0].uri, project, {"LEDGER_URL": self._database.url, "LONG_S": str(LONG_S)}
        )
        script = str(ROOT / "tests" / "completing_worker.py")
        self._workers = [
            KeptWorker(host.name, host, self._site, self._uris(number), script=script)
            for number, host in enumerate(worker_hosts)
        ]
        self._producers = [
            KeptProducer(
                host.name, host, self._site, self._uris(number + 1),
                every_s=len(producer_hosts) / self._rate, seed=f"{self._seed} {number}",
                is_done=self._ended.__contains__,
            )
            for number, host in enumerate(producer_hosts)
        ]  # fmt: skip

    def _uris(self, first: int) -> str:
        brokers = self._brokers[first:] + self._brokers[:first]
        return ",".join(broker.uri for broker in brokers)

    def _leader(self) -> Broker:
        name = self._brokers[0].queue(self._queue)["leader"]
        return next(broker for broker in self._brokers if broker.name == name)

    def _broker_of(self, one: KeptWorker | KeptProducer) -> Broker:
        """One that it has a connection to."""
        addresses = one.brokers()
        return next(broker for broker in self._brokers if broker.host.address in addresses)

    def _record(self) -> list[Note]:
        notes = self._site.record()
        self._ended |= {note.id for note in notes if note.word == "end"}
        return notes

    def _behind(self) -> int:
        """How many tasks were given and are not done."""
        self._record()
        return sum(id not in self._ended for producer in self._producers for id in producer.given)

    # --- faults ------------------------------------------------------------------------------------------------------

    def _outage(
        self,
        fault: Fault,
        target: str,
        *,
        cut: Iterable[tuple[Host, Host]] = (),
        far: Iterable[tuple[Host, Host]] = (),
        over: Callable[[], Any] = lambda: False,
        **more: Any,
    ) -> Outage:
        """Cut these ways, or make them long, until it is `over`, at most for the fault's time; then heal all, and wait
        until all work again."""
        self._say(f"{fault.kind} ({target})")
        began = time.time()
        self._network.change(cut, [(a, b, FAR_S) for a, b in far])
        _wait_at_most(over, fault.seconds)
        healed = time.time()
        self._network.change()
        for worker in self._workers:
            worker.down = False
        for producer in self._producers:
            producer.paused = False
        self._settle(healed)
        return Outage(fault.kind, target, began, healed, time.time(), **more)

    def _settle(self, since: float) -> None:
        """Wait until all work again, nothing is behind and the cluster is whole; not for ever."""

        def is_settled() -> bool:
            started = {note.id for note in self._record() if note.at > since}
            producers = all(
                any(at > since and id in started for id, at in reversed(list(producer.given.items())))
                for producer in self._producers
            )
            return producers and not self._idle(max(since, time.time() - STEADY_S)) and self._behind() < BEHIND

        deadline = time.monotonic() + SETTLED_WITHIN_S
        _wait_at_most(is_settled, SETTLED_WITHIN_S)
        while time.monotonic() < deadline and not self._is_whole():
            time.sleep(0.5)

    def _idle(self, since: float) -> list[KeptWorker]:
        """The workers that have done nothing since then."""
        last = {note.worker: note.at for note in self._record()}
        return [worker for worker in self._workers if last.get(worker.name, 0.0) <= since]

    def _start_anew(self, since: float) -> None:
        """End what has not come back by itself, so that it is counted for one fault and not for all that follow."""
        lost = self._idle(since)
        for worker in lost:
            self._say(f"{worker.name} did not come back: starting it anew")
            worker.kill()
        if lost:
            with psycopg.connect(self._database.url) as connection:  # what a dead host held may be what it waits for
                others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user"
                connection.execute(f"SELECT pg_terminate_backend(pid) {others}")
            now = time.time()
            _wait_at_most(lambda: not self._idle(now), 30)

    def _is_whole(self) -> bool:
        try:
            return all(len(broker.queue(self._queue)["online"]) == BROKERS for broker in self._brokers)
        except BrokerError:  # one has paused itself, and restarts
            return False

    def _cut_leader(self, fault: Fault) -> Outage:
        leader = self._leader().host
        return self._outage(fault, f"{leader}", cut=ways([leader], self._network.others(leader)))

    def _cut_workers_broker(self, fault: Fault) -> Outage:
        leader = self._leader()
        pairs = [(worker, self._broker_of(worker)) for worker in self._workers]
        pairs = [pair for pair in pairs if pair[1] is not leader] or pairs
        worker, broker = pairs[fault.pick % len(pairs)]
        return self._outage(fault, f"{broker.host}, of {worker.name}", cut=self._from_peers(broker))

    def _cut_producers_broker(self, fault: Fault) -> Outage:
        producer = self._producers[fault.pick % len(self._producers)]
        broker = self._broker_of(producer)
        return self._outage(fault, f"{broker.host}, of {producer.name}", cut=self._from_peers(broker))

    def _from_peers(self, broker: Broker) -> list[tuple[Host, Host]]:
        return ways([broker.host], [host for host in self._broker_hosts if host is not broker.host])

    def _cut_broker(self, fault: Fault) -> Outage:
        leader = self._leader()
        clients: list[KeptWorker | KeptProducer] = [*self._workers, *self._producers]
        used = {self._broker_of(one).host for one in clients} - {leader.host}
        hosts = [host for host in self._broker_hosts if host in used] or [
            host for host in self._broker_hosts if host is not leader.host
        ]
        host = hosts[fault.pick % len(hosts)]
        return self._outage(fault, f"{host}", cut=ways([host], self._network.others(host)))

    def _cut_worker(self, fault: Fault) -> Outage:
        worker, _ = self._working_at(LONG_S - 1)
        cut = ways([worker.host], self._network.others(worker.host))
        return self._outage(fault, worker.name, cut=cut, cut_off=frozenset({worker.name}))

    def _kill_host(self, fault: Fault) -> Outage:
        worker, task_id = self._working_at(LONG_S)
        time.sleep(1.0)  # well inside, with the row's lock
        worker.down = True
        worker.kill()
        killed = worker.lives[-1].killed
        assert killed is not None

        def done_at() -> float:
            return next((note.at for note in self._record() if (note.word, note.id) == ("end", task_id)), 0.0)

        cut = ways([worker.host], self._network.others(worker.host))
        outage = self._outage(fault, worker.name, cut=cut, over=done_at, cut_off=frozenset({worker.name}))
        after_s = done_at() - killed
        late = "its task was never done" if after_s < 0 else f"its task was done after {after_s:.1f} s"
        target = f"{worker.name}, {late}"
        return Outage(
            outage.kind, target, outage.began, outage.healed, outage.settled, outage.cut_off,
            late=f"{late} (limit {EFFECT_S:g})" if not 0 <= after_s <= EFFECT_S else "",
        )  # fmt: skip

    def _working_at(self, seconds: float) -> tuple[KeptWorker, str]:
        """Send a task of this length, and wait until it has begun. Returns the worker and the task's id."""
        (task,) = simulate(1, seconds)
        self._producers[0].more.append(task)

        def found() -> KeptWorker | None:
            by = next((note.worker for note in self._record() if note.id == task["id"]), None)
            return next((worker for worker in self._workers if worker.name == by), None)

        return _wait(found, "a task of several seconds has begun", 30), task["id"]

    def _cut_ledger(self, fault: Fault) -> Outage:
        cut = ways([self._ledger_host], self._network.others(self._ledger_host))
        return self._outage(fault, "all", cut=cut, ledger=True)

    def _mute_broker(self, fault: Fault) -> Outage:
        hosts = [host for host in self._broker_hosts if host is not self._leader().host]
        host = hosts[fault.pick % len(hosts)]
        return self._outage(fault, f"{host}", cut=[(host, peer) for peer in self._broker_hosts if peer is not host])

    def _cut_one_way(self, fault: Fault) -> Outage:
        worker = self._workers[fault.pick % WORKERS]
        broker = self._broker_of(worker).host
        sender, receiver = (worker.host, broker) if fault.pick % 2 else (broker, worker.host)
        return self._outage(fault, f"{sender} to {receiver}", cut=[(sender, receiver)])

    def _leader_far(self, fault: Fault) -> Outage:
        leader = self._leader().host
        for producer in self._producers:
            producer.paused = True
        _wait_at_most(lambda: self._behind() == 0, 30)
        far = ways([leader], self._network.others(leader))
        return self._outage(fault, f"{leader}", far=far, idle=True, delays_only=True)

    def _all_far(self, fault: Fault) -> Outage:
        far = [(a, b) for a in self._network.hosts for b in self._network.hosts if a is not b]
        return self._outage(fault, "all", far=far, delays_only=True)

    # --- the account -------------------------------------------------------------------------------------------------

    def _finish(self) -> Evidence:
        """Let all that was given come to its end, then the workers to theirs."""
        for producer in self._producers:
            producer.closing = True
        problems = [
            f"{producer.name} does not end" for producer in self._producers if not producer.done.wait(2 * PATIENCE_S)
        ]
        stuck = self._await_end()
        for worker in self._workers:
            worker.end()
        ended = _wait_at_most(lambda: all(worker.lives[-1].ended for worker in self._workers), 60)
        problems += [] if ended else ["a worker does not end after SIGTERM"]
        self._problems = problems + [problem for producer in self._producers for problem in producer.problems]
        self._take_letters()
        given = {id: at for producer in self._producers for id, at in producer.given.items()}
        return Evidence(
            given, dict.fromkeys(given, 0), {}, self._record(), self._letters,
            [life for worker in self._workers for life in worker.lives],
            [(outage.began, outage.settled) for outage in self._outages], self._depth(), stuck, False,
        )  # fmt: skip

    def _await_end(self) -> bool:
        """Wait until all is done and the queues are empty. True: nothing moved any more."""
        last: tuple[int, ...] = ()
        moved = time.monotonic()
        while time.monotonic() - moved < PATIENCE_S:
            self._take_letters()
            now = self._behind(), len(self._letters), self._depth()
            if now[0] <= len(self._letters) and not now[2]:
                return False
            if now != last:
                last, moved = now, time.monotonic()
            time.sleep(0.5)
        return True

    def _depth(self) -> int:
        async def look() -> int:
            async with self._site.amqp() as channel:
                declared = [await channel.declare_queue(name, passive=True) for name in self._live_queues]
                return sum(queue.declaration_result.message_count or 0 for queue in declared)

        return asyncio.run(look())

    def _take_letters(self) -> None:
        async def take() -> None:
            async with self._site.amqp() as channel:
                queue = await channel.declare_queue(self._dead_queue, passive=True)
                while (message := await queue.get(fail=False)) is not None:
                    await message.ack()
                    self._letters.append(Letter(json.loads(message.body)["id"], message.headers))

        asyncio.run(take())

    def _judge(self, seen: Evidence) -> list[str]:
        """Write down the account, and return what was broken."""
        counted = account(seen)
        wrong, honest = done_twice(seen.notes, seen.lives, self._outages)
        killed = {life.pid: life.killed for life in seen.lives if life.killed is not None}
        overlaps = started_twice(seen.notes, self._outages, killed, LEASE_S)
        measured = self._effects(seen)
        broken = self._safety(counted, wrong, overlaps, seen)
        broken += [f"{one.outage.kind}: {text}" for one in measured for text in one.broken()]
        lines = [
            f"tasks {len(seen.given)}, lost {len(counted.lost)}, doubled {len(wrong)}, started twice {len(overlaps)}; "
            f"done again because the end could not be recorded: {len(honest)}; "
            f"attempts miscounted {len(counted.miscounted)}; left on the brokers {seen.left_over}",
            *map(str, measured),
            *(f"broken: {text}" for text in broken),
        ]
        (self.folder / "account").write_text("\n".join(lines) + "\n")
        offending = counted.offending - counted.twice | wrong.keys() | honest.keys()
        (self.folder / "offending").write_text("\n".join(trail(offending, seen)) + "\n")
        print("\n".join(lines), flush=True)
        return broken

    def _safety(self, counted: Account, wrong: dict[str, str], overlaps: list[str], seen: Evidence) -> list[str]:
        names = {
            "lost": counted.lost,
            "a dead letter": counted.dead_unexpected,
            "handled and never sent": counted.unknown,
            "with an attempt that was none": counted.miscounted,
        }
        broken = [f"{id} {name}" for name, ids in names.items() for id in sorted(ids)]
        broken += [f"{id} done twice: {text}" for id, text in sorted(wrong.items())]
        broken += overlaps + self._problems + ["gave up waiting: nothing was done any more"] * seen.stuck
        broken += [f"{seen.left_over} messages left on the brokers"] * bool(seen.left_over)
        broken += [
            f"{life.name} ({life.log.name}) ended with {life.code}"
            for life in seen.lives
            if life.code and not life.killed
        ]
        with psycopg.connect(self._database.url) as connection:
            effects_of = Counter(str(id) for (id,) in connection.execute("SELECT id FROM effect").fetchall())
        return broken + [f"{id} had its effect {count} times" for id, count in effects_of.items() if count > 1]

    def _effects(self, seen: Evidence) -> list[Effects]:
        active: dict[str, list[float]] = {worker.name: [] for worker in self._workers}
        first: dict[str, float] = {}
        for note in seen.notes:
            active[note.worker].append(note.at)
            first.setdefault(note.id, note.at)
        for producer in self._producers:
            active[producer.name] = sorted(first[id] for id in producer.given if id in first)
        logs = [(life.name, life.log) for life in seen.lives]
        logs += [(producer.name, log) for producer in self._producers for log in producer.logs]
        lines = [line for name, log in logs for line in log_lines(name, log.read_text(errors="replace"))]
        done = [note.at for note in seen.notes if note.word == "end"]
        return [effects(outage, done, active, sorted(lines, key=lambda line: line.at)) for outage in self._outages]


def _wait(condition: Callable[[], Any], what: str, within_s: float) -> Any:
    """Wait until it is true, and return what it is. Raises BrokerError."""
    found = _wait_at_most(condition, within_s)
    if not found:
        raise BrokerError(f"not within {within_s:g} s: {what}")
    return found


def _wait_at_most(condition: Callable[[], Any], seconds: float) -> Any:
    found: list[Any] = []

    def holds() -> bool:
        found[:] = [condition()]
        time.sleep(0.2)
        return bool(found[0])

    until(holds, seconds)
    return found[0]


def _run(folder: Path, faults: Sequence[Fault], seed: int, rate: float) -> int:
    """In a world of its own: the exit code."""
    tempfile.tempdir = str(folder)  # all that anybody makes here
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        broken = Partition(folder, faults, seed, rate).run()
    except KeyboardInterrupt:
        return 130
    except (BrokerError, PostgresError) as error:
        print(f"partition: {error}; see {folder}", file=sys.stderr)
        return 3
    return 1 if broken else 0


def main() -> int:
    flags = argparse.ArgumentParser(
        prog="partition", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the schedule and the tasks")
    flags.add_argument("--seconds", type=float, help="how long faults come; without it, each of them once")
    flags.add_argument("--tasks", type=int, help=f"over that time; without it, {RATE:g} a second")
    flags.add_argument("--faults", metavar="KIND,...", default=",".join(KINDS), help="; ".join(KINDS))
    flags.add_argument("--keep", action="store_true", help="the folder, with all logs, even if all is well")
    given = flags.parse_args()
    kinds = [kind.strip() for kind in given.faults.split(",")]
    if unknown := set(kinds) - set(KINDS):
        flags.error(f"there is no such fault: {', '.join(unknown)}")
    if reason := lacking():
        print(f"partition: skipped: {reason}", file=sys.stderr)
        return 2
    faults = plan(given.seed, given.seconds, kinds)
    seconds = sum(fault.seconds + SETTLE_S for fault in faults)
    rate = given.tasks / seconds if given.tasks else RATE
    folder = Path(tempfile.mkdtemp(prefix="workqueue-partition-"))
    folder.chmod(0o711)  # PostgreSQL runs as a user of its own
    print(f"partition: seed {given.seed}, about {seconds:.0f} s, {rate:.0f} tasks a second, in {folder}")
    for fault in faults:
        print(f"  {fault}")
    code = isolated(functools.partial(_run, folder, faults, given.seed, rate))
    if code in (0, 130) and not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
        return code
    for data in folder.glob("rabbit*/data"):
        shutil.rmtree(data, ignore_errors=True)
    print(
        f"partition: {'promises were broken; ' if code == 1 else ''}the logs and the record are in {folder}",
        file=sys.stderr,
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
