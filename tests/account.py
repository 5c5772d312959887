"""What a chaos run came to: pure, from what handlers wrote, what workers logged, and what lay in the dead letters.

The ledger is not asked: it is one of the things on trial.
"""

import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.harness import Note

IDLE_S = 10.0  # a worker gets something within this, whatever happened before
BUSY = 20  # tasks that others began meanwhile: there was something to get
Span = tuple[float, float]
SETTLED = re.compile(r"(\S+ \S+),(\d+) \S+  (?:done|dead|failed|is taken|lost its claim|handed back)")


@dataclass
class Life:
    """A worker process, and what was done to it. Times are Unix times."""

    name: str
    pid: int
    log: Path
    began: float
    ready: float | None = None
    termed: float | None = None
    killed: float | None = None
    ended: float | None = None
    code: int | None = None
    frozen: list[Span] = field(default_factory=list)

    @cached_property
    def lines(self) -> list[str]:
        """What it logged; asked for once it has ended."""
        return self.log.read_text(errors="replace").splitlines()

    @cached_property
    def settled(self) -> list[float]:
        """When it settled a message, by its log: also one that it need not handle, being done already."""
        found = filter(None, map(SETTLED.match, self.lines))
        return [datetime.fromisoformat(line[1]).timestamp() + int(line[2]) / 1000 for line in found]

    @property
    def is_crash(self) -> bool:
        """It ended in a way that nobody asked for; 3 is its right when there is no broker or ledger to start with."""
        return self.killed is None and self.code not in ((0, 3) if self.termed else (3,))


@dataclass(frozen=True)
class Letter:
    """A dead letter. `id` is the task's if it has one, else the message's."""

    id: str
    headers: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """All that was seen. `given` is when each task was first given to a producer; `failures` how often each is to
    fail, None for always; `poison` what each was; `unhealthy` when broker, ledger or network could not be used."""

    given: Mapping[str, float]
    failures: Mapping[str, int | None]
    poison: Mapping[str, str]
    notes: Sequence[Note]
    letters: Sequence[Letter]
    lives: Sequence[Life]
    unhealthy: Sequence[Span]
    left_over: int
    stuck: bool
    own_failures: bool
    """Handlers may fail by themselves: the tasks are not this suite's own."""


@dataclass
class Account:
    """Sets of ids, but for what their names say. Empty where all is well, except `honest`."""

    sent: int = 0
    done: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    honest: set[str] = field(default_factory=set)
    """Done once more: the process was killed between the end of the handler and the record of it."""
    twice: set[str] = field(default_factory=set)
    """Done more than once without that excuse."""
    dead: set[str] = field(default_factory=set)
    dead_unexpected: set[str] = field(default_factory=set)
    dead_again: set[str] = field(default_factory=set)
    """More than one dead letter: a cut between the copy and the ack."""
    poison_sent: int = 0
    poison_lost: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    """Handled or dead, and never sent: a poison message that was taken for a task."""
    miscounted: set[str] = field(default_factory=set)
    """An attempt was counted that was none, or one was not counted."""
    by_sigterm: int = 0
    idle: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    rolled: int = 0
    longest_stall_s: float = 0.0
    stalled_at_s: float = 0.0
    """When the longest stall began, from the first task on."""
    left_over: int = 0
    stuck: bool = False

    @property
    def offending(self) -> set[str]:
        return self.lost | self.twice | self.dead_unexpected | self.poison_lost | self.unknown | self.miscounted

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.offending or self.idle or self.crashed or self.left_over or self.stuck)

    def __str__(self) -> str:
        rows = {
            "sent (unique ids)": self.sent,
            "done": len(self.done),
            "done more than once": f"{len(self.twice)} violations, {len(self.honest)} in the honest window",
            "lost": len(self.lost),
            "dead": f"{len(self.dead)} as expected, {len(self.dead_unexpected)} not expected",
            "dead letters twice": len(self.dead_again),
            "poison": f"{self.poison_sent} sent, {self.poison_sent - len(self.poison_lost)} dead",
            "handled, never sent": len(self.unknown),
            "attempts miscounted": len(self.miscounted),
            "rolling restarts": f"{self.rolled} workers ended by SIGTERM, {self.by_sigterm} failed attempts by it",
            "longest stall": f"{self.longest_stall_s:.1f} s, from {self.stalled_at_s:.1f} s on",
            f"idle for more than {IDLE_S:g} s": len(self.idle),
            "workers that crashed": len(self.crashed),
            "left on the broker": self.left_over,
        }
        lines = [f"  {name:<26} {value}" for name, value in rows.items()]
        lines += ["  gave up waiting: nothing ended any more"] * self.stuck
        lines += [f"  {line}" for line in (*self.idle, *self.crashed)]
        return "\n".join(lines)


