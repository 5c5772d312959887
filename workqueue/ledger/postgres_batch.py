"""One statement for many tasks: who asks while one is under way waits for the next. Where none is, nobody waits."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import Context
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from workqueue.ledger import LedgerBusy
from workqueue.ledger.postgres_pool import Locked, Pool
from workqueue.ledger.postgres_session import settle
from workqueue.ledger.postgres_sql import MANY_LOCK_S

Row = tuple[Any, ...]


class Asked(NamedTuple):
    """The values of one task, and the future of its row."""

    values: Sequence[Any]
    answer: "asyncio.Future[Row | None]"


class Batch:
    """The statement `one` takes a task's values and gives its row, which begins with its id, or none. `many` takes a
    list for each of the values and gives the rows in any order. It fails where it would wait for a lock for longer than
    MANY_LOCK_S; each of its tasks is asked for alone then, so that it waits for its own row only."""

    def __init__(self, pool: Pool, one: str, many: str) -> None:
        self._pool, self._one, self._many = pool, one, many
        self._under_way: object = None
        self._waiting: dict[UUID, Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, task_id: UUID, values: Sequence[Any]) -> Row | None:
        """The task's row. Raises what the pool does."""
        if self._under_way is None:
            return await self._first(values)
        if task_id in self._waiting:  # no statement may change a row twice
            return await self._alone(values)
        asked = self._waiting[task_id] = Asked(values, asyncio.get_running_loop().create_future())
        return await asked.answer

    async def _first(self, values: Sequence[Any]) -> Row | None:
        """As long as it may wait for a lock, the others need not wait for it."""
        self._under_way = this = object()
        timer = asyncio.get_running_loop().call_later(MANY_LOCK_S, self._next, this)
        try:
            return await self._alone(values)
        except LedgerBusy as error:
            self._failed(this, error)
            raise
        finally:
            timer.cancel()
            self._next(this)

    async def _alone(self, values: Sequence[Any]) -> Row | None:
        _, rows = await self._pool.execute(self._one, values)
        return rows[0] if rows else None

    def _next(self, this: object) -> None:
        """This one is over."""
        if self._under_way is not this:
            return
        self._under_way = None
        waiting, self._waiting = self._waiting, {}
        batch = {task_id: asked for task_id, asked in waiting.items() if not asked.answer.done()}
        if batch:
            self._under_way = this = object()
            self._spawn(self._run(this, batch))

    async def _run(self, this: object, batch: dict[UUID, Asked]) -> None:
        try:
            columns = [list(column) for column in zip(*(asked.values for asked in batch.values()), strict=True)]
            _, rows = await self._pool.execute(self._many, columns)
            found = {row[0]: row for row in rows}
            for task_id, asked in batch.items():
                settle(asked.answer, found.get(task_id))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who have asked
            # A value that the server refuses is one task's.
            if isinstance(error, Locked) or isinstance(error.__cause__, psycopg.DataError):
                for asked in batch.values():
                    self._spawn(self._settle(asked))
            else:
                fail(batch, error)
                self._failed(this, error)
        finally:
            self._next(this)

    async def _settle(self, asked: Asked) -> None:
        try:
            settle(asked.answer, await self._alone(asked.values))
        except Exception as error:  # noqa: BLE001  # as above
            settle(asked.answer, error)

    def _failed(self, this: object, error: Exception) -> None:
        """Those who wait would find the same."""
        if isinstance(error, Locked) or self._under_way is not this:
            return
        waiting, self._waiting = self._waiting, {}
        fail(waiting, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=Context())  # not in that of whoever asks
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def fail(tasks: dict[UUID, Asked], error: Exception) -> None:
    for asked in tasks.values():
        settle(asked.answer, LedgerBusy(str(error)) if isinstance(error, LedgerBusy) else error)
