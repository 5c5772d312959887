"""Two ledgers for one queue would do each task twice: who comes second with another one does not start."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aio_pika
import pytest

from tests.test_refusals import queue, user_of
from workqueue.amqp.connection import Link
from workqueue.amqp.marker import Marker
from workqueue.amqp.topology import Topology
from workqueue.errors import LedgerDiffers
from workqueue.ledger.none import AbsentLedger
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker


@asynccontextmanager
async def process(uri: str, identity: int, *, hold: bool = True) -> AsyncIterator[Link]:
    """A worker's connection, or that of a producer which follows results."""
    marker = Marker("task-queue", SimpleNamespace(identity=identity, place=f"/ledger/{identity}"), "tested", hold=hold)
    link = Link(Settings(amqp_uri=(uri,)), "tested", Topology([queue("task-queue")], "tested").declare, marker.check)
    try:
        yield link
    finally:
        await link.close()


async def test_of_two_ledgers_for_one_queue_the_second_is_refused_and_told_where_it_is(node: Broker) -> None:
    uri = vhost(node)
    async with process(uri, 2**31 - 1) as first, process(uri, 2**31 - 1) as same, process(uri, 7) as other:
        await first.open()
        await same.open()
        for _ in range(2):
            with pytest.raises(LedgerDiffers, match=r"worked on with another ledger .*/ledger/7") as error:
                await other.open()
            assert error.value.exit_code == 2
        async with process(uri, 7, hold=False) as producer:
            with pytest.raises(LedgerDiffers):
                await producer.open()
        async with process(uri, 2**31 - 1, hold=False) as producer:
            await producer.open()


async def test_who_has_a_ledger_that_is_not_there_is_refused_also_where_it_may_declare_nothing(node: Broker) -> None:
    uri = vhost(node)
    absent = Marker("task-queue", AbsentLedger("sqlite:/ledger.db"), "tested", hold=False, make=False)
    for asks in (uri, user_of(node, uri, "^$", ".*", ".*")):
        await Link(Settings(amqp_uri=(asks,)), "tested", absent.check).open()
    async with process(uri, 7) as first:
        await first.open()
        for asks in (uri, user_of(node, uri, "^$", ".*", ".*")):
            with pytest.raises(LedgerDiffers, match=r"/ledger.db, which is not there: put it back"):
                await Link(Settings(amqp_uri=(asks,)), "tested", absent.check).open()


@asynccontextmanager
async def cut_off_from_a_marker_of_another_ledger(uri: str) -> AsyncIterator[Link]:
    async with process(uri, 1) as first, process(uri, 2) as second:
        lane = await first.open()
        async with await aio_pika.connect(uri) as connection:
            await (await connection.channel()).queue_delete("task-queue.ledger")
        await second.open()
        lane.abort("cut")
        yield first


async def test_a_worker_that_comes_back_to_a_queue_of_another_ledger_ends(node: Broker) -> None:
    async with cut_off_from_a_marker_of_another_ledger(vhost(node)) as first:
        with pytest.raises(LedgerDiffers, match="where that was replaced since it was opened, open a new client"):
            await first.lane()


async def test_an_answer_that_comes_late_and_names_another_ledger_ends_the_connection(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cut_off_from_a_marker_of_another_ledger(vhost(node)) as first:
        monkeypatch.setattr("workqueue.amqp.marker.AGAIN_S", 0.0)
        lane = await first.lane()
        await until(lambda: not lane.is_open, "it is ended")
        monkeypatch.undo()
        with pytest.raises(LedgerDiffers):
            await first.lane()


async def test_who_comes_back_to_a_marker_that_gives_no_answer_works_and_is_told_so_if_that_lasts(
    node: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workqueue.amqp.marker.ANSWER_S", 2.0)
    monkeypatch.setattr("workqueue.amqp.marker.AGAIN_S", 0.2)
    marker = Marker("task-queue", SimpleNamespace(identity=1, place="/ledger/1"), "tested", hold=True)
    silent: Any = SimpleNamespace(channel=lambda **given: asyncio.Event().wait())
    async with await aio_pika.connect(vhost(node)) as connection:
        assert connection.transport is not None
        await marker.check(connection.transport.connection)
    began = time.monotonic()
    await marker.check(silent)
    assert time.monotonic() - began < 1.5
    assert not caplog.records
    await until(lambda: bool(caplog.records), "it is said")
    assert "one ledger is unchecked: no answer within 2 s" in caplog.records[0].getMessage()


async def test_a_marker_lives_as_long_as_a_worker_and_then_its_time(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workqueue.amqp.marker.EXPIRES_MS", 1000)
    uri = vhost(node)
    async with process(uri, 1) as first, process(uri, 2) as second:
        await first.open()
        for _ in range(20):
            await asyncio.sleep(0.1)
        with pytest.raises(LedgerDiffers):
            await second.open()
        await first.close()

        async def starts() -> bool:
            try:
                await second.open()
            except LedgerDiffers:
                return False
            return True

        await until(starts, "the second may start")


async def test_who_may_not_declare_a_marker_works_and_is_told_so(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    uri = vhost(node)
    async with process(uri, 1) as first:
        await first.open()
    async with process(user_of(node, uri, "^$", ".*", ".*"), 2) as restricted:
        assert (await restricted.open()).is_open
    (line,) = [one.getMessage() for one in caplog.records if "one ledger is unchecked" in one.getMessage()]
    assert "ACCESS_REFUSED" in line
