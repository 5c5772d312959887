"""What is seen of a run: what handlers wrote, what workers logged, and what lay in the dead letters.

The ledger is not asked: it is one of the things on trial.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from workqueue.contract import Receive
from workqueue.settings import Settings
from workqueue.testing.processes import Note

Span = tuple[float, float]
SETTLED = {"done", "retrying", "dead", "cancelled", "skipped", "delayed", "lost_claim", "handed_back"}
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
    """How many tasks of each operation it has in hand at a time."""
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
    def settled(self) -> list[Told]:
        """The messages that it settled, by its log: also those that it need not handle, being done already."""
        return [told for told in self.told if told.event in SETTLED]

    @property
    def drained_out(self) -> bool:
        """It was told to end, and had something in hand for all of the time that it has for that."""
        return self.termed is not None and self.ended is not None and self.ended - self.termed >= Settings().drain_s

    @property
    def is_crash(self) -> bool:
        """It ended in a way that nobody asked for; 3 is its right when there is no broker or ledger to start with."""
        return self.killed is None and self.code not in ((0, 3) if self.termed else (3,))


@dataclass(frozen=True)
class Letter:
    """A dead letter. `id` is the task's if it has one, else the message's; `operation` is that among whose dead letters
    it was found."""

    id: str
    headers: Mapping[str, Any]
    operation: str


@dataclass(frozen=True)
class Evidence:
    """All that was seen. `given` is when each task was first given to a producer; `receives` to which operation each
    was sent, poison too; `failures` how often each of this suite's own is to fail, None for always; `poison` what each
    was; `unhealthy` when broker, ledger or network could not be used."""

    given: Mapping[str, float]
    receives: Mapping[str, Receive]
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
    called_off: Mapping[str, float | None] = field(default_factory=dict)
    """Tasks that an operator has called off, and when the answer was that they are cancelled; None: it was not. Each is
    cancelled, done or dead, and which is not said here."""
    paused: Sequence[tuple[str, Span]] = ()
    """The operations that were paused: from the answer that nobody takes any of it to the word that all may."""
    deleted: int = 0
    """Messages that went with a queue which was thought to be empty when this suite deleted it."""

    @cached_property
    def by_life(self) -> Sequence[tuple[Life, Sequence[Note]]]:
        """Each process with its notes. By its number and the time: one that is born later may have the number of one
        that has ended."""
        found: dict[int, list[tuple[Life, list[Note]]]] = {}
        for life in sorted(self.lives, key=lambda life: life.began):
            found.setdefault(life.pid, []).append((life, []))
        for note in self.notes:
            begun = [notes for life, notes in found.get(note.pid, ()) if life.began <= note.at]
            if begun:
                begun[-1].append(note)
        return [one for same in found.values() for one in same]

    def operation(self, id: str) -> str:
        """The name of the operation that this was sent to; empty for what was never sent."""
        return self.receives[id].operation if id in self.receives else ""


def trail(ids: Iterable[str], seen: Evidence) -> Iterator[str]:
    """Everything that was recorded, logged and dead-lettered about these ids, as lines."""
    for id in sorted(ids):
        given = f"given at {seen.given[id]}, to fail {seen.failures[id]} times" if id in seen.given else "never given"
        yield f"{id}  {seen.operation(id)}  {seen.poison.get(id, given)}"
        for note in (note for note in seen.notes if note.id == id):
            yield f"  record  {note.word:<5}  {note.operation}  {note.worker}  pid {note.pid}  {note.at:.6f}"
        for life in seen.lives:
            yield from (f"  {life.log.name}  {line}" for line in life.lines if id in line)
        for letter in (letter for letter in seen.letters if letter.id == id):
            yield f"  dead letter  {letter.operation}  {json.dumps(dict(letter.headers), default=str)}"


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
