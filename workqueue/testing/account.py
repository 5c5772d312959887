"""What a run came to: pure, from the evidence."""

import signal
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from workqueue.testing.evidence import Evidence, Life, spans_between
from workqueue.testing.processes import Note

IDLE_S = 10.0  # a worker gets something within this, whatever happened before
BUSY = 20  # tasks that nobody has begun: there is something to get, for all of a few workers with one in hand
EXTRA_STARTS = 3  # of a task that was cut off where nobody could count it, beyond what its limit says


@dataclass
class Account:
    """Sets of ids, but for what their names say. Empty where all is well, except `honest`."""

    sent: int = 0
    by_operation: Counter[str] = field(default_factory=Counter)
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
    """Started more often than any limit of its operation allows."""
    astray: set[str] = field(default_factory=set)
    """Begun by another operation's handler, or among another operation's dead letters, than it was sent to."""
    begun_cancelled: set[str] = field(default_factory=set)
    """Begun after an operator was told that it is cancelled."""
    begun_paused: set[str] = field(default_factory=set)
    """Begun while the operation was paused, where they are more than workers had in hand."""
    called_off: int = 0
    cancelled: int = 0
    paused: int = 0
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
        wrong |= self.begun_cancelled | self.begun_paused
        return lost | wrong | self.convicted | self.overtried | self.astray

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.offending or self.idle or self.crashed or self.left_over or self.stuck)

    def __str__(self) -> str:
        rows = {
            "sent (unique ids)": f"{self.sent}: "
            + ", ".join(f"{n} to {name}" for name, n in self.by_operation.items()),
            "done": len(self.done),
            "done more than once": f"{len(self.twice)} violations, {len(self.honest)} in the honest window",
            "lost": f"{len(self.lost)}" + f", {self.deleted} went with a deleted queue" * bool(self.deleted),
            "dead": f"{len(self.dead)} as expected, {len(self.dead_unexpected)} not expected",
            "dead letters twice": len(self.dead_again),
            "poison": f"{self.poison_sent} sent, {self.poison_sent - len(self.poison_lost)} dead",
            "odd and deadly": f"{self.odd} odd, {self.deadly} deadly, {len(self.convicted)} good tasks convicted",
            "sent back": f"{self.moved} dead letters",
            "called off": f"{self.called_off}: {self.cancelled} cancelled, {len(self.begun_cancelled)} begun after",
            "paused": f"{self.paused} times, {len(self.begun_paused)} tasks begun meanwhile that were not in hand",
            "tried too often": len(self.overtried),
            "at another operation": len(self.astray),
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
    result.by_operation = Counter(map(seen.operation, seen.given))
    result.odd, result.deadly = len(seen.odd), len(seen.deadly)
    result.moved, result.deleted = len(seen.moved), seen.deleted
    result.done = ends.keys() & seen.given.keys()
    result.lost = seen.given.keys() - ends.keys() - letters.keys() - seen.called_off.keys()
    cured = {letter.id: seen.curable[letter.id] for letter in seen.moved if letter.id in seen.curable}
    result.poison_lost = seen.poison.keys() - letters.keys() - {id for id, task in cured.items() if task in ends}
    result.stuck = seen.stuck and (len(result.lost) > seen.deleted or bool(result.poison_lost) or seen.left_over > 0)
    result.unknown = (ends.keys() | letters.keys()) - seen.given.keys() - seen.poison.keys()
    result.unknown -= set(cured.values())
    note_deaths(seen)
    count_dead(seen, ends, result)
    count_done_again(seen, ends, result)
    count_starts(seen, starts, result)
    count_orders(seen, starts, result)
    result.astray = set(astray(seen))
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
    for life, notes in seen.by_life:
        struck = any(note.word == "start" and note.id in seen.deadly for note in notes)
        if struck and life.killed is None and life.code == -signal.SIGKILL:
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
    excusable = set[Note]()
    for life, made in seen.by_life:
        last = {seen.operation(note.id): note for note in made}
        excusable |= {note for note in made if is_in_honest_window(note, last[seen.operation(note.id)], life)}
    for id, notes in ends.items():
        excused = sum(note in excusable for note in notes)
        # An odd one may come to its end, and be dead for what it returned: sent back, it does so again.
        allowed = 1 + (sent_back[id] if id in seen.odd else 0)
        if len(notes) > allowed:
            (result.honest if excused >= len(notes) - allowed else result.twice).add(id)


def is_in_honest_window(end: Note, last: Note, life: Life) -> bool:
    """Whether this was the last of its operation that a process did before it was killed, or could not record by the
    end of its drain, and it had not said that it was done. One that has several of an operation in hand does more
    meanwhile."""
    cut_short = life.killed is not None or life.drained_out
    return cut_short and (end == last or life.concurrency > 1) and end.id not in life.told_done


def count_starts(seen: Evidence, starts: Mapping[str, Sequence[Note]], result: Account) -> None:
    """No task is begun without end: what kills has a limit, and copies of one task don't multiply its attempts. None is
    given up before it had the attempts of its operation."""
    sent_back = Counter(letter.id for letter in seen.moved)
    limits = {id: seen.receives[id].crash_limit for id in seen.deadly}
    limits |= {id: seen.receives[id].max_attempts for id in seen.flooded}
    for id, limit in limits.items():
        if len(starts.get(id, ())) > (limit + EXTRA_STARTS) * (1 + sent_back[id]):
            result.overtried.add(id)
    for letter in (*seen.letters, *seen.moved):
        if letter.id in seen.given and letter.headers.get("x-reason") == "failed":
            attempts = seen.receives[letter.id].max_attempts
            if len(starts.get(letter.id, ())) < attempts or len(letter.headers.get("x-attempts", ())) > attempts:
                result.miscounted.add(letter.id)


def count_orders(seen: Evidence, starts: Mapping[str, Sequence[Note]], result: Account) -> None:
    """What was begun against an operator's word. What workers have in hand when their queue is paused goes on."""
    told = {id: at for id, at in seen.called_off.items() if at is not None}
    result.called_off, result.cancelled, result.paused = len(seen.called_off), len(told), len(seen.paused)
    result.begun_cancelled = {id for id, at in told.items() if any(note.at > at for note in starts.get(id, ()))}
    for operation, (since, till) in seen.paused:
        at_work = (life for life in seen.lives if life.began < since and (life.ended is None or life.ended > since))
        in_hand = sum(life.concurrency for life in at_work)
        begun = [id for id, notes in starts.items() if any(since < note.at < till for note in notes)]
        begun = [id for id in begun if seen.operation(id) == operation]
        if len(begun) > in_hand:
            result.begun_paused |= set(begun)


def astray(seen: Evidence) -> Iterator[str]:
    for note in seen.notes:
        if note.operation and note.id in seen.receives and note.operation != seen.operation(note.id):
            yield note.id
    for letter in (*seen.letters, *seen.moved):
        if letter.id in seen.receives and letter.operation != seen.operation(letter.id):
            yield letter.id


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
    """The workers that got nothing of an operation for too long, while all was well and there was something to get."""
    first: dict[str, float] = {}
    for note in seen.notes:
        first.setdefault(note.id, note.at)
    stopped = max((note.at for note in seen.notes), default=0.0)
    for operation in dict.fromkeys(map(seen.operation, seen.given)):
        given = {id: seen.given[id] for id in seen.given.keys() - seen.called_off if seen.operation(id) == operation}
        came, begun = sorted(given.values()), sorted(at for id, at in first.items() if id in given)
        for life, notes in seen.by_life:
            own = [note.at for note in notes if seen.operation(note.id) == operation]
            own += [told.at for told in life.settled if seen.operation(told.id) in (operation, "")]
            ends = [at for at in (life.termed, life.killed, life.ended, stopped) if at is not None]
            for since, till in spans_between([life.began, *own, min(ends)], [*seen.unhealthy, *life.frozen]):
                # The first task with which there are so many to get. The broker gives to each consumer in turn.
                enough = bisect_left(begun, since) + max(BUSY, consumers_beside(life, since, till, seen.lives)) - 1
                if enough < len(came) and till - (since := max(since, came[enough])) > IDLE_S:
                    told = f"got nothing of {operation} for {till - since:.1f} s, from {since:.3f}"
                    yield f"{life.name} ({life.log.name}) {told}"


def consumers_beside(life: Life, since: float, till: float, lives: Iterable[Life]) -> int:
    """How many the other workers of that time had on a queue."""
    others = [other for other in lives if other is not life and other.began < till]
    return sum(other.concurrency for other in others if other.ended is None or other.ended > since)


def longest_stall(seen: Evidence, done_at: Mapping[str, float]) -> tuple[float, float]:
    """The longest time in which no message was settled, though all was well and a task that would be done was under
    way, in seconds, and when it began."""
    longest, began = 0.0, min(seen.given.values())
    start = began
    settled = [note.at for note in seen.notes if note.word == "end"] + [
        told.at for life in seen.lives for told in life.settled
    ]
    for since, till in spans_between([start, *settled], seen.unhealthy):
        if till - since > longest:
            waiting = [at for id, at in seen.given.items() if id in done_at and at < till <= done_at[id] + 1e-6]
            if waiting and till - max(since, min(waiting)) > longest:
                began = max(since, min(waiting))
                longest = till - began
    return longest, began - start
