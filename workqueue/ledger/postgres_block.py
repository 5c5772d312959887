"""Transactions of handlers on a PostgreSQL ledger, several at once, each on a connection of its own."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from workqueue.ledger import ClaimLost, LedgerBusy, Rows, Transaction
from workqueue.ledger.postgres_server import answering
from workqueue.ledger.transaction import Values

AT_ONCE = 4
BEGIN_S = 60.0  # how long a block waits for the server; its claim is renewed meanwhile
BEGIN_AGAIN_S = 0.5
SILENT_S = 1.0
# The server notices within half a minute that this host is gone, and frees the task's row; by itself after hours.
BEGIN = """
BEGIN; SET LOCAL tcp_keepalives_idle = 10; SET LOCAL tcp_keepalives_interval = 5; SET LOCAL tcp_keepalives_count = 3;
SET LOCAL tcp_user_timeout = 25000
"""

log = logging.getLogger(__name__)


class Blocks:
    """Connections are made when needed, and kept."""

    def __init__(self, connect: Callable[[], Awaitable[AsyncConnection]]) -> None:
        self._connect = connect
        self._free: list[AsyncConnection] = []
        self._places = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def begin(self, change: str, values: Sequence[Any]) -> AsyncIterator[Transaction]:
        """A transaction that begins with this change. Raises ClaimLost if it changes nothing, and LedgerBusy, which it
        is too that the connection ends within the block: that is committed as a whole then, or not at all."""
        async with self._places:
            connection = await self._begin(change, values)
            try:
                with Transaction(lambda statement, given: _run(connection, statement, given)) as transaction:
                    yield transaction
                await _commit(connection)
            except Exception as error:
                if connection.closed:  # whatever came of that in the block
                    raise LedgerBusy(f"lost in a completion: {' '.join(str(error).split())}") from error
                raise
            finally:
                await self._keep(connection)

    async def close(self) -> None:
        while self._free:
            await self._free.pop().close()

    async def _begin(self, change: str, values: Sequence[Any]) -> AsyncConnection:
        began_s, told = time.monotonic(), False
        while True:
            connection = None
            try:
                connection = self._free.pop() if self._free else await self._connect()
                async with answering(connection):
                    await connection.execute(BEGIN)
                    # First, and with its lock: a claim that was lost must not begin an effect.
                    changed = await connection.execute(change, values)
                if changed.rowcount == 1:
                    return connection
            except (psycopg.Error, OSError) as error:
                if connection is not None:
                    await connection.close()
                waited_s = time.monotonic() - began_s
                if waited_s > BEGIN_S:
                    raise LedgerBusy(str(error)) from error
                if waited_s > SILENT_S and not told:
                    log.warning("a completion waits for the ledger: %s", " ".join(str(error).split()))
                    told = True
                if not self._free:
                    await asyncio.sleep(BEGIN_AGAIN_S)
                continue
            except BaseException:
                if connection is not None:
                    await connection.close()
                raise
            await self._keep(connection)
            raise ClaimLost

    async def _keep(self, connection: AsyncConnection) -> None:
        """For the next block, with nothing left in it; closed if that can't be had."""
        try:
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                async with answering(connection):
                    await connection.execute("ROLLBACK")
            self._free.append(connection)
        except psycopg.Error:
            await connection.close()
        except BaseException:
            await connection.close()
            raise


async def _commit(connection: AsyncConnection) -> None:
    """Raises InFailedSqlTransaction where a statement has failed and the handler went on. PostgreSQL rolls back then,
    and to it that is no error."""
    if connection.info.transaction_status is TransactionStatus.IDLE:
        raise RuntimeError("the block begins and ends the transaction itself: one of its statements has ended it")
    async with answering(connection):
        ended = await connection.execute("COMMIT")
    if ended.statusmessage != "COMMIT":
        raise psycopg.errors.InFailedSqlTransaction(
            "a statement of the completion failed, so nothing of it can be committed: let the error end the block, or "
            "put a SAVEPOINT before the statement and ROLLBACK TO it"
        )


async def _run(connection: AsyncConnection, statement: str, values: Values) -> Rows:
    cursor = await connection.execute(statement, values or None)
    return Rows([] if cursor.description is None else await cursor.fetchall(), cursor.rowcount)
