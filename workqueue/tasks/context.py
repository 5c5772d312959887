"""One attempt at a task, as its handler sees it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from workqueue.ledger import ClaimLost
from workqueue.settings import Settings


@dataclass
class Run:
    """One attempt at a task, as its handler sees it. `attempt` counts from 1."""

    worker: str
    attempt: int
    settings: Settings
    _complete: Callable[[BaseModel | None], AbstractAsyncContextManager[Any]] = field(repr=False)
    _completed: bool = False
    _lost: bool = False

    @asynccontextmanager
    async def completion(self, result: BaseModel | None = None) -> AsyncIterator[Any]:
        """For an effect in the ledger's own database: a transaction that holds both the effect and the completion.

        Gives the database's connection (sqlite3.Connection, psycopg.AsyncConnection). When the block ends, both are
        committed; when it raises, neither. Nothing else may follow in the handler. Keep it short: on SQLite no other
        task of this machine is claimed or completed meanwhile.
        """
        try:
            async with self._complete(result) as connection:
                yield connection
        except ClaimLost:
            self._lost = True
            raise
        self._completed = True
