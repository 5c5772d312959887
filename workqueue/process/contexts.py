"""What runs in a context of its own (https://docs.python.org/3/library/contextvars.html), and in its caller's task.

A task has one context for its whole life, which all that is made in it inherits. What is set there for one thing that
it does is still set for the next one, and is kept by what outlives both.
"""

from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Within(Generator[Any, Any, R]):
    """Awaited, it runs the coroutine step by step in this context. A task for that would cost three times as much, and
    be the one that a cancellation or a time limit is for."""

    def __init__(self, context: Context, coroutine: Coroutine[Any, Any, R]) -> None:
        self._run, self._coroutine = context.run, coroutine

    def __await__(self) -> Generator[Any, Any, R]:
        return self

    def __next__(self) -> Any:
        return self._run(self._coroutine.send, None)

    def send(self, value: Any) -> Any:
        return self._run(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._run(self._coroutine.throw, *error)

    def close(self) -> None:
        self._run(self._coroutine.close)

    # As of the coroutine itself, for those who follow what a task awaits.
    @property
    def cr_frame(self) -> Any:
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_await(self) -> Any:
        return getattr(self._coroutine, "cr_await", None)


def apart(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Within[R]]:
    """The function, each call in a copy of its caller's context: what is set there ends with it."""

    def call(*args: P.args, **kwargs: P.kwargs) -> Within[R]:
        return Within(copy_context(), function(*args, **kwargs))

    return call
