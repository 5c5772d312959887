"""Hosts that fall silent: a work queue on hosts of its own, packets that vanish, and an account of what came of it.

    python -m tests.partition [--seed N] [--seconds S] [--tasks N] [--faults KIND,...] [--keep]

Three RabbitMQ hosts as one cluster, a PostgreSQL, three workers and two producers, each in a network namespace of its
own, while one fault after the other cuts hosts off from others, without a reset, or puts them far away. What is counted
is what handlers wrote and what processes logged, never what the ledger says. Needs root and Linux, and ends all that it
started, however it ends.

Exit codes: 0 every promise was kept, in time; 1 one was not, and all there is about it is in the folder that is named;
2 wrong usage, or there can be no such hosts here; 3 RabbitMQ or PostgreSQL did not do its part; 70 a fault of
this program; 130 interrupted.
"""

import argparse
import functools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.fleet import LEASE_S, LONG_S, Fleet, wait_at_most
from tests.hosts import Broker, Host, isolated, lacking, ways
from tests.kept import Kept
from tests.outage import EFFECT_S, Effects, Outage, done_twice, effects, log_lines, started_twice
from workqueue.dev.postgres import PostgresError
from workqueue.dev.programs import BrokerError
from workqueue.testing.account import account
from workqueue.testing.evidence import Evidence, trail

