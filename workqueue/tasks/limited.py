"""Questions to the ledger that are given up, all at once, where there is no more time for them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from workqueue.ledger import LedgerBusy
from workqueue.tasks.asking import Asking

END_S = 1.0  # for the answer to a question that is to be given up
UNANSWERED = "no answer, and it is given up"

A = TypeVar("A")


class Limited:
    """Asks as `Asking` does until it `is_over`. No question has a timer of its own: nearly all are answered at once."""

    def __init__(self, ask: Asking) -> None:
        self._ask, self._loop = ask, asyncio.get_running_loop()
        self._open: set[asyncio.Task[Any]] = set()
        self.is_over = False

    def end(self, within_s: float, when: Callable[[], bool] = lambda: True) -> None:
        """Give up after this time what is open then, and what is asked later after END_S, if `when` is true by then."""
        self._loop.call_later(within_s, self._give_up_if, when)

    def _give_up_if(self, when: Callable[[], bool]) -> None:
        if when():
            self.give_up()

    def give_up(self) -> None:
        self.is_over = True
        for task in self._open:
            task.cancel()
        self._open.clear()

    async def __call__(self, call: Callable[[], Coroutine[Any, Any, A]], until: Callable[[], bool] | None = None) -> A:
        """As `Asking`. Raises LedgerBusy where it is given up."""
        if self.is_over:
            try:
                async with asyncio.timeout(END_S):
                    return await self._ask(call, until)
            except TimeoutError as error:
                raise LedgerBusy(UNANSWERED) from error
        task = asyncio.current_task(self._loop)
        assert task is not None
        before = task.cancelling()
        self._open.add(task)
        try:
            return await self._ask(call, until)
        except asyncio.CancelledError:
            if task in self._open or task.uncancel() > before:  # by others, too
                raise
            raise LedgerBusy(UNANSWERED) from None
        finally:
            self._open.discard(task)
