"""One attempt at a task, as its handler sees it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from workqueue.errors import LedgerLost
from workqueue.ledger import ClaimLost, LedgerBusy, Transaction
from workqueue.settings import Settings
from workqueue.tasks.progress import LEFT_OUT, Progress
from workqueue.verdicts import HandlerBroke

R_co = TypeVar("R_co", covariant=True)

LEFT_OPEN = "the handler ended in a block of context.completion: leave that first, by async with"


@dataclass
class TaskContext(Generic[R_co]):
    """One attempt at a task, as its handler sees it.

    `worker` is the name of the process, `attempt` counts from 1, `resources` is what the worker's lifespan gave.
    """

    worker: str
    attempt: int
    settings: Settings
    resources: R_co
    _complete: Callable[[BaseModel | None], AbstractAsyncContextManager[Transaction]] = field(repr=False)
    so_far: Progress = field(default_factory=Progress, repr=False)
    """What `progress` was told, for the worker to show and to save."""
    _completing: "Completing | None" = field(default=None, init=False, repr=False)
    _thread: int = field(default_factory=threading.get_ident, init=False, repr=False)
    """That of the event loop."""

    @property
    def completing(self) -> "Completing | None":
        """What became of `completion`, once it was called."""
        return self._completing

    @property
    def completed(self) -> bool:
        """Whether the task was completed by `completion`."""
        return self._completing is not None and self._completing.completed

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
        is claimed or completed meanwhile. Raises RuntimeError in a thread, as a plain function's; its block does when
        there is one already. One that is open when the handler ends is rolled back, and the attempt has failed.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "context.completion is for the event loop: make the handler an `async def`, and run what blocks with "
                "`await in_thread(...)`"
            )
        if self._completing is None:
            self._completing = Completing(self.so_far)
        return Completion(self._completing, partial(self._complete, result))


@dataclass
class Completing:
    """What an attempt makes of `TaskContext.completion`."""

    so_far: Progress
    completed: bool = False
    lost: ClaimLost | LedgerBusy | LedgerLost | None = None
    """What it failed with that is not the handler's doing: the claim was another worker's, or the task finished; the
    ledger could not be had, or went in the middle of it; it is not the one that it was."""
    block: "Completion | None" = None
    """While it is open."""

    def begin(self, block: "Completion") -> None:
        """Raises RuntimeError."""
        if self.completed or self.block is not None:
            why = "was one: the task is completed" if self.completed else "is one: it would wait for itself"
            raise RuntimeError(f"context.completion is for one block of a handler, and there {why}")
        self.block, self.so_far.is_locked = block, True

    def end(self, error: BaseException | None, *, own: BaseException | None = None) -> None:
        """`own` is what the handler itself raised in the block, be it of another ledger."""
        self.block, self.so_far.is_locked = None, False
        self.completed = error is None
        if isinstance(error, ClaimLost | LedgerBusy | LedgerLost) and error is not own:
            self.lost = error

    async def roll_back(self) -> bool:
        """End a block that the handler has left open; whether there was one."""
        if self.block is None:
            return False
        await self.block.__aexit__(HandlerBroke, HandlerBroke(LEFT_OPEN), None)
        return True


class Completion(AbstractAsyncContextManager[Transaction]):
    """The block of `TaskContext.completion`."""

    def __init__(self, of: Completing, begin: Callable[[], AbstractAsyncContextManager[Transaction]]) -> None:
        self._of, self._begin = of, begin
        self._turn = asyncio.Lock()  # a task of the handler's may still be entering, or leaving

    async def __aenter__(self) -> Transaction:
        self._of.begin(self)
        async with self._turn:
            try:
                self._inner = self._begin()
                return await self._inner.__aenter__()
            except BaseException as error:
                self._of.end(error)
                raise

    async def __aexit__(self, *raised: Any) -> None:
        await _to_its_end(self._leave(*raised))

    async def _leave(self, *raised: Any) -> None:
        async with self._turn:
            if self._of.block is not self:  # it was rolled back
                return
            try:
                await self._inner.__aexit__(*raised)
            except BaseException as error:
                self._of.end(error, own=raised[1])
                raise
            self._of.end(raised[1], own=raised[1])


async def _to_its_end(step: Coroutine[Any, Any, None]) -> None:
    """Wait for the step, which is not cancelled with this: what came of a commit must be known. CancelledError comes
    after it."""
    stepping, cancelled = asyncio.ensure_future(step), None
    while not stepping.done():
        try:
            await asyncio.wait([stepping])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from stepping.exception()
    stepping.result()
