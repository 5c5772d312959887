"""One statement for many tasks: those asked for in one turn of the loop, and those that waited for a free place.

Up to AT_ONCE are under way, so that a server far away is not waited for twice: once by the statement before, and once
by one's own. Where no statement is under way, nobody waits.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from workqueue.errors import LedgerLost
from workqueue.ledger import LedgerBusy
from workqueue.ledger.postgres_pool import Locked, Pool
from workqueue.ledger.postgres_session import Answer, settle
from workqueue.ledger.postgres_sql import MANY_LOCK_S

# With a third a worker is some 3 % faster at 1 ms and 100 tasks at a time, by two more connections.
AT_ONCE = 2

Row = tuple[Any, ...]


class Asked(NamedTuple):
    """The values of one task, and the future of its row."""

    values: Sequence[Any]
    answer: "asyncio.Future[Row | None]"


class Batch:
    """The statement `one` takes a task's values and gives its row, which begins with its id, or none. `many` takes a
    list for each of the values and gives the rows in any order.

    `many` fails where it would wait for a lock for longer than MANY_LOCK_S; each of its tasks is asked for by itself
    then, so that it waits for its own row only. `one` waits for longer. AT_ONCE of these do, so that the pool has
    connections left for the tasks that nobody has locked, however many somebody has; the others are Locked at once.
    """

    def __init__(self, pool: Pool, one: str, many: str) -> None:
        self._pool, self._one, self._many = pool, one, many
        self._under_way: set[asyncio.Future[Answer]] = set()
        self._patient: set[asyncio.Future[Answer]] = set()  # those that may wait for long
        self._waiting: dict[UUID, Asked] = {}

    async def ask(self, task_id: UUID, values: Sequence[Any]) -> Row | None:
        """The task's row. Raises what the pool does."""
        loop = asyncio.get_running_loop()
        asked = Asked(values, loop.create_future())
        if task_id in self._waiting:  # no statement may change a row twice
            self._together({task_id: asked})
        else:
            self._waiting[task_id] = asked
            if len(self._waiting) == 1:
                loop.call_soon(self._next)  # whoever asks in this turn goes with it
        return await asked.answer

    def _next(self) -> None:
        if len(self._under_way) >= AT_ONCE:
            return
        waiting, self._waiting = self._waiting, {}
        batch = {task_id: asked for task_id, asked in waiting.items() if not asked.answer.done()}
        if len(batch) == 1 and len(self._patient) < AT_ONCE:
            statement = self._alone(*batch.values())
            # For as long as it may wait for a lock, the others need not wait for it.
            timer = asyncio.get_running_loop().call_later(MANY_LOCK_S, self._over, statement)
            statement.add_done_callback(lambda _: timer.cancel())
        elif batch:
            statement = self._together(batch)
        else:
            return
        self._under_way.add(statement)
        statement.add_done_callback(self._over)

    def _over(self, statement: asyncio.Future[Answer]) -> None:
        self._under_way.discard(statement)
        self._next()

    def _alone(self, asked: Asked) -> asyncio.Future[Answer]:
        statement = self._pool.ask(self._one, asked.values)
        self._patient.add(statement)
        statement.add_done_callback(partial(self._answered_alone, asked))
        return statement

    def _answered_alone(self, asked: Asked, statement: asyncio.Future[Answer]) -> None:
        self._patient.discard(statement)
        if (error := statement.exception()) is None:
            rows = statement.result()[1]
            settle(asked.answer, rows[0] if rows else None)
        else:
            settle(asked.answer, error)
            self._failed(statement, error)

    def _together(self, batch: dict[UUID, Asked]) -> asyncio.Future[Answer]:
        columns = [list(column) for column in zip(*(asked.values for asked in batch.values()), strict=True)]
        statement = self._pool.ask(self._many, columns)
        statement.add_done_callback(partial(self._answered, batch))
        return statement

    def _answered(self, batch: dict[UUID, Asked], statement: asyncio.Future[Answer]) -> None:
        if (error := statement.exception()) is None:
            found = {row[0]: row for row in statement.result()[1]}
            for task_id, asked in batch.items():
                settle(asked.answer, found.get(task_id))
        elif not is_of_one_task(error):
            fail(batch.values(), error)
            self._failed(statement, error)
        else:
            for task_id, asked in batch.items():
                if asked.answer.done():  # a claim that nobody waits for any more, nobody would give back
                    continue
                if len(batch) > 1:
                    self._together({task_id: asked})
                elif isinstance(error, Locked) and len(self._patient) < AT_ONCE:
                    self._alone(asked)
                else:
                    settle(asked.answer, error)

    def _failed(self, statement: asyncio.Future[Answer], error: BaseException) -> None:
        """Those who wait would find the same."""
        if statement in self._under_way and not is_of_one_task(error):
            waiting, self._waiting = self._waiting, {}
            fail(waiting.values(), error)


def is_of_one_task(error: BaseException) -> bool:
    """By its lock or its value, which the server refused or psycopg could not send."""
    is_of_all = isinstance(error, LedgerBusy | LedgerLost) and not isinstance(error.__cause__, psycopg.DataError)
    return isinstance(error, Locked) or not is_of_all


def fail(tasks: Iterable[Asked], error: BaseException) -> None:
    for asked in tasks:
        settle(asked.answer, LedgerBusy(str(error)) if isinstance(error, LedgerBusy) else error)
