"""Hosts that fall silent: every wait on a broker has a deadline, is told, and is followed by the next address."""

import asyncio
import dataclasses
import json
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.harness import QUEUE, Site, simulate
from workqueue.amqp import connection, consumer, marker, watch
from workqueue.amqp.connection import Link
from workqueue.amqp.consumer import Consumer, Incoming
from workqueue.amqp.lane import Lane
from workqueue.amqp.links import Links
from workqueue.amqp.publisher import Publisher
from workqueue.amqp.topology import Topology
from workqueue.contract import load
from workqueue.delivery import current
from workqueue.dev.node import Node
from workqueue.errors import WorkQueueError
from workqueue.patience import Patience
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker
from workqueue.testing.proxy import Proxy

LOADED = load("tests.generated.worker")
RECEIVE = LOADED.receives[QUEUE]


@dataclasses.dataclass
class Ways:
    """Two addresses of one broker."""

    first: Proxy
    second: Proxy
    uris: tuple[str, str]

    @property
    def uri(self) -> str:
        return ",".join(self.uris)


@pytest.fixture
async def ways(node: Broker) -> AsyncIterator[Ways]:
    uri = vhost(node)
    async with Proxy(node.port) as first, Proxy(node.port) as second:
        uris = [uri.replace(f":{node.port}/", f":{proxy.port}/") for proxy in (first, second)]
        yield Ways(first, second, (uris[0], uris[1]))


@asynccontextmanager
async def linked(uris: tuple[str, ...], kind: type[Link] = Link, **settings: float) -> AsyncIterator[Link]:
    link = kind(Settings(amqp_uri=uris, **settings), "tested", Topology(LOADED.queues, "tested").declare)  # type: ignore[arg-type]
    try:
        yield link
    finally:
        await link.close()


def links(link: Link) -> Links:
    return Links("tested", RECEIVE.queue.name, lambda: link)


@asynccontextmanager
async def consuming(link: Link, **settings: float) -> AsyncIterator[tuple[Consumer, "asyncio.Queue[Incoming]"]]:
    """A consumer of the task queue that acks what it gets, and what that is."""
    failed: list[WorkQueueError] = []
    one = Consumer(links(link), RECEIVE, "tested", Settings(**settings), failed.append)  # type: ignore[arg-type]
    got: asyncio.Queue[Incoming] = asyncio.Queue()

    async def take() -> None:
        async for incoming in one.recv():
            current.get().ack()
            got.put_nowait(incoming)

    await one.start()
    taking = asyncio.ensure_future(take())
    try:
        yield one, got
    finally:
        await one.drain()
        await taking
        assert failed == []


async def publish(uri: str, count: int = 1) -> None:
    site = Site(Path(), uri)
    for each in simulate(count):
        await site.publish(json.dumps(each).encode(), message_id=each["id"])


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Addresses


async def test_an_address_that_accepts_and_says_nothing_costs_a_few_seconds(ways: Ways) -> None:
    ways.first.stall()
    async with linked(ways.uris) as link:
        began = time.monotonic()
        await link.open()
        assert time.monotonic() - began < connection.CONNECT_EACH_S + 3
        assert ways.second.flows


async def test_after_a_connection_was_lost_the_next_one_is_to_the_next_address(ways: Ways) -> None:
    async with linked(ways.uris) as link:
        for here, there in ((ways.first, ways.second), (ways.second, ways.first)):
            lane = await link.lane()
            assert (len(here.flows), len(there.flows)) == (1, 0)
            here.cut_all()
            await until(lambda: not lane.is_open, "the loss is noticed")  # noqa: B023


async def test_workers_begin_at_different_addresses(node: Broker, tmp_path: Path) -> None:
    """So that not all of them are at the node whose loss is the worst."""
    uri, port = vhost(node), f":{node.port}/"
    async with Proxy(node.port) as one, Proxy(node.port) as two, Proxy(node.port) as three:
        proxies = one, two, three
        site = Site(tmp_path, ",".join(uri.replace(port, f":{proxy.port}/") for proxy in proxies))
        try:
            for _ in range(3):
                await site.worker("", "--concurrency", "5")
            assert [len(proxy.flows) for proxy in proxies] == [2, 2, 2]  # of two operations
        finally:
            site.stop()