RATE = 16.0  # tasks in a second, by default: enough to see within a second who works, and who does not
FAR_S = 0.15  # one way; a quorum queue's counters are asked for with a timeout of 0.25 s
SETTLE_S = 6.0  # about what it takes until all work again, for the schedule

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
    pick: int

    @property
    def seconds(self) -> float:
        return KINDS[self.kind]


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
        faults.append(Fault(kind, rng.randrange(1000)))


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

    def run(self) -> list[str]:
        self._began = time.time()
        self._fleet = Fleet(self.folder, self._seed, self._rate)
        self._network = self._fleet.network
        self._fleet.start()
        for fault in self._faults:
            outage = self._carry_out[fault.kind](fault)
            self._outages.append(outage)
            lost = self._fleet.start_anew(outage.healed)
            more = "".join(f"; {name} did not come back, and was started anew" for name in lost)
            self._say(f"over, waited for {outage.settled - outage.healed:.1f} s until all worked again{more}")
        return self._judge(self._fleet.finish([(outage.began, outage.settled) for outage in self._outages]))

    def _say(self, text: str) -> None:
        given = sum(len(producer.given) for producer in self._fleet.producers)
        print(f"{time.time() - self._began:6.1f} s  {given} tasks given  {text}", flush=True)

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
        wait_at_most(over, fault.seconds)
        healed = time.time()
        self._network.change()
        for worker in self._fleet.workers:
            worker.down = False
        for producer in self._fleet.producers:
            producer.paused = False
        self._fleet.settle(healed)
        return Outage(fault.kind, target, began, healed, time.time(), **more)

    def _cut_leader(self, fault: Fault) -> Outage:
        leader = self._fleet.leader()
        cut, there = self._from_all(leader.host), self._at_leader(leader)
        return self._outage(fault, leader.host.name, cut=cut, at_leader=there)

    def _cut_workers_broker(self, fault: Fault) -> Outage:
        leader = self._fleet.leader()
        pairs = [(worker, self._fleet.broker_of(worker)) for worker in self._fleet.workers]
        pairs = [pair for pair in pairs if pair[1] is not leader] or pairs
        worker, broker = pairs[fault.pick % len(pairs)]
        cut, there = self._from_peers(broker), self._at_leader(broker)
        return self._outage(fault, f"{broker.host}, of {worker.name}", cut=cut, at_leader=there)

    def _cut_producers_broker(self, fault: Fault) -> Outage:
        producer = self._fleet.producers[fault.pick % len(self._fleet.producers)]
        broker = self._fleet.broker_of(producer)
        cut, there = self._from_peers(broker), self._at_leader(broker)
        return self._outage(fault, f"{broker.host}, of {producer.name}", cut=cut, at_leader=there)

    def _cut_broker(self, fault: Fault) -> Outage:
        clients: list[Kept] = [*self._fleet.workers, *self._fleet.producers]
        used = {self._fleet.broker_of(one).host for one in clients}
        others = self._others_than_leader()
        hosts = [host for host in others if host in used] or others
        host = hosts[fault.pick % len(hosts)]
        return self._outage(fault, host.name, cut=self._from_all(host))

    def _cut_worker(self, fault: Fault) -> Outage:
        worker, _ = self._fleet.working_at(LONG_S - 1)
        return self._outage(fault, worker.name, cut=self._from_all(worker.host), cut_off=frozenset({worker.name}))

    def _kill_host(self, fault: Fault) -> Outage:
        worker, id = self._fleet.working_at(LONG_S)
        time.sleep(1.0)  # well inside, with the lock of the row
        worker.down = True
        worker.kill()

        def done_at() -> float:
            return next((note.at for note in self._fleet.record() if (note.word, note.id) == ("end", id)), 0.0)

        cut_off = frozenset({worker.name})
        outage = self._outage(fault, worker.name, cut=self._from_all(worker.host), over=done_at, cut_off=cut_off)
        after_s = done_at() - outage.began
        what = f"its task was done after {after_s:.1f} s" if after_s > 0 else "its task is not done"
        late = "" if 0 < after_s <= EFFECT_S else f"{what} (limit {EFFECT_S:g})"
        return replace(outage, target=f"{worker.name}, {what}", late=late)

    def _cut_ledger(self, fault: Fault) -> Outage:
        return self._outage(fault, "all", cut=self._from_all(self._fleet.ledger_host), ledger=True)

    def _mute_broker(self, fault: Fault) -> Outage:
        hosts = self._others_than_leader()
        host = hosts[fault.pick % len(hosts)]
        peers = [peer for peer in self._fleet.broker_hosts if peer is not host]
        return self._outage(fault, host.name, cut=[(host, peer) for peer in peers])

    def _cut_one_way(self, fault: Fault) -> Outage:
        worker = self._fleet.workers[fault.pick % len(self._fleet.workers)]
        broker = self._fleet.broker_of(worker).host
        sender, receiver = (worker.host, broker) if fault.pick % 2 else (broker, worker.host)
        return self._outage(fault, f"{sender} to {receiver}", cut=[(sender, receiver)])

    def _leader_far(self, fault: Fault) -> Outage:
        leader = self._fleet.leader().host
        for producer in self._fleet.producers:
            producer.paused = True
        wait_at_most(lambda: self._fleet.behind() == 0, 30)
        return self._outage(fault, leader.name, far=self._from_all(leader), idle=True, delays_only=True)

    def _all_far(self, fault: Fault) -> Outage:
        far = [(a, b) for a in self._network.hosts for b in self._network.hosts if a is not b]
        return self._outage(fault, "all", far=far, delays_only=True)

    def _at_leader(self, broker: Broker) -> frozenset[str]:
        """Who is connected to this one, if it has the leader, and its version makes them wait for it."""
        if broker is not self._fleet.leader() or not broker.ctl("version").startswith("3."):
            return frozenset()
        clients: list[Kept] = [*self._fleet.workers, *self._fleet.producers]
        return frozenset(one.name for one in clients if broker.host.address in one.brokers())

    def _from_all(self, host: Host) -> list[tuple[Host, Host]]:
        return ways([host], [other for other in self._network.hosts if other is not host])

    def _from_peers(self, broker: Broker) -> list[tuple[Host, Host]]:
        return ways([broker.host], [host for host in self._fleet.broker_hosts if host is not broker.host])

    def _others_than_leader(self) -> list[Host]:
        leader = self._fleet.leader().host
        return [host for host in self._fleet.broker_hosts if host is not leader]

    # --- the account -------------------------------------------------------------------------------------------------

    def _judge(self, seen: Evidence) -> list[str]:
        """Write down the account, and return what was broken."""
        counted = account(seen)
        wrong, honest = done_twice(seen.notes, seen.lives, self._outages)
        killed = {life.pid: life.killed for life in seen.lives if life.killed is not None}
        overlaps = started_twice(seen.notes, self._outages, killed, LEASE_S)
        measured = self._effects(seen)
        ids = {
            "lost": counted.lost,
            "a dead letter": counted.dead_unexpected,
            "handled and never sent": counted.unknown,
            "with an attempt that was none": counted.miscounted,
        }
        broken = [f"{id} {name}" for name, some in ids.items() for id in sorted(some)]
        broken += [f"{id} done twice: {text}" for id, text in sorted(wrong.items())]
        broken += [*overlaps, *self._fleet.problems, *self._ends(seen)]
        broken += [f"{one.outage.kind}: {text}" for one in measured for text in one.broken()]
        lines = [
            f"tasks {len(seen.given)}, lost {len(counted.lost)}, doubled {len(wrong)}, started twice {len(overlaps)}, "
            f"done again because the end could not be recorded {len(honest)}, "
            f"attempts miscounted {len(counted.miscounted)}, left on the brokers {seen.left_over}",
            *map(str, measured),
            *(f"broken: {text}" for text in broken),
        ]
        (self.folder / "account").write_text("\n".join(lines) + "\n")
        offending = (counted.offending - counted.twice) | wrong.keys() | honest.keys()
        (self.folder / "offending").write_text("\n".join(trail(offending, seen)) + "\n")
        print("\n".join(lines), flush=True)
        return broken

    def _ends(self, seen: Evidence) -> Iterator[str]:
        """What is wrong with how it all ended."""
        if seen.stuck:
            yield "gave up waiting: nothing was done any more"
        if seen.left_over:
            yield f"{seen.left_over} messages left on the brokers"
        for life in seen.lives:
            if life.code and not life.killed:
                yield f"{life.name} ({life.log.name}) ended with {life.code}"
        for id, count in self._fleet.effects().items():
            if count > 1:
                yield f"{id} had its effect {count} times"

    def _effects(self, seen: Evidence) -> list[Effects]:
        active: dict[str, list[float]] = {worker.name: [] for worker in self._fleet.workers}
        first: dict[str, float] = {}
        for note in seen.notes:
            active[note.worker].append(note.at)
            first.setdefault(note.id, note.at)
        logs = [(life.name, life.log) for life in seen.lives]
        for producer in self._fleet.producers:
            active[producer.name] = sorted(first[id] for id in producer.given if id in first)
            logs += [(producer.name, log) for log in producer.logs]
        lines = [line for name, log in logs for line in log_lines(name, log.read_text(errors="replace"))]
        lines.sort(key=lambda line: line.at)
        done = [note.at for note in seen.notes if note.word == "end"]
        return [effects(outage, done, active, lines) for outage in self._outages]


def _run(folder: Path, faults: Sequence[Fault], seed: int, rate: float) -> int:
    """In a world of its own: the exit code."""
    tempfile.tempdir = str(folder)  # all that anybody makes here
    try:
        broken = Partition(folder, faults, seed, rate).run()
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
        print(f"  {fault.seconds:3.0f} s  {fault.kind}")
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
