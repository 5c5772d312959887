"""All of a ledger at once, for those who move it to another one: its door, its tasks, and what lies beside them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from workqueue.extras import needed
from workqueue.ledger import SCHEMA_VERSION
from workqueue.ledger.board import Board, Note, Pause
from workqueue.ledger.door import CLOSED, FILLED_FROM, MOVED_TO, Door, Mark, moved

AT_ONCE = 1000
"""Rows that are read, or written in a transaction: some 20 ms, in which nobody else can write to a SQLite file."""


class Row(NamedTuple):
    """A task, as every store can keep it. Times are Unix times. `next_at` counts: it is `lease_until`, or None."""

    id: bytes
    state: str
    fence: int
    crashes: str
    worker: str
    attempts: int
    result: str | None
    error: str | None
    finished_at: float | None
    kind: str | None
    digest: bytes | None
    alone: int | None
    created_at: float | None
    claimed_at: float | None
    last_error: str | None
    story: str | None
    checkpoint: str | None
    cancel: str | None
    lease_until: float
    next_at: float | None


class ClaimsHeld(Exception):
    """Workers have claims; `workers` says which."""

    def __init__(self, workers: Sequence[str]) -> None:
        super().__init__(", ".join(workers))
        self.workers = tuple(workers)


@dataclass(frozen=True)
class Statements:
    """The SQL of a store.

    `insert` leaves a task that is known as it is. `replace` puts a row in the place of one that waits and that nobody
    has claimed, if somebody has claimed or ended this; and one that is done in the place of any that waits. `bolt`
    refuses all changes of tasks, with a text for those who try, in place of `{}`. `used` says whether a task was
    claimed or ended after a time. `put_note` adds none that is there.
    """

    now: str
    meta: str
    say: str
    unsay: str
    bolt: tuple[str, ...]
    unbolt: tuple[str, ...]
    count: str
    rows: str
    insert: str
    replace: str
    used: str
    notes: str
    put_note: str
    put_pause: str


class Whole(ABC):
    """A ledger that is there. Each method is atomic and durable when it returns, and may be repeated. Raises
    LedgerUnreachable."""

    identity: int
    place: str
    board: Board

    def __init__(self, sql: Statements) -> None:
        self._sql = sql

    async def door(self) -> Door:
        return Door.read(dict((await self.run(self._sql.meta))[1]))

    async def now(self) -> float:
        """Unix time, by the ledger's clock."""
        return float((await self.run(self._sql.now))[1][0][0])

    async def close_to(self, other: Mark) -> None:
        """It was moved to the other one: nobody opens it any more, and no task in it changes. Raises ClaimsHeld, and
        then nothing was done."""
        async with self.alone():
            if held := await self.held():
                raise ClaimsHeld(held)
            await self._say(MOVED_TO, other)
            await self.seal(True)
            text = f"it {moved(other)}".replace("'", "''")
            for statement in (*self._sql.unbolt, *self._sql.bolt):
                await self.run(statement.replace("{}", text))

    async def open_again(self) -> None:
        async with self.alone():
            for statement in self._sql.unbolt:
                await self.run(statement)
            await self.seal(False)
            await self._unsay(MOVED_TO)

    async def fill(self, other: Mark) -> None:
        """It is being filled from the other one: nobody opens it until `filled`. Who has it open works on."""
        async with self.transaction():
            await self._say(FILLED_FROM, other)

    async def filled(self) -> None:
        async with self.transaction():
            await self._unsay(FILLED_FROM)

    async def _say(self, key: str, other: Mark) -> None:
        minor = (await self.door()).minor
        await self.run(self._sql.say, (key, str(other)))
        await self.run(self._sql.say, ("schema_version", f"{CLOSED}.{minor}"))

    async def _unsay(self, key: str) -> None:
        await self.run(self._sql.unsay, (key,))
        door = await self.door()
        if door.why is None:
            await self.run(self._sql.say, ("schema_version", f"{SCHEMA_VERSION[0]}.{door.minor}"))

    async def count(self) -> int:
        return int((await self.run(self._sql.count))[1][0][0])

    async def rows(self, after: bytes) -> list[Row]:
        """The next so many, by their ids."""
        return [Row(*row) for row in (await self.run(self._sql.rows, (self.start(after), AT_ONCE)))[1]]

    async def put(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Add those that are not known, and replace those that know less: how many of each."""
        async with self.transaction():
            copied = await self.many(self._sql.insert, rows)
            told = [row for row in rows if row.fence or row.finished_at is not None]
            if copied == len(rows) or not told:
                return copied, 0
            return copied, await self.many(self._sql.replace, told)

    async def used(self, since: float) -> bool:
        return bool((await self.run(self._sql.used, (since, since, since)))[1][0][0])

    async def notes(self) -> list[Note]:
        """All, the oldest first."""
        return [Note(*row) for row in (await self.run(self._sql.notes))[1]]

    async def put_beside(self, notes: Iterable[Note], pauses: Iterable[Pause]) -> None:
        async with self.transaction():
            for note in notes:
                await self.run(self._sql.put_note, (*note, *note))
            for pause in pauses:
                await self.run(self._sql.put_pause, pause)

    @abstractmethod
    async def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[Any]]:
        """How many rows it changed, and those that it gave."""

    @abstractmethod
    async def many(self, statement: str, rows: Sequence[Row]) -> int:
        """How many rows it changed, for all of these."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    def alone(self) -> AbstractAsyncContextManager[None]:
        """A transaction in which nobody else changes a task."""

    @abstractmethod
    async def held(self) -> list[str]:
        """The workers that have claims which are alive."""

    @abstractmethod
    async def others(self) -> list[str]:
        """The processes, beside this one, that have it open."""

    @abstractmethod
    async def seal(self, closed: bool) -> None:
        """Let those lose it who connect anew, where that is how they notice."""

    @abstractmethod
    def start(self, after: bytes) -> Any:
        """What `rows` begins at, after this id; after none where it is empty."""

    @abstractmethod
    async def close(self) -> None: ...


async def open_whole(url: str) -> Whole:
    """All of the ledger at this URL, open or closed. Raises LedgerUnreachable, ExtraMissing."""
    if url.startswith("postgresql:"):
        with needed("a ledger at postgresql:"):
            from workqueue.ledger.postgres_whole import PostgresWhole

        return await PostgresWhole(url).open()
    from workqueue.ledger.sqlite_whole import SqliteWhole

    return SqliteWhole(url.removeprefix("sqlite:"))


async def exists(url: str) -> bool:
    """Whether there is a ledger at this URL, of whichever version; none is one. Raises as `open_whole`."""
    if url.startswith("postgresql:"):
        with needed("a ledger at postgresql:"):
            from workqueue.ledger.postgres_whole import exists as has_tables

        return await has_tables(url)
    if url == "none":
        return True
    from workqueue.ledger.sqlite_file import is_there

    return is_there(url.removeprefix("sqlite:"))
