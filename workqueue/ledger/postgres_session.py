"""One connection to a PostgreSQL server, with at most one statement under way.

It calls libpq through psycopg's wrapper: a cursor for each statement takes three times the processor time.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from workqueue.ledger import postgres_server

# Executions after which a statement is prepared. Only where the server itself answers: PgBouncer, which shows a process
# number of its own, may give the next statement to another session, where the same name means another statement.
PREPARE_AFTER = 5

Values = Sequence[Any] | Mapping[str, Any]
Answer = tuple[int, list[Any]]
"""How many rows a statement changed or gave, and those that it gave."""
Ended = Callable[["Session", asyncio.Future[Answer] | None, Answer | Exception], None]


def settle(answer: "asyncio.Future[Any]", outcome: Any) -> None:
    """Give the outcome, which is raised if it is an exception, to the one who asked, if anybody waits still."""
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


MARK = re.compile(r"%(?:\((\w+)\))?s")


class Session:
    """Made from an open connection in autocommit mode, which nobody else uses.

    `ended(session, future, outcome)` is called when the server has answered, or the connection has ended: an idle one
    without a future.
    """

    def __init__(self, connection: AsyncConnection, prepares: bool, ended: Ended) -> None:
        self._connection, self.prepares, self._ended = connection, prepares, ended
        self._libpq, self._types = connection.pgconn, Transformer(connection)
        self._loop = asyncio.get_running_loop()
        self._socket = self._libpq.socket
        self._loop.add_reader(self._socket, self._read)
        self._is_writing = False
        self._answer: asyncio.Future[Answer] | None = None
        self._result: PGresult | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._once_prepared: Callable[[], None] | None = None
        self._numbers = count(1)
        # By statement and types of its values: how often it was executed, or the name under which it is prepared.
        self._known: dict[tuple[bytes, tuple[int, ...]], int | bytes] = {}

    def ask(self, statement: str, values: Values, answer: asyncio.Future[Answer]) -> None:
        """Send a statement. Cancelling the future ends nothing: the session is busy until the server has answered.

        Raises what psycopg does for a value that it can't send; the session is free then.
        """
        query, names = numbered(statement)
        given = [values[name] for name in names] if isinstance(values, Mapping) else values
        params = self._types.dump_sequence(given, [format_of(value) for value in given])
        types, formats = self._types.types or (), self._types.formats
        known = self._known.get((query, types), 0)
        self._answer = answer
        self._timer = self._loop.call_later(postgres_server.ANSWER_S, self._late)
        try:
            if isinstance(known, bytes):
                self._libpq.send_query_prepared(known, params, formats)
            elif known < PREPARE_AFTER or not self.prepares:
                self._known[query, types] = known + 1
                self._libpq.send_query_params(query, params, types, formats)
            else:
                name = b"workqueue_%d" % next(self._numbers)

                def execute() -> None:
                    self._known[query, types] = name
                    self._libpq.send_query_prepared(name, params, formats)

                self._once_prepared = execute
                self._libpq.send_prepare(name, query, types)
            self._flush()
        except psycopg.Error as error:
            self._end(error)

    def close(self) -> asyncio.Future[Answer] | None:
        """End the connection. The future of the statement that was under way."""
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._libpq.finish()
        return answer

    def _read(self) -> None:
        try:
            self._libpq.consume_input()
            if self._is_writing:
                self._flush()
            while self._answer is not None and not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is not None:
                    self._result = result
                elif self._once_prepared is not None and is_good(self._result):
                    execute, self._once_prepared = self._once_prepared, None
                    execute()
                    self._flush()
                else:
                    self._answered()
        except psycopg.Error as error:
            self._end(error)

    def _flush(self) -> None:
        """What the socket does not take is sent as it takes more, and input is read meanwhile."""
        writing = self._libpq.flush() != 0
        if writing and not self._is_writing:
            self._loop.add_writer(self._socket, self._write)
        elif self._is_writing and not writing:
            self._loop.remove_writer(self._socket)
        self._is_writing = writing

    def _write(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._end(error)

    def _answered(self) -> None:
        answer, self._answer = self._answer, None
        result, self._result, self._once_prepared = self._result, None, None
        if self._timer is not None:
            self._timer.cancel()
        outcome: Answer | Exception
        try:
            outcome = self._outcome(result)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for the one who asked
            outcome = error
        self._ended(self, answer, outcome)

    def _outcome(self, result: PGresult | None) -> Answer:
        if result is None or not is_good(result):
            raise errors.InternalError("no answer") if result is None else errors.error_from_result(result)
        if result.status != ExecStatus.TUPLES_OK:
            return result.command_tuples or 0, []
        self._types.set_pgresult(result)
        return result.ntuples, self._types.load_rows(0, result.ntuples, tuple)

    def _late(self) -> None:
        self._end(psycopg.OperationalError(f"no answer for {postgres_server.ANSWER_S:g} s"))

    def _end(self, error: psycopg.Error) -> None:
        self._ended(self, self.close(), error)


def format_of(value: Any) -> PyFormat:
    """As text, psycopg looks at each element of a list with several regular expressions: fifteen times the time. In
    binary, the list has to tell its type."""
    is_array = type(value) is list and any(element is not None for element in value)
    return PyFormat.BINARY if is_array else PyFormat.AUTO


def is_good(result: PGresult | None) -> bool:
    return result is not None and result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


@cache
def numbered(statement: str) -> tuple[bytes, list[str]]:
    """A statement with the placeholders of libpq, and the names of its values in that order where they have names."""
    names: list[str] = []

    def number(mark: re.Match[str]) -> str:
        name = mark[1] or str(len(names))
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    query = MARK.sub(number, statement).encode()
    return query, names
