"""Many consumers of one queue on one connection, and on one channel."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from tests.harness import QUEUE, Site, simulate
from tests.test_refusals import allow_channels, linked, user_in, user_of
from tests.test_silent_hosts import LOADED, RECEIVE, publish, warned
from workqueue.amqp import consumer, direct
from workqueue.amqp.connection import Link
from workqueue.amqp.consumer import Consumer
from workqueue.amqp.lane import Depth, Lane
from workqueue.amqp.publisher import Publisher
from workqueue.amqp.source import Source
from workqueue.amqp.topology import Topology
from workqueue.delivery import ChannelLost, Delivery, current
from workqueue.dev.node import Node
from workqueue.errors import BrokerRefused, NoBroker, WorkQueueError
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker

MANY = 10


@dataclass
class Group:
    """Consumers of the task queue. What one gets it keeps until `free` is set, and then acks."""

    uri: str
    link: Link
    consumers: list[Consumer]
    free: asyncio.Event = field(default_factory=asyncio.Event)
    held: dict[int, Delivery] = field(default_factory=dict)
    taken: list[tuple[int, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    failed: list[WorkQueueError] = field(default_factory=list)

    def lane(self, number: int) -> Lane:
        session = self.consumers[number]._session
        assert session is not None
        return session.lane

    def lanes(self) -> list[Lane]:
        return [self.lane(number) for number in range(len(self.consumers))]

    async def take(self, number: int) -> None:
        async for _ in self.consumers[number].recv():
            arrived = self.held[number] = current.get()
            self.counts.append(arrived.delivery_count)
            await self.free.wait()
            del self.held[number]
            self.taken.append((number, arrived.message_id or ""))
            with suppress(ChannelLost):
                arrived.ack()


@asynccontextmanager
async def group(uri: str, count: int = MANY, **settings: Any) -> AsyncIterator[Group]:
    link = Link(Settings(amqp_uri=(uri,)), "tested", Topology(LOADED.queues, "tested").declare)
    source = Source("tested", QUEUE, link)
    made = Group(uri, link, [])
    async with AsyncExitStack() as closing:
        for number in range(count):
            one = Consumer(
                source, RECEIVE, f"tested.{number}", Settings(**settings), made.failed.append, joins=number > 0
            )
            made.consumers.append(one)
            await one.start()
        taking = [asyncio.ensure_future(made.take(number)) for number in range(count)]
        try:
            yield made
        finally:
            made.free.set()
            await asyncio.gather(*(one.drain() for one in made.consumers))
            await asyncio.gather(*taking)
            closing.push_async_callback(link.end)
            assert made.failed == []


async def end_channel(lane: Lane) -> None:
    """Have the broker close it."""
    with pytest.raises(ChannelNotFoundEntity):
        await lane.look("nowhere")


async def test_all_are_on_one_channel_and_come_back_to_one_when_it_is_closed(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with group(vhost(node)) as many:
        await publish(many.uri, MANY)
        await until(lambda: len(many.held) == MANY, "each has one")
        before, (lane,) = dict(many.held), set(many.lanes())
        await end_channel(lane)
        many.free.set()
        await until(lambda: len(many.taken) >= 2 * MANY, "what went back was taken again")
        assert {one for _, one in many.taken} == {held.message_id for held in before.values()}
        await until(lambda: all(one.is_consuming for one in many.consumers), "they consume again")
        (again,) = set(many.lanes())
        assert again is not lane
    assert sum("lost a consumer of" in line for line in warned(caplog)) == 1


async def test_a_node_that_is_killed_costs_a_message_one_delivery_however_many_consumers_wait(own_node: Node) -> None:
    async with group(vhost(own_node), count=30, reconnect_s=60.0) as many:
        await publish(many.uri, 3)
        await until(lambda: len(many.held) == 3, "they are in hand")
        await asyncio.sleep(2)  # a queue that is younger when its node is killed may find no leader
        first = {held.message_id for held in many.held.values()}
        own_node.kill()
        own_node.start()
        await until(lambda: all(one.is_consuming for one in many.consumers), "they are back", 60)
        many.free.set()
        await until(lambda: len(many.taken) == 6, "they were taken again", 60)
        assert {one for _, one in many.taken} == first
        assert sorted(many.counts) == [0, 0, 0, 1, 1, 1]


async def test_a_connection_that_is_lost_is_told_once_and_all_come_back(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with group(vhost(node)) as many:
        (await many.link.lane()).abort("cut")
        many.free.set()
        await publish(many.uri, 3 * MANY)
        await until(lambda: len(many.taken) == 3 * MANY, "all is taken")
        await until(lambda: all(one.is_consuming for one in many.consumers), "all consume again")
    assert [line for line in warned(caplog) if "lost" in line] == [f"tested  lost a consumer of {QUEUE}: cut"]


LEAST = direct.LEAST_CHANNELS


def limit_channels(node: Node, most: int) -> None:
    """Of each connection that is made from now on."""
    node.ctl("eval", f"application:set_env(rabbit, channel_max, {most}).")


@pytest.fixture
def limited(own_node: Node, tmp_path: Path) -> Iterator[Site]:
    here = Site(tmp_path, vhost(own_node))
    yield here
    here.stop()
    own_node.kill()
    here.tell()


@pytest.mark.parametrize("most", [1, 2, LEAST - 1])
async def test_a_broker_that_allows_too_few_channels_is_told_of_by_all_with_the_way_out(
    limited: Site, own_node: Node, most: int
) -> None:
    limit_channels(own_node, most)
    said = f"its channel_max is {most}, and at least {LEAST} is needed (530); raise channel_max in its rabbitmq.conf"
    worker = await limited.worker("w", "--concurrency", "2", ready=False)
    produced = await limited.producer("--jsonl", "-", lines=json.dumps(simulate(1)[0]))
    commands = [("doctor",), ("plan",), ("status",), ("dead", "list")]
    told = [await limited.workqueue(*command) for command in commands]
    assert (await worker.ended(), produced.code) == (3, 3)
    assert [one.code for one in told] == [3] * len(commands), told
    for text in (worker.text(), produced.err, *(one.err + one.out for one in told)):
        assert said in text
        assert "Traceback" not in text
    with pytest.raises(BrokerRefused, match=f"channel_max is {most}"):
        await Link(Settings(amqp_uri=(limited.uri,)), "tested").open()


async def test_with_the_least_of_channels_a_worker_works_also_after_a_pause(limited: Site, own_node: Node) -> None:
    limit_channels(own_node, LEAST)
    worker, tasks = await limited.worker("w", "--concurrency", "3"), list[dict[str, Any]]()
    for again in (False, True):
        if again:
            assert (await limited.workqueue("pause", QUEUE)).code == 0
            await until(lambda: "  paused  " in worker.text(), "it rests", 20)
            assert (await limited.workqueue("resume", QUEUE)).code == 0
        more = [*simulate(10), *simulate(1, failures=1)]
        await limited.send(more)
        await limited.all_end(tasks := tasks + more)
    assert "no further channel" not in worker.text()
    assert "Traceback" not in (await limited.workqueue("doctor")).err


async def test_a_worker_and_a_client_whose_broker_allows_too_few_meanwhile_wait_for_it(
    limited: Site, own_node: Node
) -> None:
    worker = await limited.worker("w", "--concurrency", "2")
    async with linked(limited.uri) as link:
        await link.open()
        limit_channels(own_node, 2)
        own_node.ctl("close_all_connections", "--global", "limited")
        await until(lambda: "its channel_max is 2" in worker.text(), "the worker says it", 20)
        await until(lambda: not link.is_open, "the client's connection is gone")
        with pytest.raises(NoBroker, match="its channel_max is 2"):
            await Publisher(link, "tested").send(
                RECEIVE.queue, b"", message_id="1", message_type="t", content_type=None, headers={}, deadline_s=2.0
            )
    limit_channels(own_node, 2047)
    await until(lambda: "is connected again" in worker.text(), "it is back", 20)
    tasks = simulate(3)
    await limited.send(tasks)
    await limited.all_end(tasks)


async def looks_of(many: Group, monkeypatch: pytest.MonkeyPatch, found: Callable[[], Depth]) -> list[str]:
    lane, looked = await many.link.lane(), list[str]()

    async def look(queue: str) -> Depth:
        looked.append(queue)
        return found()

    monkeypatch.setattr(lane, "look", look)
    return looked


async def test_a_look_is_made_for_all_who_ask_at_a_time(node: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with group(vhost(node), check_s=1.0) as many:
        looked = await looks_of(many, monkeypatch, lambda: Depth(0, MANY))
        await asyncio.sleep(3.5)
        assert 1 <= len(looked) <= 4  # of ten consumers, every second


async def test_one_consumer_that_was_forgotten_leaves_alone_those_that_are_at_work(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with group(vhost(node), check_s=0.3) as many:
        lanes = many.lanes()
        await lanes[0].cancel("tested.0")
        await publish(many.uri, MANY)
        await until(lambda: len(many.held) == MANY, "it has found out, and has the last one", 20)
        assert [now is then for now, then in zip(many.lanes(), lanes, strict=True)] == [False] + [True] * (MANY - 1)
        many.free.set()
        await until(lambda: len(many.taken) == MANY, "each was taken once")
        await until(lambda: not lanes[0].is_open, "the others have moved, and what the broker thinks it has goes back")
        await until(lambda: all(one.is_consuming for one in many.consumers), "all consume")
        assert len(set(many.lanes())) == 1
        assert (await many.link.lane()).is_open
    assert sum("idle although messages are ready" in line for line in warned(caplog)) == 1


async def test_one_consumer_proves_for_all_that_the_queue_answers(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "UNKNOWN_S", 2.0)
    subscribed = 0
    subscribe = Consumer._subscribe

    async def counted(self: Consumer, session: Any) -> None:
        nonlocal subscribed
        subscribed += 1
        await subscribe(self, session)

    async with group(vhost(node), check_s=0.5) as many:
        monkeypatch.setattr(Consumer, "_subscribe", counted)
        await looks_of(many, monkeypatch, lambda: Depth(0, 0))
        await until(lambda: subscribed, "one of them proves it", 10)
        await asyncio.sleep(1.0)
        assert subscribed == 1
        many.free.set()
        await publish(many.uri, 5)
        await until(lambda: len(many.taken) == 5, "what comes is taken")


async def test_a_worker_of_many_has_a_connection_that_consumes_and_one_that_publishes(site: Site, node: Broker) -> None:
    await site.worker("", "--concurrency", "40")
    tasks = simulate(100, seconds=0.05) + simulate(1, failures=1)
    await site.send(tasks)
    await site.all_end(tasks)
    listed = [
        line.split("\t")
        for line in node.ctl("list_connections", "vhost", "channels", "client_properties").splitlines()
        if line.startswith(site.uri.rpartition("/")[2])
    ]
    named = {line[2].partition('"connection_name","')[2].partition('"')[0]: int(line[1]) for line in listed}
    consuming = {name: channels for name, channels in named.items() if " consumes " in name}
    assert len(consuming) == len(LOADED.receives)
    assert all(channels <= 4 for channels in consuming.values()), named
    assert sum(" publishes" in name for name in named) == 1


async def test_a_consumer_that_may_not_read_any_more_leaves_those_at_work_that_could_before(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    whole = vhost(node)
    uri, there = user_of(node, whole, ".*", ".*", ".*"), whole.rpartition("/")[2]
    user = user_in(uri)
    async with group(uri) as many:
        lanes = many.lanes()
        node.ctl("set_permissions", "-p", there, user, ".*", ".*", "^$")
        await many.consumers[3].move()
        await until(lambda: any("ACCESS_REFUSED" in line for line in warned(caplog)), "it is refused", 30)
        assert not many.consumers[3].is_consuming
        await publish(whole, MANY - 1)
        await until(lambda: len(many.held) == MANY - 1, "the others go on")
        node.ctl("set_permissions", "-p", there, user, ".*", ".*", ".*")
        await until(lambda: many.consumers[3].is_consuming, "it consumes again")
        assert [now is then for now, then in zip(many.lanes(), lanes, strict=True)] == [
            number != 3 for number in range(MANY)
        ]


async def test_a_user_who_may_not_have_as_many_channels_as_the_worker_wants_is_said_at_its_start(
    node: Broker, site: Site
) -> None:
    site.uri = user_of(node, site.uri, ".*", ".*", ".*")
    allow_channels(node, site.uri, 2)
    worker = await site.worker("many", "--concurrency", "40", ready=False)
    assert await worker.ended() == 3
    assert "maximum allowed user limit of (2)" in worker.text()
    assert "do less at a time, or raise it: rabbitmqctl set_user_limits" in worker.text()
