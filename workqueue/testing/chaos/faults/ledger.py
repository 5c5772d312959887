"""Faults of the ledger: locked, silent, read-only, or away while a task is completed."""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql

from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.faults.broker import stall
from workqueue.testing.chaos.house import House
from workqueue.testing.chaos.load import make_task, nap
from workqueue.testing.chaos.plan import PROVOKED, Fault
from workqueue.testing.chaos.producing import Producer
from workqueue.testing.chaos.workers import Workers
from workqueue.testing.processes import Note, until


class Ledger:
    def __init__(
        self, house: House, workers: Workers, producers: Mapping[str, Producer], book: Book, rng: random.Random
    ) -> None:
        self._house, self._workers, self._producers, self._book, self._rng = house, workers, producers, book, rng
        self.by_kind = {
            "ledger out of reach": self._lock,
            "ledger silent": self._silence,
            "ledger read-only": self._make_read_only,
            PROVOKED: self._kill_in_honest_window,
        }

    async def _lock(self, fault: Fault) -> bool:
        server = self._house.postgres
        if server is None:
            async with self._held():
                await asyncio.sleep(fault.seconds)
            return True
        async with self._house.ledger_lock, self._book.unusable():
            await asyncio.to_thread(server.kill if fault.worker == 1 else server.stop)
            await asyncio.sleep(fault.seconds / 2)
            await asyncio.to_thread(server.start)
        return True

    async def _silence(self, fault: Fault) -> bool:
        assert self._house.ledger_proxy is not None
        async with self._house.ledger_lock:
            await stall(self._house.ledger_proxy, fault.seconds, self._book)
        return True

    async def _make_read_only(self, fault: Fault) -> bool:
        """As after a failover to a server that is still a standby: every session is, also those that are open."""
        async with self._house.ledger_lock, self._book.unusable():
            try:
                await asyncio.to_thread(self._alter, sql.SQL("SET default_transaction_read_only = on"))
                await asyncio.sleep(fault.seconds)
            finally:
                await asyncio.to_thread(self._alter, sql.SQL("RESET default_transaction_read_only"))
        return True

    def _alter(self, what: sql.SQL) -> None:
        assert self._house.postgres is not None
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self._house.postgres.url, autocommit=True, options=options) as server:
            server.execute(sql.SQL("ALTER SYSTEM ") + what)
            server.execute("SELECT pg_reload_conf()")

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """No worker can claim or complete anything meanwhile."""
        server = self._house.postgres
        async with self._house.ledger_lock, self._book.unusable():
            if server is not None:  # not locked: a server carries out what waits, though its client be dead
                await asyncio.to_thread(server.stop)
                try:
                    yield
                finally:
                    await asyncio.to_thread(server.start)
                return
            path = self._house.settings.folder / "ledger.db"
            file = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            try:
                await asyncio.to_thread(file.execute, "BEGIN EXCLUSIVE")
                yield
            finally:
                file.close()

    async def _kill_in_honest_window(self, fault: Fault) -> bool:
        """Kill a worker after the end of its handler and before the record of it, which the locked ledger holds up."""
        task = make_task(self._rng, nap(1.0), fault.operation)
        self._producers[fault.operation].more.append(task)

        def noted(word: str) -> Note | None:
            return next((n for n in self._house.site.record() if (n.word, n.id) == (word, task.id)), None)

        await until(lambda: noted("start"), "the task has begun")
        async with self._held():
            end = await until(lambda: noted("end"), "its handler has ended")
            life, worker = next(one for one in self._workers.running.values() if one[0].pid == end.pid)
            worker.process.kill()
            life.killed = time.time()
            await until(lambda: life.ended, "it is dead")
        return True
