"""The schedule of faults: pure, from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

FAULT_EVERY_S = 2.0


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how long one lasts, in seconds, and what it needs: tasks of the tests' own contract, a ledger, a
    server as ledger."""

    lasts_s: tuple[float, float] = (0.0, 0.0)
    own: bool = False
    ledger: bool = False
    server: bool = False


HOSTS = {
    "worker killed": Kind(),
    "worker frozen": Kind((1.0, 6.0)),
    "workers restarted in turn": Kind(),
    "broker restarted": Kind((0.0, 1.0)),
    "broker killed": Kind((0.0, 1.0)),
    "connections cut": Kind(),
    "network stalled": Kind((1.0, 5.0)),
    "cut between publish and confirm": Kind((0.2, 0.5)),
    "cut between effect and ack": Kind((0.2, 0.5)),
    "cut between copy and ack": Kind((0.2, 0.5)),
    "producer killed": Kind(),
    "poison sent": Kind(),
    "publishers blocked": Kind((2.0, 4.0)),
    "ledger out of reach": Kind((1.0, 4.0)),
    "ledger silent": Kind((1.0, 14.0), server=True),
    "ledger read-only": Kind((1.0, 4.0), server=True),
}
"""What happens to processes, networks and servers."""

PEOPLE = {
    "odd handlers": Kind(own=True),
    "deadly task": Kind(own=True),
    "failing task sent 4 times": Kind(own=True),
    "large headers": Kind(own=True),
    "dead letters looked at": Kind(),
    "dead letters sent back": Kind(),
    "queue deleted": Kind(),
    "SIGTERM twice": Kind(),
    "SIGHUP": Kind(),
    "log stalled": Kind((12.0, 16.0)),
    "tasks called off": Kind(ledger=True),
    "queue paused": Kind((1.0, 4.0), ledger=True),
}
"""What handlers, senders and operators do."""

KINDS = HOSTS | PEOPLE
PROVOKED = "killed in the honest window"
"""A kind that only comes when it is asked for: it makes a task be done twice, in the one way that is not promised."""
ALL = KINDS | {PROVOKED: Kind(own=True)}


def usable(kinds: Sequence[str], *, own: bool, ledger: str) -> list[str]:
    """Those of these kinds that there can be with such tasks, and such a ledger: sqlite, postgres or none."""
    return [
        name
        for name in kinds
        if (own or not ALL[name].own)
        and (ledger != "none" or not ALL[name].ledger)
        and (ledger == "postgres" or not ALL[name].server)
    ]


@dataclass(frozen=True)
class Fault:
    """One line of the schedule. `seconds` is how long it lasts; `worker` is which one it hits, where it hits one, and
    `operation` whose messages, queues or producer, where it hits such."""

    at_s: float
    kind: str
    worker: int
    operation: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.kind:<32} worker{self.worker}  {self.operation}  {self.seconds:.1f} s"


def plan(seed: int, seconds: float, kinds: Sequence[str], operations: Sequence[str], workers: int = 3) -> list[Fault]:
    """The schedule: every kind in a random order, then any; as many as there is time for."""
    rng = random.Random(f"faults {seed}")
    count = max(1, int(seconds / FAULT_EVERY_S))
    chosen = rng.sample(kinds, len(kinds))
    chosen = (chosen + rng.choices(kinds, k=count))[:count]
    rng.shuffle(chosen)
    every_s = seconds / count
    return [
        Fault(
            at_s=(i + rng.random()) * every_s,
            kind=kind,
            worker=rng.randrange(workers) + 1,
            operation=rng.choice(operations),
            seconds=rng.uniform(*ALL[kind].lasts_s),
        )
        for i, kind in enumerate(chosen)
    ]
