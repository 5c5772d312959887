"""The transaction that a handler gets to write its effect in, the same on every store."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

Values = Sequence[Any] | Mapping[str, Any]

STATEMENT_LIMIT = 80  # characters of a statement in an error
ENDS = ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT")


@dataclass(frozen=True)
class Rows:
    """What a statement gave, and the number of rows that it gave or changed (-1 where the store does not say)."""

    rows: list[tuple[Any, ...]]
    rowcount: int


class Transaction:
    """Runs statements, one after the other, in the transaction that completes the task. The SQL, and the marks for its
    values (`?` or `:name` on SQLite, `%s` or `%(name)s` on PostgreSQL), are the store's own."""

    def __init__(self, run: Callable[[str, Values], Awaitable[Rows]]) -> None:
        self._run, self._one_at_a_time = run, asyncio.Lock()
        self._made, self._ended = 0, False
        self._open: dict[int, tuple[str, Coroutine[Any, Any, Rows]]] = {}

    # Not an `async def`, which could not tell that it was never awaited; its type is that of one, so that mypy tells.
    def execute(self, statement: str, values: Values = ()) -> Coroutine[Any, Any, Rows]:
        """Run the statement. To be awaited before the block ends; raises the store's own errors."""
        self._made += 1
        coroutine = self._execute(self._made, statement, values)
        self._open[self._made] = (statement, coroutine)
        return coroutine

    async def _execute(self, number: int, statement: str, values: Values) -> Rows:
        try:
            async with self._one_at_a_time:
                if self._ended:
                    raise RuntimeError(f"the block has ended before this statement: {_short(statement)}")
                words = statement.upper().replace(";", " ").split()
                if words and words[0] in ENDS and "TO" not in words:  # ROLLBACK TO a savepoint stays inside
                    raise RuntimeError(f"the block begins and ends the transaction itself: {_short(statement)}")
                return await self._run(statement, values)
        finally:
            self._open.pop(number, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """No statement may follow. Raises RuntimeError for one that was made and not awaited to its end."""
        self._ended = True
        for _statement, coroutine in self._open.values():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
        for statement, _ in self._open.values():
            if kind is None:
                raise RuntimeError(f"write `await db.execute(...)`; this was not awaited: {_short(statement)}")


def _short(statement: str) -> str:
    return " ".join(statement.split())[:STATEMENT_LIMIT]
