"""Connections to a PostgreSQL server that may be far away, restart, fall silent, or stand behind PgBouncer."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection, errors
from psycopg.conninfo import conninfo_to_dict

from workqueue.errors import LedgerUnreachable
from workqueue.ledger import LedgerBusy
from workqueue.settings import hide_password

ANSWER_S = 10.0  # a server that takes longer is out of reach; the worker stops taking tasks until it is back
OPTIONS = {
    # What LEDGER_URL says itself goes first. No start-up `options`: PgBouncer refuses them.
    "application_name": "workqueue",
    "connect_timeout": 3,  # of each address; a new try is answered sooner than the next packet of an old one
    "tcp_user_timeout": 5000,  # ms; without it the kernel tries for a quarter of an hour, at growing intervals
    "keepalives": 1,
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
WORDS: tuple[tuple[type[psycopg.Error], str], ...] = (
    (errors.ReadOnlySqlTransaction, "the server is read-only, as a standby is"),
    (errors.UndefinedTable, "its table is gone; a worker that starts anew makes it again"),
    (errors.UndefinedColumn, "its table is another version's; a worker of this version that starts anew changes it"),
    (errors.InsufficientPrivilege, "its role lacks a privilege, or the owner of the tables must start a worker first"),
    (errors.TooManyConnections, "the server has no connection left"),
    (errors.DiskFull, f"the server's disk {LedgerUnreachable.DISK_FULL}"),
)


class Server:
    """The server of a URL. Raises LedgerUnreachable for one that can't be parsed."""

    def __init__(self, url: str) -> None:
        self.place = re.sub(r"(password=)[^&\s]*", r"\1***", hide_password(url))
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error as error:  # whose text may hold a piece of the password
            raise LedgerUnreachable(self.place, "it can't be parsed; %-encode what is special in it") from error
        self._password = str(given.get("password") or "")
        self._options: dict[str, Any] = {**OPTIONS, **given}

    async def connect(self) -> AsyncConnection:
        return await AsyncConnection.connect(**self._options, autocommit=True, prepare_threshold=None)

    def connect_blocking(self) -> Connection:
        return psycopg.connect(**self._options, autocommit=True, prepare_threshold=None)

    def words(self, error: BaseException) -> str:
        """What went wrong, in one line without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        if self._password:
            text = text.replace(self._password, "***")
        told = next((words for kind, words in WORDS if isinstance(error, kind)), None)
        return text if told is None else f"{told}: {text}"

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Whatever the server answers but what it was asked for is LedgerBusy: nearly all of it can pass, and the
        worker says what it waits for."""
        try:
            yield
        except (psycopg.Error, OSError) as error:
            raise LedgerBusy(self.words(error)) from error


@asynccontextmanager
async def answering(connection: AsyncConnection) -> AsyncIterator[None]:
    """What the block asks the connection fails with psycopg.OperationalError after ANSWER_S, without a word to the
    server, which may not hear it."""
    timer = asyncio.get_running_loop().call_later(ANSWER_S, cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def cut(connection: AsyncConnection) -> None:
    """Let whoever waits for an answer see the end of the connection. Unlike a cancellation it asks nobody."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
