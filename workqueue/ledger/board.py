"""What a ledger tells operators beside single tasks: who works, what they did, and what tasks died of. Nothing of it is
on a task's way."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from workqueue.ledger.texts import text_of

GONE_S = 10.0  # a process tells every two seconds: one that has not for so long has died, or can't reach the ledger
RECENT_S = 3600.0  # one that was heard of longer ago is not told any more


class Seen(NamedTuple):
    """A process that works with the ledger. `seen_s` seconds ago, by the ledger's clock, it told this (JSON)."""

    id: UUID
    name: str
    seen_s: float
    told: str


class Note(NamedTuple):
    """An operator's action: when (Unix time), by whom, what, why, and with which outcome (JSON)."""

    at: float
    who: str
    what: str
    why: str
    told: str


class Pause(NamedTuple):
    """Workers take no task from this queue: since when (Unix time), by whose order, and why."""

    queue: str
    at: float
    who: str
    why: str


class Deaths(NamedTuple):
    """Dead tasks of one kind (empty: not known) whose errors begin with the same word, which is the reason: how many,
    how many of them within the last hour, and the newest (Unix time)."""

    kind: str
    word: str
    tasks: int
    hour: int
    newest: float


class Overdue(NamedTuple):
    """Tasks of one kind (empty: not known) that nobody has and that might have been begun for long: how many, since
    when the first of them (Unix time), and the id of one."""

    kind: str
    tasks: int
    since: float
    example: str


class Task(NamedTuple):
    """A task in one of the states of `client.Status`, where one that is `retrying` waits, too. Times are Unix times.

    `since`: when it was claimed, or when it ended; of one that waits, when it could be begun: it was sent, its next
    attempt was due, or the lease of its last claim had ended. None, where that is still to come. `next_at`: no claim is
    granted before, if that is to come. `worker` had it last. `error`: its first line, of one that is dead or cancelled,
    or is to be.
    """

    id: UUID
    kind: str | None
    attempts: int
    since: float | None
    worker: str
    next_at: float | None
    error: str | None


class Lock(NamedTuple):
    """An open `transaction` of a server that has rows of tasks locked, or their table: of the process `pid`, with the
    name that its client gives itself, its role, address and state, and for how long it has been open. One that is
    prepared has no process, and its own name. What may not be seen is empty, or None."""

    transaction: str
    pid: int
    name: str
    role: str
    address: str
    state: str
    open_s: float | None

    @property
    def words(self) -> str:
        if not self.pid:
            return f"the prepared transaction '{self.name}'"
        of = f"role {self.role}, pid {self.pid}{f', from {self.address}' if self.address else ''}"
        for_s = "" if self.open_s is None else f", open for {self.open_s:.0f} s"
        return f"{self.name or 'a client without a name'} ({of}{f', {self.state}' if self.state else ''}{for_s})"


class Board(Protocol):
    """Each method is atomic, durable when it returns, and may be repeated. Raises LedgerBusy and LedgerLost, as the
    methods of a ledger do."""

    async def put(self, process: UUID, name: str, told: str) -> None:
        """Say that this process is there, and what it does. It replaces what the process has said before."""

    async def remove(self, process: UUID) -> None:
        """The process ends; nothing, where nothing is known of it."""

    async def seen(self, within_s: float) -> list[Seen]:
        """The processes that were heard of within this time, by name."""

    async def forget(self, older_than_s: float) -> int:
        """Remove processes that were not heard of for longer. Their number."""

    async def pause(self, queue: str, who: str, why: str) -> bool:
        """From now on, and until `resume`, workers take no task from the queue. False: it is paused already."""

    async def resume(self, queue: str) -> bool:
        """False: it was not paused."""

    async def pauses(self) -> list[Pause]:
        """By the names of the queues."""

    async def note(self, who: str, what: str, why: str, told: str) -> None:
        """Keep, for good, that an operator did something."""

    async def notes(self, newest: int) -> list[Note]:
        """The newest so many, the newest first."""

    async def deaths(self) -> list[Deaths]:
        """All that the ledger remembers; a task that was cancelled has not died. Reads every row: a million of them in
        0.2 s on PostgreSQL, 1.5 s on SQLite."""

    async def overdue(self, older_than_s: float) -> list[Overdue]:
        """Those that have waited, or whose lease has ended, for longer than this. Reads every row."""

    async def tasks(self, state: str, at_most: int, *, kind: str | None, older_than_s: float | None) -> list[Task]:
        """The first so many that are waiting, running, done, dead or cancelled, of this kind and for longer than this,
        unless None; the oldest first. Those that wait for longer are those that are overdue. Reads every row: 300,000
        of them in 0.2 s on PostgreSQL, 0.7 s on SQLite."""

    async def locks(self) -> list[Lock]:
        """Who has tasks locked now, be it for a moment, as workers do; nobody where the store can't tell."""


