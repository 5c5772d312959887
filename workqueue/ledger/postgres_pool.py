"""The connections of a PostgreSQL ledger. Each has one statement under way: none waits behind another one's lock.

The first is made when it is needed. More follow, one at a time up to AT_MOST, where all are busy with statements that
are urgent or take long, and an urgent one waits. They are kept.

A statement that fails takes all connections with it, those that are busy once they are free: a server that is gone, or
has become a standby, fails on each of them. Statements that wait for a connection fail with it, as they would one after
the other. A failure by a lock or a value is the statement's own, and ends nothing else. A statement that got no answer
may have been carried out; all may be repeated.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context

import psycopg
from psycopg import AsyncConnection, errors

from workqueue.ledger import LedgerBusy, postgres_server
from workqueue.ledger.postgres_session import Answer, Session, Values, settle

AT_MOST = 8
Connect = Callable[[], Awaitable[AsyncConnection]]
LOCKED = (errors.LockNotAvailable, errors.QueryCanceled)  # one lock was waited for for long, or one after the other
ITS_OWN = (*LOCKED, psycopg.DataError)  # failures that say nothing of the server
CLOSED = "it was closed"
LONG_S = 0.1  # more than it takes where nothing is locked
MORE_AGAIN_S = 5.0  # after a connection that could not be made, while there are others


class Locked(LedgerBusy):
    """Another transaction has the row, and does not end."""

    of_task = True


class Asked:
    """A statement and the future of its answer."""

    __slots__ = ("answer", "is_urgent", "statement", "timer", "values")

    def __init__(self, statement: str, values: Values, is_urgent: bool, answer: asyncio.Future[Answer]) -> None:
        self.statement, self.values, self.is_urgent, self.answer = statement, values, is_urgent, answer
        self.timer: asyncio.TimerHandle | None = None

    def late(self) -> None:
        settle(self.answer, LedgerBusy(f"no answer for {postgres_server.ANSWER_S:g} s, to others either"))


class Pool:
    """`connect` makes a connection, with a `prepare_threshold` where statements may be prepared. `words` says what is
    wrong in one line."""

    def __init__(self, connect: Connect, words: Callable[[BaseException], str]) -> None:
        self._connect, self._words = connect, words
        self._sessions: dict[Session, int] = {}  # and how many failures there had been when they were made
        self._failures = 0
        self._free: list[Session] = []
        self._at_work: dict[Session, Asked] = {}
        self._waiting: deque[Asked] = deque()
        self._connecting: asyncio.Task[None] | None = None
        self._more_at_s = 0.0
        self._is_closed = False

    async def execute(self, statement: str, values: Values, *, is_urgent: bool = True) -> Answer:
        """One that is not urgent is no reason for another connection. Raises LedgerBusy, Locked, LedgerLost."""
        return await self.ask(statement, values, is_urgent=is_urgent)

    def ask(self, statement: str, values: Values, *, is_urgent: bool = True) -> asyncio.Future[Answer]:
        """The same, and the future of the answer."""
        loop = asyncio.get_running_loop()
        asked = Asked(statement, values, is_urgent, loop.create_future())
        if self._is_closed:
            settle(asked.answer, LedgerBusy(CLOSED))
        elif self._free:
            self._start(self._free.pop(), asked)
        else:
            asked.timer = loop.call_later(postgres_server.ANSWER_S, asked.late)
            self._waiting.append(asked)
            self._connect_if_short()
        return asked.answer

    async def close(self) -> None:
        """For good: who asks again after that gets LedgerBusy."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        for session in self._sessions:
            if (answer := session.close()) is not None:
                settle(answer, LedgerBusy(CLOSED))
        self._sessions, self._free, self._at_work = {}, [], {}
        self._fail_waiting(lambda: LedgerBusy(CLOSED))

    def _start(self, session: Session, asked: Asked) -> None:
        self._at_work[session] = asked
        if not asked.is_urgent:
            asyncio.get_running_loop().call_later(LONG_S, self._takes_long, session, asked)
        try:
            session.ask(asked.statement, asked.values, asked.answer)
        except Exception as error:  # noqa: BLE001  # a value that can't be sent; whatever it is, it is the caller's
            settle(asked.answer, self._busy(error) if isinstance(error, psycopg.Error) else error)
            self._release(session)
        self._connect_if_short()

    def _takes_long(self, session: Session, asked: Asked) -> None:
        if self._at_work.get(session) is asked:
            asked.is_urgent = True  # to those who would wait behind it
            self._connect_if_short()

    def _release(self, session: Session) -> None:
        """It is free: for whoever waits longest, if there were no failures since it was made."""
        self._at_work.pop(session, None)
        if self._sessions[session] != self._failures:
            self._drop(session)
            return self._connect_if_short()
        while self._waiting:
            asked = self._waiting.popleft()
            if asked.timer is not None:
                asked.timer.cancel()
            if not asked.answer.done():
                return self._start(session, asked)
        self._free.append(session)

    def _ended(self, session: Session, answer: asyncio.Future[Answer] | None, outcome: Answer | Exception) -> None:
        if isinstance(outcome, psycopg.Error) and not isinstance(outcome, ITS_OWN):
            self._lost(session, answer is not None, outcome)
        else:
            self._release(session)
        if answer is None:
            return
        if isinstance(outcome, psycopg.Error):
            locked = isinstance(outcome, LOCKED)
            settle(answer, self._busy(outcome, Locked if locked else LedgerBusy))
        else:
            settle(answer, outcome)

    def _lost(self, session: Session, was_busy: bool, error: psycopg.Error) -> None:
        is_news = was_busy and self._sessions[session] == self._failures
        self._drop(session)
        if is_news:
            self._failures += 1
            for idle in list(self._free):
                self._drop(idle)
            self._fail_waiting(lambda: self._busy(error))
        self._connect_if_short()

    def _drop(self, session: Session) -> None:
        session.close()
        del self._sessions[session]
        self._at_work.pop(session, None)
        with suppress(ValueError):
            self._free.remove(session)

    def _connect_if_short(self) -> None:
        if self._connecting is not None or not self._waiting or self._is_closed:
            return
        if not self._sessions or (
            len(self._at_work) == len(self._sessions) < AT_MOST
            and all(asked.is_urgent for asked in self._at_work.values())
            and self._more_at_s <= time.monotonic()
            and any(asked.is_urgent for asked in self._waiting)
        ):
            # Not in the context of the task that happens to ask.
            self._connecting = asyncio.get_running_loop().create_task(self._add(), context=Context())

    async def _add(self) -> None:
        failures = self._failures
        try:
            connection = await self._connect()
            session = Session(connection, connection.prepare_threshold is not None, self._ended)
        except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits
            return self._not_connected(error)
        finally:
            self._connecting = None
        self._sessions[session] = failures
        self._release(session)
        self._connect_if_short()

    def _not_connected(self, error: Exception) -> None:
        if not isinstance(error, psycopg.Error | OSError):
            self._fail_waiting(lambda: error)
        elif self._sessions:  # the server may have none left for us
            self._more_at_s = time.monotonic() + MORE_AGAIN_S
        else:
            self._fail_waiting(lambda: self._busy(error))

    def _fail_waiting(self, error: Callable[[], Exception]) -> None:
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            if asked.timer is not None:
                asked.timer.cancel()
            settle(asked.answer, error())

    def _busy(self, error: Exception, kind: type[LedgerBusy] = LedgerBusy) -> LedgerBusy:
        busy = kind(self._words(error))
        busy.__cause__ = error
        return busy
