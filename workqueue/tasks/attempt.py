"""Runs one handler to its outcome.

| what the handler does                                     | what comes out                          |
|-----------------------------------------------------------|-----------------------------------------|
| returns a model, or None                                  | that                                    |
| returns anything else                                     | GiveUp: it can't become right           |
| raises an Exception                                       | that                                    |
| RetryAfter whose delay is no number of seconds            | HandlerBroke                            |
| raises any other: SystemExit, KeyboardInterrupt, a group, |                                         |
|   GeneratorExit, CancelledError that nobody asked for     | HandlerBroke, caused by it              |
| ends after its time limit, a cut-off, a lost claim        | TimeoutError, CutOff, ClaimLost         |
| is cancelled because the worker ends                      | CancelledError, the one that passes     |
"""

import asyncio
import inspect
import math
import os
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import Any

from pydantic import BaseModel

from workqueue import children
from workqueue.errors import GiveUp, HandlerBroke, RetryAfter
from workqueue.ledger import ClaimLost
from workqueue.tasks.context import Run
from workqueue.tasks.policy import describe
from workqueue.tasks.scope import CutOff, Holder, Scope
from workqueue.tasks.threads import in_thread

Handler = Callable[[Any, Run], Awaitable[BaseModel | None] | BaseModel | None]


class Attempts:
    """Runs the attempts of one handler. `running` are those that have not ended."""

    def __init__(self, handler: Handler, holder: Holder, *, tell_begin: bool = False) -> None:
        self._handler, self._tell_begin = handler, tell_begin
        self._on_loop = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004  # an object's own, to look at
        )
        self.holder = holder
        self.running: set[Scope] = set()

    async def run(self, task: Any, run: Run, fence: int, limit_s: float | None) -> BaseModel | None:
        """Returns the handler's result or raises an Exception, whatever it does; CancelledError if the worker ends."""
        scope = Scope(self.holder, task, fence, limit_s)
        self.running.add(scope)
        if self._tell_begin:
            self.holder.report(f"{self.holder.worker}  running  {scope.told}  attempt {run.attempt}")
        result: Any
        try:
            with scope:
                if self._on_loop:
                    result = await self._handler(task, run)  # type: ignore[misc]
                else:
                    result = await self._call_in_thread(task, run)
                if children.forked:  # the handler forked, and this is the child that came back from it
                    os._exit(0)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not scope.is_running():
                raise  # nobody runs this any more: it is thrown away with its event loop
            if scope.cancelled_by_others and await self._cancelled(scope):
                raise asyncio.CancelledError from error
            outcome = _outcome(error, scope, run)
            if outcome is error:
                raise
            raise outcome from error
        finally:
            self.running.discard(scope)
        if scope.cancelled_by_others:
            await self._cancelled(scope)
        return None if result is None else as_result(result)

    async def _call_in_thread(self, task: Any, run: Run) -> Any:
        """A plain function runs in a thread. What it returns may be a coroutine: a decorated function's."""
        answer: Any = await in_thread(self._handler, task, run)
        return await answer if inspect.isawaitable(answer) else answer

    async def _cancelled(self, scope: Scope) -> bool:
        """Whether it was the worker that cancelled, since it ends; else the cancellations are the handler's own."""
        if not self.holder.ending:
            await scope.forget_cancellations()
        return self.holder.ending

    def end(self) -> None:
        """Stop all that run, and from now on let them be cancelled from outside: the worker ends."""
        self.holder.ending = True
        self.cut_off()

    def cut_off(self) -> None:
        """Stop all that run."""
        for scope in self.running:
            scope.stop(CutOff())


def as_result(answer: Any) -> BaseModel:
    """Raises GiveUp for what is no result model."""
    if isinstance(answer, BaseModel):
        return answer
    raise GiveUp(f"the handler's result is of type {type(answer).__name__}; it must be a result model, or None")


def _outcome(error: BaseException, scope: Scope, run: Run) -> BaseException:
    """The exception to go on with, for what came out of a handler."""
    if error is scope.why:
        return error
    if run._lost and scope.why is None:
        return ClaimLost()
    match error:
        case RetryAfter() if not _is_delay(getattr(error, "delay_s", None)):
            return HandlerBroke(f"RetryAfter with a delay_s that is no number of seconds: {describe(error)}")
        case CutOff() | ClaimLost():
            return HandlerBroke(f"the handler raised {type(error).__name__}")
        case Exception():
            return error
        case _:
            return HandlerBroke(describe(error))


def _is_delay(delay_s: object) -> bool:
    return isinstance(delay_s, Real) and 0 <= float(delay_s) < math.inf
