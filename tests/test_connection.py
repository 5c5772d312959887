"""What a connection declares, and when it is opened once more."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import chain, count
from types import SimpleNamespace
from typing import Any, cast

import aio_pika
import aiormq
import pytest
from yarl import URL

from tests.test_refusals import linked, queue
from workqueue.amqp import connection, handshake
from workqueue.amqp.connection import STUMBLES, Link, Stumbled, failure, open_connection
from workqueue.amqp.frames import Closed
from workqueue.amqp.lane import Connection, Declaration, Depth, Lane
from workqueue.amqp.look import look
from workqueue.amqp.topology import Topology
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker

NOWHERE = Settings(amqp_uri=("amqp://127.0.0.1:1/",))
LANE = cast(Lane, SimpleNamespace(is_open=True))
CONNECTION = cast(Connection, SimpleNamespace(first=LANE))


def declared(node: Broker, uri: str) -> list[str]:
    """The queues that exist there."""
    listed = node.ctl("list_queues", "-p", uri.rpartition("/")[2], "name", "--formatter", "json")
    return sorted(row["name"] for row in json.loads(listed))


async def test_who_only_looks_declares_nothing(node: Broker) -> None:
    uri = vhost(node)
    async with linked(uri) as looks, linked(uri, queue("theirs")) as declares:
        lane = await looks.open()
        assert await look(Settings(amqp_uri=(uri,)), ["theirs"], "looks") == {}
        assert await asyncio.to_thread(declared, node, uri) == []
        await declares.open()
        assert await lane.look("theirs") == Depth(0, 0)
        assert await look(Settings(amqp_uri=(uri,)), ["theirs", "nowhere"], "looks") == {"theirs": Depth(0, 0)}
        assert await asyncio.to_thread(declared, node, uri) == ["theirs"]


async def test_what_is_declared_on_a_connection_is_declared_on_the_one_that_follows_it_too(node: Broker) -> None:
    uri = vhost(node)
    async with linked(uri, queue("ours")) as link:
        lane = await link.open()
        async with await aio_pika.connect(uri) as other:
            await (await other.channel()).queue_delete("ours")
        lane.abort("cut")
        assert await look(Settings(amqp_uri=(uri,)), ["ours"], "looks") == {}
        await link.lane()
        assert await look(Settings(amqp_uri=(uri,)), ["ours"], "looks") == {"ours": Depth(0, 0)}


@pytest.mark.parametrize(("failures", "tries"), [(2, 3), (STUMBLES, STUMBLES + 1), (99, STUMBLES + 1)])
async def test_a_broker_that_stumbles_is_asked_again_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, failures: int, tries: int
) -> None:
    """RabbitMQ 3.10 closes with 541 when many declare a quorum queue that is just being made."""
    tried = 0

    async def opened(*_: object) -> Connection:
        nonlocal tried
        tried += 1
        if tried <= failures:
            raise Stumbled("there", "INTERNAL_ERROR")
        return CONNECTION

    monkeypatch.setattr(connection, "open_connection", opened)
    monkeypatch.setattr(connection, "STUMBLE_S", 0.0)
    link = Link(Settings(), "w")
    if failures < tries:
        assert await link.open() is LANE
    else:
        with pytest.raises(BrokerUnreachable):
            await link.open()
    assert tried == tries


@pytest.mark.parametrize(("closed", "stumbled"), [(541, True), (320, False), (404, False), (None, False)])
def test_only_an_internal_error_of_the_broker_is_a_stumble(closed: int | None, stumbled: bool) -> None:
    said = None if closed is None else Closed(closed, "it said so")
    assert isinstance(failure(URL("amqp://there/"), said, ConnectionError("lost")), Stumbled) == stumbled


async def test_another_failure_is_not_tried_again_at_the_same_address(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    async def opened(uri: str, settings: Settings, name: str, declares: Iterable[Declaration]) -> Connection:
        tried.append(uri)
        raise BrokerUnreachable(uri, "it is down")

    monkeypatch.setattr(connection, "open_connection", opened)
    with pytest.raises(BrokerUnreachable):
        await Link(Settings(amqp_uri=("amqp://one/", "amqp://two/")), "w").open()
    assert tried == ["amqp://one/", "amqp://two/"]


async def test_who_waits_for_a_broker_is_told_at_once_when_the_connection_is_ended() -> None:
    """Else a client's end would wait with it, and a connection be made that nobody closes."""
    link = Link(NOWHERE, "w")
    waiting = asyncio.create_task(link.lane())
    await asyncio.sleep(1.5)  # several tries: the next one is a second away
    async with asyncio.timeout(0.3):
        await link.end()
        with pytest.raises(BrokerUnreachable, match="the connection was closed"):
            await waiting
        with pytest.raises(BrokerUnreachable, match="the connection was closed"):
            await link.lane()


async def test_of_a_connection_of_ours_aiormq_says_nothing_and_of_others_what_it_always_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(BrokerUnreachable):
        await Link(NOWHERE, "w").open()
    assert caplog.records == []
    with pytest.raises(ConnectionError):
        await aiormq.connect("amqp://127.0.0.1:1/")
    assert [record.name for record in caplog.records] == ["aiormq.connection"]


