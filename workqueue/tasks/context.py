"""One attempt at a task, as its handler sees it."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel

from workqueue.ledger import ClaimLost, Transaction
from workqueue.settings import Settings

R = TypeVar("R")


@dataclass
class TaskContext(Generic[R]):
    """One attempt at a task, as its handler sees it.

    `worker` is the name of the process, `attempt` counts from 1, `resources` is what the worker's lifespan gave.
    """

    worker: str
    attempt: int
    settings: Settings
    resources: R
    _complete: Callable[[BaseModel | None], AbstractAsyncContextManager[Transaction]] = field(repr=False)
    completed: bool = field(default=False, init=False)
    """Whether the task was completed by `completion`."""
    claim_lost: bool = field(default=False, init=False)
    """Whether `completion` found that the claim was another worker's, or the task finished."""
    _thread: int = field(default_factory=threading.get_ident, init=False, repr=False)
    """That of the event loop."""

    def completion(self, result: BaseModel | None = None) -> AbstractAsyncContextManager[Transaction]:
        """For an effect in the ledger's own database: a transaction that holds both the effect and the completion.

        `await db.execute(sql, values)` runs a statement in it. When the block ends, both are committed; when it
        raises, neither. Nothing else may follow in the handler. Keep it short: on SQLite no other task of this machine
        is claimed or completed meanwhile. Raises RuntimeError in a thread, as a plain function's.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "context.completion is for the event loop: make the handler an `async def`, and run what blocks with "
                "`await in_thread(...)`"
            )
        return self._completion(result)

    @asynccontextmanager
    async def _completion(self, result: BaseModel | None) -> AsyncIterator[Transaction]:
        try:
            async with self._complete(result) as db:
                yield db
        except ClaimLost:
            self.claim_lost = True
            raise
        self.completed = True
