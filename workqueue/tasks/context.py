"""One attempt at a task, as its handler sees it."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from workqueue.errors import LedgerLost
from workqueue.ledger import ClaimLost, LedgerBusy, Transaction
from workqueue.settings import Settings
from workqueue.tasks.progress import LEFT_OUT, Progress

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
    so_far: Progress = field(default_factory=Progress, repr=False)
    """What `progress` was told, for the worker to show and to save."""
    completed: bool = field(default=False, init=False)
    """Whether the task was completed by `completion`."""
    lost: ClaimLost | LedgerBusy | LedgerLost | None = field(default=None, init=False)
    """What `completion` failed with that is not the handler's doing: the claim was another worker's, or the task
    finished; the ledger could not be had, or went in the middle of it; it is not the one that it was."""
    _thread: int = field(default_factory=threading.get_ident, init=False, repr=False)
    """That of the event loop."""

    @property
    def checkpoint(self) -> Any:
        """What the last attempt that gave `progress` a checkpoint has left for this one, else None.

        After an attempt that failed, or was handed back at the end of a drain, it is the latest that was given; after
        the worker's death the one of some two seconds before, at most. It stays when the task is a dead letter and is
        sent back. Without a ledger it is None.
        """
        return self.so_far.left

    def progress(self, fraction: float | None = None, text: str | None = None, *, checkpoint: Any = LEFT_OUT) -> None:
        """Say how far the task is, for operators, and from where the next attempt may go on, should this one fail.

        `fraction` is from 0 to 1, `text` what it does just now (its first 120 characters are shown), `checkpoint` any
        JSON value of at most 64 KiB, such as the number of the next line. What is left out stays as it was told last.

        For coroutines and for threads, as often as you like: nothing is written at the call. The worker tells and saves
        the latest every two seconds, and saves it when the attempt fails or is handed back; a claim that is lost saves
        nothing.

        Raises TypeError and ValueError for what is none of that. A checkpoint must be equal to what its JSON gives
        back: a tuple, a key that is no text, and NaN are refused.
        """
        self.so_far.told(fraction, text, checkpoint)

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
        self.so_far.is_locked = True
        try:
            async with self._complete(result) as db:
                yield db
        except (ClaimLost, LedgerBusy, LedgerLost) as error:
            self.lost = error
            raise
        finally:
            self.so_far.is_locked = False
        self.completed = True
