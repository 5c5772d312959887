"""What a chaos run came to: pure, from what handlers wrote, what workers logged, and what lay in the dead letters.

The ledger is not asked: it is one of the things on trial.
"""

import json
import signal
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from workqueue.testing.processes import Note

IDLE_S = 10.0  # a worker gets something within this, whatever happened before
BUSY = 20  # tasks that others began meanwhile: there was something to get
Span = tuple[float, float]
EXTRA_STARTS = 3  # of a task that was cut off where nobody could count it, beyond what its limit says
SETTLED = {"done", "retrying", "dead", "skipped", "delayed", "lost_claim", "handed_back"}
OLDER = {"done": "done", "failed": "retrying", "dead": "dead", "handed back": "handed_back"}
"""Words of the text log, and the events that they tell of; whatever else was said of a task, it was delayed then."""


@dataclass(frozen=True)
class Told:
    """An event of a worker's log about a message."""

    at: float
    event: str
    id: str
    attempt: int = 1
    error: str = ""


def parse(line: str) -> Told | None:
    """The one place that reads a log. None for what is not about a message."""
    if not line.startswith("{"):
        return parse_text(line)
    try:
        said = json.loads(line)
    except json.JSONDecodeError:  # it was killed while it wrote
        return None
    if "id" not in said:
        return None
    return Told(said["time"], said["event"], said["id"], said.get("attempt", 1), said.get("error", ""))