def account(seen: Evidence) -> Account:
    ends: dict[str, list[Note]] = defaultdict(list)
    last = {note.pid: note for note in seen.notes}
    for note in seen.notes:
        if note.word == "end":
            ends[note.id].append(note)
    letters = Counter(letter.id for letter in seen.letters)
    expected_dead = {id for id, failures in seen.failures.items() if failures is None}
    result = Account(sent=len(seen.given), poison_sent=len(seen.poison), left_over=seen.left_over, stuck=seen.stuck)
    result.done = ends.keys() & seen.given.keys()
    result.lost = seen.given.keys() - ends.keys() - letters.keys()
    result.dead = expected_dead & letters.keys() - ends.keys()
    result.dead_unexpected = letters.keys() & (seen.given.keys() - result.dead)
    result.dead_again = {id for id, count in letters.items() if count > 1}
    result.poison_lost = seen.poison.keys() - letters.keys()
    result.unknown = (ends.keys() | letters.keys()) - seen.given.keys() - seen.poison.keys()
    lives = {life.pid: life for life in seen.lives}
    for id, notes in ends.items():
        excused = sum(is_in_honest_window(note, last[note.pid], lives[note.pid]) for note in notes)
        if len(notes) > 1:
            (result.honest if excused >= len(notes) - 1 else result.twice).add(id)
    if not seen.own_failures:
        count_attempts(seen, result)
    result.crashed = [
        f"{life.name} ({life.log.name}) ended with {life.code}: {life.lines[-1] if life.lines else ''}"
        for life in seen.lives
        if life.is_crash
    ]
    result.rolled = sum(life.termed is not None and life.code == 0 for life in seen.lives)
    result.idle = list(idle(seen))
    result.longest_stall_s, result.stalled_at_s = longest_stall(seen, {id: notes[0].at for id, notes in ends.items()})
    return result


def is_in_honest_window(end: Note, last: Note, life: Life) -> bool:
    """Whether this was the last that a process did before it was killed, and it had not said that it was done."""
    said = any(
        f"  done  {kind}  {end.id}" in line for line in life.lines for kind in re.findall(r"  done  (\w+)", line)
    )
    return life.killed is not None and end == last and not said


def count_attempts(seen: Evidence, result: Account) -> None:
    """A handler of this suite's own tasks fails only where it is told to, and says so; nothing else is an attempt."""
    for life in seen.lives:
        for line in life.lines:
            if (failed := re.search(r"  failed  \w+  (\S+)  ", line)) and "told to fail" not in line:
                result.miscounted.add(failed[1])
                result.by_sigterm += life.termed is not None
            elif done := re.search(r"  done  \w+  (\S+?)  (?:attempt (\d+))?", line):
                failures = seen.failures.get(done[1])
                if failures is not None and int(done[2] or 1) != failures + 1:
                    result.miscounted.add(done[1])
    for letter in seen.letters:
        if letter.id in seen.given and not all("told to fail" in str(one) for one in letter.headers["x-attempts"]):
            result.miscounted.add(letter.id)


def idle(seen: Evidence) -> Iterator[str]:
    """The workers that got nothing for too long, while all was well and there was something to get."""
    starts = sorted(note.at for note in seen.notes if note.word == "start")
    feeding = (min(seen.given.values()), max(seen.given.values()))
    stopped = max((note.at for note in seen.notes), default=0.0)
    for life in seen.lives:
        own = [note.at for note in seen.notes if note.pid == life.pid] + life.settled
        ends = [at for at in (life.termed, life.killed, life.ended, stopped) if at is not None]
        for since, till in spans_between([life.began, *own, min(ends)], [*seen.unhealthy, *life.frozen]):
            begun = bisect_left(starts, till) - bisect_left(starts, since)
            if till - since > IDLE_S and (begun >= BUSY or (feeding[0] < since and till < feeding[1])):
                yield f"{life.name} ({life.log.name}) got nothing for {till - since:.1f} s, from {since:.3f}"


def longest_stall(seen: Evidence, done_at: Mapping[str, float]) -> tuple[float, float]:
    """The longest time in which no message was settled, though all was well and a task that would be done was under
    way, in seconds, and when it began."""
    longest, began = 0.0, min(seen.given.values())
    start = began
    settled = [note.at for note in seen.notes if note.word == "end"] + [
        at for life in seen.lives for at in life.settled
    ]
    for since, till in spans_between([start, *settled], seen.unhealthy):
        if till - since > longest:
            waiting = [at for id, at in seen.given.items() if id in done_at and at < till <= done_at[id] + 1e-6]
            if waiting and till - max(since, min(waiting)) > longest:
                began = max(since, min(waiting))
                longest = till - began
    return longest, began - start


def spans_between(moments: Iterable[float], less: Iterable[Span]) -> Iterator[Span]:
    """The times between one moment and the next, without these spans."""
    cuts = sorted(less)
    for since, till in pairwise(sorted(moments)):
        for begin, end in cuts:
            if begin >= till:
                break
            if end > since:
                if begin > since:
                    yield since, begin
                since = max(since, end)
        if since < till:
            yield since, till


def trail(ids: Iterable[str], seen: Evidence) -> Iterator[str]:
    """Everything that was recorded, logged and dead-lettered about these ids, as lines."""
    for id in sorted(ids):
        given = f"given at {seen.given[id]}, to fail {seen.failures[id]} times" if id in seen.given else "never given"
        yield f"{id}  {seen.poison.get(id, given)}"
        yield from (f"  record  {n.word:<5}  {n.worker}  pid {n.pid}  {n.at:.6f}" for n in seen.notes if n.id == id)
        for life in seen.lives:
            yield from (f"  {life.log.name}  {line}" for line in life.lines if id in line)
        yield from (f"  dead letter  {json.dumps(dict(e.headers), default=str)}" for e in seen.letters if e.id == id)
