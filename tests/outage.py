"""What an outage did to those who work, and whether that is within the limits: pure, from when who did what.

Times are Unix times, as in `workqueue.testing.evidence`.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from workqueue.testing import Note
from workqueue.testing.evidence import Life

STRETCH_S = 15.0  # without a task done, while most brokers and the ledger can be reached
BACK_S = 20.0  # until who was cut off from one of several brokers works again
NET_TICK_S = 75.0
"""Until RabbitMQ misses a node that is silent, by its default net_ticktime of 60 s, at the latest. Version 3 answers
nobody before who comes to a queue whose leader was there, and was not at one of the other nodes already."""
LEDGER_BACK_S = 5.0  # the same, after the ledger is back: there is just one
LEDGER_LINE_S = 5.0  # until a worker says that it waits for the ledger
EFFECT_S = 50.0  # until another worker has done the task of a host that died: the broker's heartbeats, then the lease
STALL_S = 3.0  # a shorter pause is none
EXPECTED = ("ready", "done", "stops", "stopped")  # what a worker says while all is well


@dataclass(frozen=True)
class Outage:
    """From `began` to `healed` packets were dropped or late; at `settled` all worked again, or were given up on.

    `cut_off`: who could reach nothing meanwhile, so that they are back in time if they are so after the healing.
    """

    kind: str
    target: str
    began: float
    healed: float
    settled: float
    cut_off: frozenset[str] = frozenset()
    at_leader: frozenset[str] = frozenset()
    """Who had to leave the queue's leader, of a RabbitMQ that lets nobody come anew before NET_TICK_S."""
    ledger: bool = False
    idle: bool = False
    """No tasks were sent meanwhile."""
    delays_only: bool = False
    """No packet was dropped, so there is nothing to report."""
    late: str = ""
    """What did not come about at all, in words."""


@dataclass(frozen=True)
class Line:
    """A line of a worker's or a producer's log."""

    at: float
    name: str
    text: str


@dataclass
class Effects:
    """What an outage did, in seconds. `stretch_s`: the longest time without a task done, of that in which most
    brokers and the ledger could be reached. `back_s`: until those who stalled worked again, since they stalled, or
    since the healing where they could reach nothing."""

    outage: Outage
    stretch_s: float
    back_s: dict[str, float]
    all_at_leader: frozenset[str]
    """Of `worker` and `producer`, those sorts that were all at the leader: nobody could take, or nobody send, before
    RabbitMQ 3 missed its node."""
    ledger_line_s: float | None
    false_lines: list[Line]

    def broken(self) -> Iterator[str]:
        """The limits that were broken, in words."""
        if self.outage.late:
            yield self.outage.late
        limit_s = STRETCH_S + (NET_TICK_S if self.all_at_leader else 0.0)
        if self.stretch_s > limit_s:
            yield f"no task was done for {self.stretch_s:.1f} s (limit {limit_s:g})"
        since = "after the healing" if self.outage.ledger else "after it stalled"
        for name, back_s in sorted(self.back_s.items()):
            limit_s = LEDGER_BACK_S if self.outage.ledger else BACK_S
            nothing_to_do = name.startswith("worker") and "producer" in self.all_at_leader
            limit_s += NET_TICK_S if name in self.outage.at_leader or nothing_to_do else 0.0
            if back_s > limit_s:
                when = "after the healing" if name in self.outage.cut_off else since
                yield f"{name} worked again {back_s:.1f} s {when} (limit {limit_s:g})"
        if self.ledger_line_s is not None and self.ledger_line_s > LEDGER_LINE_S:
            yield f"that the ledger is waited for was said after {self.ledger_line_s:.1f} s (limit {LEDGER_LINE_S:g})"
        for line in self.false_lines:
            yield f"false: {line.name} said: {line.text}"

    def __str__(self) -> str:
        backs = ", ".join(f"{name} {back_s:.1f}" for name, back_s in sorted(self.back_s.items())) or "nobody stalled"
        line = "" if self.ledger_line_s is None else f"; said after {self.ledger_line_s:.1f}"
        lasted_s = self.outage.healed - self.outage.began
        return (
            f"{self.outage.kind} ({self.outage.target}), {lasted_s:.0f} s: longest without a task done "
            f"{self.stretch_s:.1f}; back: {backs}{line}; false lines {len(self.false_lines)}"
        )