@dataclass(frozen=True)
class Statements:
    """The SQL of a store. `put` takes an id, a name, and what was told; `note` and `pause` what a Note and a Pause have
    but the time."""

    put: str
    remove: str
    seen: str
    forget: str
    pause: str
    resume: str
    pauses: str
    note: str
    notes: str
    deaths: str
    overdue: str
    tasks: str
    locks: str


Run = Callable[[str, Sequence[Any]], Awaitable[tuple[int, list[Any]]]]
"""Runs a statement of a store: how many rows it changed, and those that it gave."""


class SqlBoard:
    """See `Board`."""

    def __init__(self, statements: Statements, run: Run) -> None:
        self._sql, self._run = statements, run

    async def put(self, process: UUID, name: str, told: str) -> None:
        await self._run(self._sql.put, (str(process), name, told))

    async def remove(self, process: UUID) -> None:
        await self._run(self._sql.remove, (str(process),))

    async def seen(self, within_s: float) -> list[Seen]:
        _, rows = await self._run(self._sql.seen, (within_s,))
        return [Seen(UUID(id), name, seen_s, told) for id, name, seen_s, told in rows]

    async def forget(self, older_than_s: float) -> int:
        return (await self._run(self._sql.forget, (older_than_s,)))[0]

    async def pause(self, queue: str, who: str, why: str) -> bool:
        return (await self._run(self._sql.pause, (queue, who, why)))[0] == 1

    async def resume(self, queue: str) -> bool:
        return (await self._run(self._sql.resume, (queue,)))[0] == 1

    async def pauses(self) -> list[Pause]:
        _, rows = await self._run(self._sql.pauses, ())
        return [Pause(*row) for row in rows]

    async def note(self, who: str, what: str, why: str, told: str) -> None:
        await self._run(self._sql.note, (who, what, why, told))

    async def notes(self, newest: int) -> list[Note]:
        _, rows = await self._run(self._sql.notes, (newest,))
        return [Note(*row) for row in rows]

    async def deaths(self) -> list[Deaths]:
        _, rows = await self._run(self._sql.deaths, ())
        return [Deaths(*row) for row in rows]

    async def overdue(self, older_than_s: float) -> list[Overdue]:
        _, rows = await self._run(self._sql.overdue, (older_than_s,))
        return [Overdue(kind, tasks, since, str(UUID(example))) for kind, tasks, since, example in rows]

    async def tasks(self, state: str, at_most: int, *, kind: str | None, older_than_s: float | None) -> list[Task]:
        of_kind, longer = None if kind is None else text_of(kind), -inf if older_than_s is None else older_than_s
        _, rows = await self._run(self._sql.tasks, (state, of_kind, longer, at_most))
        return [Task(UUID(id), *rest) for id, *rest in rows]

    async def locks(self) -> list[Lock]:
        _, rows = await self._run(self._sql.locks, ())
        return [Lock(*row) for row in rows]


class NoBoard:
    """See `Board`: where there is no ledger, nothing is known, and nothing kept."""

    async def put(self, process: UUID, name: str, told: str) -> None:
        pass

    async def remove(self, process: UUID) -> None:
        pass

    async def seen(self, within_s: float) -> list[Seen]:
        return []

    async def forget(self, older_than_s: float) -> int:
        return 0

    async def pause(self, queue: str, who: str, why: str) -> bool:
        return False

    async def resume(self, queue: str) -> bool:
        return False

    async def pauses(self) -> list[Pause]:
        return []

    async def note(self, who: str, what: str, why: str, told: str) -> None:
        pass

    async def notes(self, newest: int) -> list[Note]:
        return []

    async def deaths(self) -> list[Deaths]:
        return []

    async def overdue(self, older_than_s: float) -> list[Overdue]:
        return []

    async def tasks(self, state: str, at_most: int, *, kind: str | None, older_than_s: float | None) -> list[Task]:
        return []

    async def locks(self) -> list[Lock]:
        return []
