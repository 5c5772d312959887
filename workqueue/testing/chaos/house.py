"""What a run stands on: a broker and a ledger of its own, a proxy before each, and the places where processes start."""

import asyncio
import json
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from importlib.metadata import version

import psycopg
from aio_pika.exceptions import ChannelNotFoundEntity

from workqueue.contract import Queue
from workqueue.dev.node import Node
from workqueue.dev.postgres import Postgres
from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.settings import EXAMPLES_NAP, RunSettings
from workqueue.testing.given import version_of
from workqueue.testing.proxy import Proxy
from workqueue.testing.scripts import Operation
from workqueue.testing.site import Site

SETTLE_S = 3.0  # until a node that has just begun, or a queue, takes everything


class House:
    """From `open` on there are the broker (`node`), the ledger's server if it is one (`postgres`), and a proxy before
    each. Workers and producers start at one of `sites` in turn, and go by way of the proxies; `direct` is the broker
    itself, and `at` what it has of each operation."""

    def __init__(self, settings: RunSettings, operations: Mapping[str, Operation]) -> None:
        self.settings, self.operations = settings, operations
        self.node = Node(settings.folder / "node")
        self.postgres: Postgres | None = None
        self.ledger_proxy: Proxy | None = None
        self.versions = ""
        # What changes the broker, or needs it, is done one after the other; so is what changes the ledger, the network.
        self.broker_lock, self.ledger_lock, self.network_lock = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self.broker_began = 0.0
        self.deleted: list[Queue] = []
        """Queues that somebody may just now declare again."""

    async def open(self, closing: AsyncExitStack) -> None:
        """Set it up; `closing` takes it down. Raises BrokerError and PostgresError."""
        closing.callback(self.node.stop)
        await asyncio.to_thread(self.node.start)
        environment = await self._open_ledger(closing)
        self.proxy = await closing.enter_async_context(Proxy(self.node.record.port))
        self._make_sites(environment)
        for site in self.sites:
            closing.callback(site.stop)
        self.versions = f"RabbitMQ {await version_of(self.node.uri)}, Python {sys.version.split()[0]}, "
        self.versions += f"aio-pika {version('aio-pika')}, {self._ledger_version()}"

    async def _open_ledger(self, closing: AsyncExitStack) -> dict[str, str]:
        """What tells a process which ledger to use."""
        if self.settings.ledger != "postgres":
            return {"LEDGER_URL": "none"} if self.settings.ledger == "none" else {}
        self.postgres = await asyncio.to_thread(Postgres)
        closing.callback(self.postgres.__exit__)
        await asyncio.to_thread(self.postgres.start)
        port = psycopg.conninfo.conninfo_to_dict(self.postgres.url)["port"]
        self.ledger_proxy = await closing.enter_async_context(Proxy(int(str(port))))
        return {"LEDGER_URL": self.postgres.url.replace(f":{port}/", f":{self.ledger_proxy.port}/")}

    def _make_sites(self, environment: dict[str, str]) -> None:
        settings, folder = self.settings, self.settings.folder
        if settings.own and settings.nap == EXAMPLES_NAP:
            environment["WORKQUEUE_ROOT"] = str(folder)
            (folder / "a file").write_bytes(bytes(1_000_000))
        uri = self.node.uri.replace(f":{self.node.record.port}/", f":{self.proxy.port}/")
        self.site = Site(folder, uri, settings.project, environment, scripts=settings.scripts, piped=True)
        self.sites = [self.site]
        direct = Site(folder, self.node.uri, settings.project, scripts=settings.scripts)
        self.at = {name: replace(direct, operation=name) for name in self.operations}
        self.direct = direct
        if settings.old is not None:  # with its own way of recording: what is wrapped is its own runtime
            places = ("workqueue/testing/recorder.py", "tests/recording_worker.py")
            recorder = next(str(settings.old / place) for place in places if (settings.old / place).exists())
            self.sites.append(replace(self.site, project=settings.old, recorder=recorder, workers=[]))

    def _ledger_version(self) -> str:
        if self.postgres is not None:
            with psycopg.connect(self.postgres.url) as connection:
                return f"PostgreSQL {connection.info.server_version // 10_000}"
        return "no ledger" if self.settings.ledger == "none" else f"SQLite {sqlite3.sqlite_version}"

    @property
    def longest_delay_s(self) -> float:
        return max(operation.receive.rungs[-1].delay_s for operation in self.operations.values())

    async def depth(self) -> int:
        """How many messages wait, for a worker or for the end of a delay; those in a worker's hands are not counted."""
        waiting = 0
        for operation in self.operations.values():
            for queue in (operation.receive.queue, *(rung.queue for rung in operation.receive.rungs)):
                async with self.direct.amqp() as channel:
                    with suppress(ChannelNotFoundEntity):  # deleted, and not needed since
                        declared = await channel.declare_queue(queue.name, passive=True)
                        waiting += declared.declaration_result.message_count or 0
        return waiting

    async def in_hand(self) -> int:
        """How many messages there are at all but for dead ones, those in workers' hands too. It takes half a second of
        a processor."""
        rows = await asyncio.to_thread(self.node.ctl, "list_queues", "name", "messages", "--formatter", "json")
        dead = {operation.receive.dead.name for operation in self.operations.values()}
        return sum(row["messages"] for row in json.loads(rows) if row["name"] not in dead)

    async def take_letters(self, book: Book) -> None:
        """Write down what lies among the dead letters, and take it away."""
        for name, site in self.at.items():
            async with site.amqp() as channel:
                with suppress(ChannelNotFoundEntity):
                    queue = await channel.declare_queue(site.dead_queue, passive=True)
                    while (message := await queue.get(fail=False)) is not None:
                        await message.ack()
                        book.letters.append(book.letter(message, name))