async def test_a_connection_and_its_channels_keep_nothing_of_the_context_of_whoever_needed_them() -> None:
    """Theirs was a delivery, which led to the connection that it came on, and so to all that were lost before."""
    kept = list[str]()

    async def live() -> None:
        kept.append(held.get())

    async def another() -> Lane:
        await asyncio.create_task(live())  # as aiormq does
        return LANE

    async def opened(*_: object) -> Connection:
        await asyncio.create_task(live())
        return cast(Connection, SimpleNamespace(first=LANE, another=another))

    held = ContextVar("held", default="nothing")
    held.set("a delivery")
    link = Link(Settings(), "w", connect=opened)
    await link.lane()
    await link.another()
    assert kept == ["nothing", "nothing"]
    assert held.get() == "a delivery"


async def test_a_close_that_was_cut_off_goes_on_and_the_next_one_waits_for_it() -> None:
    """The worker's consumers are stopped by a cancellation; a process that then ended would take the last acks with it,
    which the broker had not read yet."""
    closed = asyncio.Event()

    async def close() -> None:
        await asyncio.sleep(0.2)
        closed.set()

    async def opened(*_: object) -> Connection:
        return cast(Connection, SimpleNamespace(first=LANE, close=close))

    link = Link(Settings(), "w", connect=opened)
    await link.open()
    first = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert not closed.is_set()
    await link.end()
    assert closed.is_set()


@asynccontextmanager
async def nothing_left_over() -> AsyncIterator[None]:
    """Whatever is done meanwhile leaves no task, and no exception that nobody has asked for."""
    loop, told = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        yield
        await until(lambda: len(asyncio.all_tasks()) == 1, "all that was begun has ended", 10)
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert told == []


async def cancelled_after(ticks: int, doing: Coroutine[Any, Any, object]) -> bool:
    """Cancel it after so many turns of the event loop, and whether it had not come to its end before."""
    task = asyncio.ensure_future(doing)
    for _ in range(ticks):
        await asyncio.sleep(0)
    in_time = task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() == in_time
    if not in_time:
        task.exception()  # asked for
    return in_time


@pytest.mark.parametrize("error", [None, ConnectionRefusedError("nobody is there")])
async def test_who_is_cancelled_in_the_turn_in_which_a_connection_is_made_leaves_none(
    node: Broker, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    made = list[aiormq.Connection]()
    really = aiormq.Connection.connect

    async def connect(self: aiormq.Connection) -> bool:
        made.append(self)
        if error is None:
            await really(self)
        asyncio.get_running_loop().call_soon(task.cancel)  # before who waits for this is woken up
        if error is not None:
            raise error
        return True

    monkeypatch.setattr(aiormq.Connection, "connect", connect)
    async with nothing_left_over():
        task = asyncio.ensure_future(handshake.connect(URL(vhost(node)), "tested", 5.0))
        await asyncio.wait([task])
        assert task.cancelled()
        if error is None:
            await until(lambda: made[0].is_closed, "it is closed", 10)


async def test_a_connection_is_left_by_who_is_cancelled_in_any_turn_of_its_making(node: Broker) -> None:
    uri = vhost(node)
    settings = Settings(amqp_uri=(uri,))
    declares = Topology([queue("ours")], "tested").declare
    links = list[Link]()

    async def opened() -> None:
        links.append(Link(settings, "tested", declares))
        await links[-1].open()

    async with nothing_left_over():
        for ticks in chain(range(1, 60), count(60, 5)):  # most of the later ones are waits for the broker
            in_time = await cancelled_after(ticks, opened())
            await links[-1].end()
            if not in_time:
                break
        await until(lambda: len(asyncio.all_tasks()) == 1, "all connections have ended", 10)
        there = await asyncio.to_thread(node.ctl, "list_connections", "vhost")
        assert uri.rpartition("/")[2] not in there


async def test_of_a_call_that_is_cut_off_nothing_is_said(node: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """As by Ctrl-C in a command."""
    link = Link(Settings(amqp_uri=(vhost(node),)), "tested")
    for ticks in range(1, 8):
        await cancelled_after(ticks, (await link.open()).look("task-queue"))
    await link.end()
    assert caplog.messages == []


async def test_who_is_cancelled_in_any_turn_of_a_failing_try_leaves_no_exception_behind() -> None:
    async with nothing_left_over():
        for ticks in range(1, 40):
            await cancelled_after(ticks, handshake.connect(URL(NOWHERE.amqp_uri[0]), "tested", 5.0))


@pytest.mark.parametrize("error", [None, ConnectionError("the channel did not close")])
async def test_a_cancellation_that_aiormq_keeps_to_itself_ends_what_it_was_meant_for(
    node: Broker, error: Exception | None
) -> None:
    """Else a send that it has cut off, since its time was over, would go on without an end."""
    began = asyncio.Event()

    async def declare(_: object) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    async with nothing_left_over():
        task = asyncio.ensure_future(open_connection(vhost(node), Settings(), "tested", [declare]))
        await began.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