def effects(
    outage: Outage, done: Sequence[float], active: Mapping[str, Sequence[float]], lines: Sequence[Line]
) -> Effects:
    """`done`: when any task was done; `active`: when each worker and producer did anything at a task."""
    since = outage.healed if outage.ledger else outage.began
    back_s = {}
    for name, times in () if outage.idle else active.items():
        began, ended = longest_gap(times, outage.began, outage.settled)
        if ended - began >= STALL_S:
            back_s[name] = max(0.0, ended - (outage.healed if name in outage.cut_off else max(since, began)))
    during = [line for line in lines if outage.began <= line.at <= outage.settled]
    return Effects(
        outage,
        stretch_s=0.0 if outage.idle else _length(longest_gap(done, since, outage.settled)),
        back_s=back_s,
        all_at_leader=frozenset(
            sort
            for sort in ("worker", "producer")
            if (those := {name for name in active if name.startswith(sort)}) and those <= outage.at_leader
        ),
        ledger_line_s=_first_line_s(outage, back_s, during) if outage.ledger else None,
        false_lines=[line for line in during if is_report(line)] if outage.delays_only else [],
    )


def longest_gap(times: Sequence[float], since: float, till: float) -> tuple[float, float]:
    """The longest time in [since, till] with none of these. One that is not over by then ends with the next of them,
    or at infinity."""
    began, ended = max(pairwise([since, *(at for at in times if since < at < till), till]), key=_length)
    return began, ended if ended < till else min((at for at in times if at >= till), default=math.inf)


def _length(gap: tuple[float, float]) -> float:
    return gap[1] - gap[0]


def _first_line_s(outage: Outage, stalled: Iterable[str], during: Sequence[Line]) -> float:
    """How long it took until each worker that stalled had said something of the ledger."""
    said = {line.name: line.at - outage.began for line in reversed(during) if "ledger" in line.text}
    return max((said.get(name, math.inf) for name in stalled if name.startswith("worker")), default=0.0)


def is_report(line: Line) -> bool:
    """Whether it says that something is not well."""
    return not any(f"{line.name}  {word}" in line.text for word in EXPECTED) and not line.text.startswith("sent: ")


def log_lines(name: str, text: str) -> Iterator[Line]:
    """The lines of a log that have a time."""
    for line in text.splitlines():
        try:
            at = datetime.fromisoformat(line[:19]).timestamp() + int(line[20:23]) / 1000
        except ValueError:
            continue
        yield Line(at, name, line)


def done_twice(
    notes: Iterable[Note], lives: Iterable[Life], outages: Sequence[Outage]
) -> tuple[dict[str, str], dict[str, str]]:
    """The tasks whose handler came to its end more than once: those where that is wrong, and those where it is the
    honest limit: only one end was recorded, and the others fell into an outage that kept them from it."""
    ends: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        if note.word == "end":
            ends[note.id].append(note)
    recorded: dict[str, int] = defaultdict(int)
    for life in lives:
        for line in life.lines:
            _, _, told = line.partition(f"{life.name}  done  ")
            if told:
                recorded[told.split()[1]] += 1
    wrong: dict[str, str] = {}
    honest: dict[str, str] = {}
    for id, several in ends.items():
        if len(several) > 1:
            kept = sum(not any(o.began - 1 <= note.at <= o.settled for o in outages) for note in several)
            (honest if recorded[id] <= 1 and kept <= 1 else wrong)[id] = f"{len(several)} ends, {recorded[id]} recorded"
    return wrong, honest


def started_twice(
    notes: Sequence[Note], outages: Sequence[Outage], killed: Mapping[int, float], lease_s: float
) -> list[str]:
    """The tasks that a worker began while another run of them went on under a claim that was alive, in words."""
    runs: dict[str, list[Note]] = defaultdict(list)
    ended = {(note.id, note.pid): note.at for note in reversed(notes) if note.word == "end"}
    for note in notes:
        if note.word == "start":
            runs[note.id].append(note)
    found = []
    for id, starts in runs.items():
        for first, second in pairwise(starts):
            alive_until = ended.get((id, first.pid), math.inf)
            cuts = [o.began for o in outages if first.at - lease_s <= o.began <= second.at]
            cuts += [killed[first.pid]] if first.pid in killed else []
            if cuts:  # from then on it may have been without a way to renew its claim, which it does thrice in a lease
                alive_until = min(alive_until, max(first.at, min(cuts) - lease_s / 3) + lease_s)
            if second.at < alive_until:
                found.append(f"{id} began on {second.worker} while {first.worker} worked at it")
    return found
