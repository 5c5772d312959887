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
| raises after it was called off                            | Cancellation                            |
| is cancelled because the worker ends                      | CancelledError, the one that passes     |
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pydantic import BaseModel

from workqueue.errors import HandlerInvalid, LedgerLost, escaped
from workqueue.ledger import ClaimLost, LedgerBusy
from workqueue.process import children
from workqueue.tasks.context import LEFT_OPEN, R_co, TaskContext
from workqueue.tasks.events import Started
from workqueue.tasks.received import Received, T
from workqueue.tasks.scope import Cancellation, CutOff, Holder, Scope
from workqueue.tasks.stack import describe
from workqueue.tasks.threads import in_thread
from workqueue.verdicts import GiveUp, HandlerBroke, RetryAfter, Verdict, delay_of

NAME_LIMIT = 200  # characters of a handler that an error quotes

Handler = Callable[[T, TaskContext[R_co]], Awaitable[BaseModel | None] | BaseModel | None]


def check_handler(handler: object) -> None:
    """Raises HandlerInvalid for what could do no task: each would fail, or become a dead letter."""
    inner = handler
    while isinstance(inner, partial):
        inner = inner.func
    name = escaped(getattr(inner, "__qualname__", None) or repr(inner))[:NAME_LIMIT]
    if not callable(inner):
        raise HandlerInvalid(name, f"is of type {type(inner).__name__}, which can't be called")
    if inspect.isclass(inner):
        raise HandlerInvalid(name, "is a class: each call would only make an object")
    for body in (inner, getattr(inner, "__call__", None)):  # noqa: B004  # an object's own, to look at
        if inspect.isasyncgenfunction(body) or inspect.isgeneratorfunction(body):
            raise HandlerInvalid(name, "is a generator function, because of its yield: a call would run none of it")
    try:
        # Its own, not the one of a function that it wraps: a decorator may give that more, or less.
        signature = inspect.signature(handler, follow_wrapped=False)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # some that are written in C have none
        return
    try:
        signature.bind(object(), object())
    except TypeError as error:
        raise HandlerInvalid(f"{name}{signature}", f"can't be called with two arguments ({error})") from error


class Attempts:
    """Runs the attempts of one handler. `running` are those that have not ended."""

    def __init__(self, handler: Handler[Any, Any], holder: Holder, *, tell_begin: bool = False) -> None:
        self._handler, self._tell_begin = handler, tell_begin
        self._on_loop = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004  # an object's own, to look at
        )
        self.holder = holder
        self.running: set[Scope] = set()

    async def run(
        self, received: Received[Any], context: TaskContext[Any], fence: int, limit_s: float | None
    ) -> BaseModel | None:
        """Returns the handler's result or raises an Exception, whatever it does; CancelledError if the worker ends."""
        task, scope = received.task, Scope(self.holder, received, fence, limit_s, context.attempt, context.so_far)
        result: Any
        try:
            with scope:
                self.running.add(scope)
                if self._tell_begin:
                    scope.tell(Started(context.attempt))
                try:
                    if self._on_loop:
                        result = await self._handler(task, context)  # type: ignore[misc]
                    else:
                        result = await self._call_in_thread(task, context, scope)
                finally:
                    was_open = context.completing is not None and await context.completing.roll_back()
                if was_open:
                    raise HandlerBroke(LEFT_OPEN)
                if children.forked:  # the handler forked, and this is the child that came back from it
                    children.end(None)
        except BaseException as error:
            if children.forked:
                children.end(error)
            if isinstance(error, GeneratorExit) and not scope.is_running():
                raise  # nobody runs this any more: it is thrown away with its event loop
            if scope.cancelled_by_others and await self._cancelled(scope):
                raise asyncio.CancelledError from error
            outcome = _outcome(error, scope, context)
            if outcome is error:
                raise
            raise outcome from error
        finally:
            self.running.discard(scope)
        if scope.cancelled_by_others:
            await self._cancelled(scope)
        return None if result is None else as_result(result)

    async def _call_in_thread(self, task: Any, context: TaskContext[Any], scope: Scope) -> Any:
        """A plain function runs in a thread. What it returns may be a coroutine: a decorated function's."""
        answer: Any = await in_thread(self._handler, task, context)
        if inspect.isawaitable(answer):
            return await answer
        scope.is_over = True
        return answer

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


def _outcome(error: BaseException, scope: Scope, context: TaskContext[Any]) -> BaseException:
    """The exception to go on with, for what came out of a handler."""
    lost = None if context.completing is None else context.completing.lost
    if lost is not None:  # also where it was stopped: the task may be done
        return lost
    if error is scope.why:
        return error
    match error:
        case RetryAfter() if delay_of(error) is None:
            return HandlerBroke(f"RetryAfter with a delay_s that is no number of seconds: {describe(error)}")
        case CutOff() | ClaimLost() | Cancellation() | LedgerBusy() | LedgerLost():  # such as of a client of its own
            return HandlerBroke(f"the handler raised {describe(error)}")
        case Exception() if isinstance(scope.why, TimeoutError) and not isinstance(error, Verdict):
            return HandlerBroke(f"{scope.why}, and then the handler raised {describe(error)}")
        case Exception():
            return error
        case _:
            return HandlerBroke(describe(error))