async def test_a_peer_that_falls_silent_is_noticed_by_its_heartbeats_and_left_at_once(
    ways: Ways, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(ways.uris, heartbeat_s=2.0) as link:
        lane = await link.lane()
        ways.first.stall()
        began = time.monotonic()
        await until(lambda: not lane.is_open, "it is noticed", 2 * watch.SHORTEST_S + 3)
        assert time.monotonic() - began > watch.SHORTEST_S - watch.TICK_S
        again = time.monotonic()
        await link.lane()
        assert time.monotonic() - again < 3  # no handshake with the one that is silent
        assert ways.second.flows
    assert any("is silent for" in line for line in warned(caplog))


def test_with_the_default_heartbeat_silence_is_noticed_within_20_s() -> None:
    assert watch.HEARTBEATS * Settings().heartbeat_s + 2 * watch.TICK_S < 20


def test_a_node_that_is_cut_off_from_its_peers_is_left_within_20_s() -> None:
    """It answers each look after 0.25 s, and counts nothing. The next one may not reach the marker's leader either."""
    found_out_s = consumer.UNKNOWN_S + consumer.SOON_S + 0.25 + consumer.PROVE_S
    connecting_s = 2.0
    assert found_out_s + connecting_s + marker.AGAIN_S <= 20


async def test_a_process_that_did_not_listen_takes_no_peer_for_silent(ways: Ways) -> None:
    async with linked(ways.uris, heartbeat_s=2.0) as link:
        lane = await link.lane()
        time.sleep(watch.SHORTEST_S + 2)  # noqa: ASYNC251  # as a handler does that blocks
        for _ in range(20):
            await asyncio.sleep(0.1)
        assert lane.is_open


# Publishing


async def test_what_is_not_confirmed_is_sent_again_to_the_next_address_under_the_same_ids(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats go on: it is only what is published that gets nowhere."""
    monkeypatch.setattr(watch, "CONFIRM_S", 2.0)
    async with linked(ways.uris) as link:
        publisher = Publisher(link, "tested")
        await link.open()
        (flow,) = ways.first.flows
        flow.to_broker.open.clear()

        async def send(number: int) -> None:
            await publisher.send(
                RECEIVE.queue, b"{}", message_id=str(number), message_type="task", content_type=None, headers={},
                deadline_s=30,
            )  # fmt: skip

        began = time.monotonic()
        await asyncio.gather(*map(send, range(50)))
        assert 1.5 < time.monotonic() - began < 8
    site = Site(Path(), ways.uris[1])
    await until(lambda: site.depth_is(50), "each is stored once")


async def test_a_broker_that_blocks_publishers_is_waited_for_and_that_is_said(
    own_node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(own_node.kill)
    monkeypatch.setattr(watch, "CONFIRM_S", 2.0)
    uri = vhost(own_node)
    async with linked((uri, uri)) as link:
        lane = await link.lane()
        publisher = Publisher(link, "tested")
        await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.0000001")
        sending = asyncio.ensure_future(
            publisher.send(
                RECEIVE.queue, b"{}", message_id="m", message_type="task", content_type=None, headers={}, deadline_s=60
            )
        )
        await until(
            lambda: any("takes no messages now: low on memory" in line for line in warned(caplog)), "it is said"
        )
        for _ in range(40):
            await asyncio.sleep(0.1)
            assert not sending.done()
        await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.4")
        await sending
        assert await link.lane() is lane
        await until(lambda: any("takes messages again" in line for line in warned(caplog)), "that is said too")
    assert not any("gives up" in line for line in warned(caplog))


# Consuming


async def test_a_node_that_counts_nothing_costs_no_consumer_and_no_line(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does whose queue's leader is far away: its counters read 0, for ever."""
    looked = 0

    async def look(self: Consumer, session: object) -> tuple[int, int]:
        nonlocal looked
        looked += 1
        return 0, 0

    monkeypatch.setattr(Consumer, "_look", look)
    monkeypatch.setattr(consumer, "UNKNOWN_S", 0.5)
    async with linked(ways.uris) as link, consuming(link, check_s=0.1) as (_, got):
        lane = await link.lane()
        await until(lambda: looked > 25, "it was idle for long")
        await publish(ways.uris[1])
        await asyncio.wait_for(got.get(), 5)
        assert await link.lane() is lane
    assert warned(caplog) == []


async def test_an_idle_consumer_that_its_node_counts_is_not_asked_to_prove_itself(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[int, int]] = []
    proved: list[object] = []

    async def look(self: Consumer, session: object) -> tuple[int, int]:
        looked.append((0, 1))
        return looked[-1]

    async def prove(self: Consumer, session: object) -> None:
        proved.append(session)

    monkeypatch.setattr(Consumer, "_look", look)
    monkeypatch.setattr(Consumer, "_prove", prove)
    monkeypatch.setattr(consumer, "UNKNOWN_S", 0.3)
    async with linked(ways.uris) as link, consuming(link, check_s=0.1):
        await until(lambda: len(looked) > 15, "it was idle for long")
    assert not proved


async def test_a_consumer_that_the_broker_has_forgotten_is_found_out_while_nothing_is_queued(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "UNKNOWN_S", 1.0)
    async with linked(ways.uris) as link, consuming(link, check_s=0.2) as (one, got):
        lane = await link.lane()
        assert one._session is not None
        await one._session.lane.cancel("tested")

        async def consumers() -> int:
            return (await lane.look(RECEIVE.queue.name)).consumers

        await until(consumers, "it consumes again", 10)
        await publish(ways.uris[1])
        await asyncio.wait_for(got.get(), 5)
    assert warned(caplog) == []


async def test_a_consumer_that_gets_nothing_although_messages_wait_moves_to_the_next_address(
    ways: Ways, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(ways.uris) as link, consuming(link, check_s=0.3) as (one, got):
        assert one._session is not None
        await one._session.lane.cancel("tested")
        await publish(ways.uris[1], count=2)
        for _ in range(2):
            await asyncio.wait_for(got.get(), 10)
        assert ways.second.flows
    assert any("idle although messages are ready" in line for line in warned(caplog))


async def test_one_look_that_finds_messages_waiting_is_no_reason_to_leave(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked = 0

    async def look(self: Consumer, session: object) -> tuple[int, int]:
        nonlocal looked
        looked += 1
        return (0, 1) if looked % 3 == 0 else (3, 1)

    monkeypatch.setattr(Consumer, "_look", look)
    async with linked(ways.uris) as link, consuming(link, check_s=0.1):
        lane = await link.lane()
        await until(lambda: looked > 15, "it looked often")
        assert await link.lane() is lane
    assert warned(caplog) == []


async def test_a_look_that_is_not_answered_moves_the_consumer_to_the_next_address(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "LOOK_S", 1.0)
    async with linked(ways.uris) as link, consuming(link, check_s=0.3) as (_, got):
        ways.first.stall()
        await publish(ways.uris[1], count=3)  # one is delivered to the consumer that is cut off
        await asyncio.wait_for(got.get(), 8)
    assert any("its node does not answer" in line for line in warned(caplog))


async def test_a_consume_that_is_not_answered_is_tried_at_the_next_address(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a node that is cut off from its peers: declaring works there, consuming hangs."""
    for module in (connection, consumer):
        monkeypatch.setattr(module, "CALL_S", 1.0)

    class CutOff(Link):
        async def open(self) -> Lane:
            lane = await super().open()
            for flow in ways.first.flows:
                flow.to_client.open.clear()
            return lane

    began = time.monotonic()
    async with linked(ways.uris, CutOff) as link, consuming(link) as (_, got):
        assert time.monotonic() - began < 6  # no heartbeat is waited for
        assert ways.second.flows
        await publish(ways.uris[1], count=3)  # one may be delivered to the consumer that is cut off
        await asyncio.wait_for(got.get(), 5)


async def test_what_a_drained_consumer_has_is_still_yielded_and_with_the_broker_again_if_nobody_settles_it(
    ways: Ways,
) -> None:
    receive = dataclasses.replace(RECEIVE, prefetch=3)
    async with linked(ways.uris) as link:
        one = Consumer(links(link), receive, "tested", Settings(), lambda error: None)
        await one.start()
        await publish(ways.uris[1], count=3)
        messages = one.recv()
        await anext(messages)
        taken = current.get()
        await until(lambda: one._session is not None and len(one._session.inbox._arrived) == 2, "two more wait here")
        draining = asyncio.ensure_future(one.drain())
        await draining
        taken.ack()
        await anext(messages)
        await anext(messages)
        with pytest.raises(StopAsyncIteration):
            await anext(messages)
        site = Site(Path(), ways.uris[1])
        await until(lambda: site.depth_is(2), "the two are back", 5)


async def test_a_worker_whose_broker_is_silent_ends_when_it_is_told_to(ways: Ways, tmp_path: Path) -> None:
    site = Site(tmp_path, ways.uri)
    try:
        worker = await site.worker()
        for proxy in (ways.first, ways.second):
            proxy.stall()
        worker.signal(signal.SIGTERM)
        assert await worker.ended(within_s=12) == 0
    finally:
        site.stop()


# Lines


def test_a_wait_is_told_after_its_first_time_and_then_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    for first_s, told in ((0.0, [0, 10, 40, 100, 160]), (2.0, [2, 12, 42, 102, 162])):
        now_s = 0.0
        patience, said = Patience(first_s), []
        while now_s < 170:
            if patience.due():
                said.append(now_s)
            now_s += 1.0
        assert said == told


async def test_a_wait_for_a_broker_is_told_at_once_with_the_address(
    ways: Ways, node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(ways.uris) as link:
        lane = await link.lane()
        for proxy in (ways.first, ways.second):
            proxy._target = 1  # nobody listens there
            proxy.cut_all()
        await until(lambda: not lane.is_open, "the loss is noticed")
        waiting = asyncio.ensure_future(link.lane())
        await until(lambda: any("waits for a broker: amqp://" in line for line in warned(caplog)), "it is told", 5)
        for proxy in (ways.first, ways.second):
            proxy._target = node.port
        await waiting
    assert sum("waits for a broker" in line for line in warned(caplog)) == 1
    assert "tested  is connected again" in warned(caplog)