def parse_text(line: str) -> Told | None:
    """The same for a worker of a version that writes text: `<time> <worker>  <word>  <kind>  <id>[  attempt <n>]...`"""
    head, *parts = line.split("  ")
    if len(parts) < 3 or len(parts[2]) < 36 or parts[0] == "running":
        return None
    at = datetime.fromisoformat(head[:19]).timestamp() + int(head[20:23]) / 1000
    word, _, attempt = parts[3].partition(" ") if len(parts) > 3 else ("", "", "")
    number = int(attempt.partition(",")[0]) if word == "attempt" else 1
    return Told(at, OLDER.get(parts[0], "delayed"), parts[2][:36], number, "  ".join(parts[3:]))


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
    concurrency: int = 1
    frozen: list[Span] = field(default_factory=list)
    """When it had no processor: a fault stopped it, or the machine had too much to do."""

    @cached_property
    def lines(self) -> list[str]:
        """What it logged; asked for once it has ended."""
        return self.log.read_text(errors="replace").splitlines()

    @cached_property
    def told(self) -> list[Told]:
        """What it logged of tasks."""
        return list(filter(None, map(parse, self.lines)))

    @cached_property
    def told_done(self) -> set[str]:
        return {told.id for told in self.told if told.event == "done"}

    @cached_property
    def settled(self) -> list[float]:
        """When it settled a message, by its log: also one that it need not handle, being done already."""
        return [told.at for told in self.told if told.event in SETTLED]

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
    """All that was seen. `given` is when each task was first given to a producer; `failures` how often each of this
    suite's own is to fail, None for always; `poison` what each was; `unhealthy` when broker, ledger or network could
    not be used."""

    given: Mapping[str, float]
    failures: Mapping[str, int | None]
    poison: Mapping[str, str]
    notes: Sequence[Note]
    letters: Sequence[Letter]
    lives: Sequence[Life]
    unhealthy: Sequence[Span]
    left_over: int
    stuck: bool
    """Nothing ended any more, though there was something left."""
    own_failures: bool
    """Handlers may fail by themselves: the tasks are not this suite's own."""
    curable: Mapping[str, str] = field(default_factory=dict)
    """The poison with which just the headers are wrong, and the task in its body: it is one like any other once it was
    sent back, as what its headers said is history then."""
    odd: frozenset[str] = frozenset()
    """Tasks whose handlers do what handlers should not: each is done or dead, and which is not said here."""
    deadly: frozenset[str] = frozenset()
    """Tasks that kill the process which takes them."""
    flooded: frozenset[str] = frozenset()
    """Tasks that always fail and were sent several times."""
    moved: Sequence[Letter] = ()
    """Dead letters that were sent back to the queue of tasks."""
    deleted: int = 0
    """Messages that went with a queue which was thought to be empty when this suite deleted it."""
    max_attempts: int = 6
    crash_limit: int = 3


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
    convicted: set[str] = field(default_factory=set)
    """Dead as the cause of their workers' deaths, and they were not."""
    overtried: set[str] = field(default_factory=set)
    """Started more often than any limit of the contract allows."""
    odd: int = 0
    deadly: int = 0
    moved: int = 0
    deleted: int = 0
    idle: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    rolled: int = 0
    longest_stall_s: float = 0.0
    stalled_at_s: float = 0.0
    """When the longest stall began, from the first task on."""
    left_over: int = 0
    stuck: bool = False
    """Nothing ended any more, and not only because the rest went with a deleted queue."""

    @property
    def offending(self) -> set[str]:
        lost = self.lost if len(self.lost) > self.deleted else set()
        wrong = self.twice | self.dead_unexpected | self.poison_lost | self.unknown | self.miscounted
        return lost | wrong | self.convicted | self.overtried

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.offending or self.idle or self.crashed or self.left_over or self.stuck)

    def __str__(self) -> str:
        rows = {
            "sent (unique ids)": self.sent,
            "done": len(self.done),
            "done more than once": f"{len(self.twice)} violations, {len(self.honest)} in the honest window",
            "lost": f"{len(self.lost)}" + f", {self.deleted} went with a deleted queue" * bool(self.deleted),
            "dead": f"{len(self.dead)} as expected, {len(self.dead_unexpected)} not expected",
            "dead letters twice": len(self.dead_again),
            "poison": f"{self.poison_sent} sent, {self.poison_sent - len(self.poison_lost)} dead",
            "odd and deadly": f"{self.odd} odd, {self.deadly} deadly, {len(self.convicted)} good tasks convicted",
            "sent back": f"{self.moved} dead letters",
            "tried too often": len(self.overtried),
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
    starts: dict[str, list[Note]] = defaultdict(list)
    ends: dict[str, list[Note]] = defaultdict(list)
    for note in seen.notes:
        (ends if note.word == "end" else starts)[note.id].append(note)
    letters = Counter(letter.id for letter in seen.letters)
    result = Account(sent=len(seen.given), poison_sent=len(seen.poison), left_over=seen.left_over)
    result.odd, result.deadly = len(seen.odd), len(seen.deadly)
    result.moved, result.deleted = len(seen.moved), seen.deleted
    result.done = ends.keys() & seen.given.keys()
    result.lost = seen.given.keys() - ends.keys() - letters.keys()
    cured = {letter.id: seen.curable[letter.id] for letter in seen.moved if letter.id in seen.curable}
    result.poison_lost = seen.poison.keys() - letters.keys() - {id for id, task in cured.items() if task in ends}
    result.stuck = seen.stuck and (len(result.lost) > seen.deleted or bool(result.poison_lost) or seen.left_over > 0)
    result.unknown = (ends.keys() | letters.keys()) - seen.given.keys() - seen.poison.keys()
    result.unknown -= set(cured.values())
    note_deaths(seen)
    count_dead(seen, ends, result)
    count_done_again(seen, ends, result)
    count_starts(seen, starts, result)
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


def note_deaths(seen: Evidence) -> None:
    """A process that a deadly task killed was killed, as surely as by a fault of the schedule."""
    struck = {note.pid for note in seen.notes if note.word == "start" and note.id in seen.deadly}
    for life in seen.lives:
        if life.pid in struck and life.killed is None and life.code == -signal.SIGKILL:
            life.killed = life.ended


def count_dead(seen: Evidence, ends: Mapping[str, Sequence[Note]], result: Account) -> None:
    """Which dead letters are as they should be. What was sent back counts as well: it was dead once."""
    letters = Counter(letter.id for letter in seen.letters)
    every = [letter for letter in (*seen.letters, *seen.moved) if letter.id in seen.given]
    by_right = {id for id, failures in seen.failures.items() if failures is None} | seen.odd | seen.deadly
    if seen.own_failures:
        by_right |= seen.given.keys()
    result.dead = {letter.id for letter in every} & by_right - (ends.keys() - seen.odd - seen.deadly)
    result.dead_unexpected = {letter.id for letter in every} - result.dead
    result.dead_again = {id for id, count in letters.items() if count > 1}
    blamed = {letter.id for letter in every if letter.headers.get("x-reason") == "crashed"}
    if not seen.own_failures:
        result.convicted = blamed - seen.deadly - seen.odd


def count_done_again(seen: Evidence, ends: Mapping[str, Sequence[Note]], result: Account) -> None:
    sent_back = Counter(letter.id for letter in seen.moved)
    last = {note.pid: note for note in seen.notes}
    lives = {life.pid: life for life in seen.lives}
    for id, notes in ends.items():
        excused = sum(is_in_honest_window(note, last[note.pid], lives[note.pid]) for note in notes)
        # An odd one may come to its end, and be dead for what it returned: sent back, it does so again.
        allowed = 1 + (sent_back[id] if id in seen.odd else 0)
        if len(notes) > allowed:
            (result.honest if excused >= len(notes) - allowed else result.twice).add(id)


def is_in_honest_window(end: Note, last: Note, life: Life) -> bool:
    """Whether this was the last that a process did before it was killed, and it had not said that it was done. One
    that has several in hand does more meanwhile."""
    return life.killed is not None and (end == last or life.concurrency > 1) and end.id not in life.told_done


def count_starts(seen: Evidence, starts: Mapping[str, Sequence[Note]], result: Account) -> None:
    """No task is begun without end: what kills has a limit, and copies of one task don't multiply its attempts."""
    sent_back = Counter(letter.id for letter in seen.moved)
    limits = dict.fromkeys(seen.deadly, seen.crash_limit) | dict.fromkeys(seen.flooded, seen.max_attempts)
    for id, limit in limits.items():
        if len(starts.get(id, ())) > (limit + EXTRA_STARTS) * (1 + sent_back[id]):
            result.overtried.add(id)


def count_attempts(seen: Evidence, result: Account) -> None:
    """A handler of this suite's own tasks fails only where it is told to, and says so; nothing else is an attempt."""
    excepted = seen.odd | seen.deadly | seen.poison.keys()
    for life in seen.lives:
        for told in life.told:
            if told.id in excepted:
                continue
            if told.event == "retrying" and "told to fail" not in told.error:
                result.miscounted.add(told.id)
                result.by_sigterm += life.termed is not None
            elif told.event == "done":
                failures = seen.failures.get(told.id)
                if failures is not None and told.attempt != failures + 1:
                    result.miscounted.add(told.id)
    for letter in seen.letters:
        attempts = letter.headers.get("x-attempts", [])
        if letter.id in seen.given.keys() - excepted and not all("told to fail" in str(one) for one in attempts):
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
