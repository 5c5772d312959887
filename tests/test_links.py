"""Many consumers of one queue on one connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from tests.harness import QUEUE, Site, simulate
from tests.test_refusals import allow_channels, linked, user_in, user_of
from tests.test_silent_hosts import LOADED, RECEIVE, publish, warned
from workqueue.amqp import consumer, direct
from workqueue.amqp.connection import Link
from workqueue.amqp.consumer import Consumer
from workqueue.amqp.lane import Depth, Lane
from workqueue.amqp.links import Links
from workqueue.amqp.publisher import Publisher
from workqueue.amqp.topology import Topology
from workqueue.delivery import Delivery, current
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
    links: list[Link]
    shared: Links
    consumers: list[Consumer]
    free: asyncio.Event = field(default_factory=asyncio.Event)
    held: dict[int, Delivery] = field(default_factory=dict)
    taken: list[tuple[int, str]] = field(default_factory=list)
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
            await self.free.wait()
            del self.held[number]
            self.taken.append((number, arrived.message_id or ""))
            arrived.ack()


@asynccontextmanager
async def group(uri: str, count: int = MANY, **settings: Any) -> AsyncIterator[Group]:
    links = list[Link]()

    def make() -> Link:
        links.append(Link(Settings(amqp_uri=(uri,)), "tested", Topology(LOADED.queues, "tested").declare))
        return links[-1]

    shared = Links("tested", QUEUE, make)
    made = Group(uri, links, shared, [])
    async with AsyncExitStack() as closing:
        for number in range(count):
            one = Consumer(
                shared, RECEIVE, f"tested.{number}", Settings(**settings), made.failed.append, joins=number > 0
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
            for link in links:
                closing.push_async_callback(link.end)
            assert made.failed == []


async def end_channel(lane: Lane) -> None:
    """Have the broker close it."""
    with pytest.raises(ChannelNotFoundEntity):
        await lane.look("nowhere")


async def test_a_channel_that_is_closed_among_many_leaves_the_others_at_work_and_is_opened_again(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with group(vhost(node)) as many:
        await publish(many.uri, MANY)
        await until(lambda: len(many.held) == MANY, "each has one")
        before, lanes = dict(many.held), many.lanes()
        await end_channel(lanes[3])
        many.free.set()
        await until(lambda: len(many.taken) > MANY, "the one that went back was taken again")
        assert {one for _, one in many.taken} == {held.message_id for held in before.values()}
        await until(lambda: many.consumers[3].is_consuming, "it consumes again")
        assert [now is then for now, then in zip(many.lanes(), lanes, strict=True)] == [
            number != 3 for number in range(MANY)
        ]
        assert len(many.links) == 1
    assert sum("lost a consumer of" in line for line in warned(caplog)) == 1


async def test_a_connection_that_is_lost_is_told_once_and_all_come_back(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with group(vhost(node)) as many:
        (link,) = many.links
        (await link.lane()).abort("cut")
        many.free.set()
        await publish(many.uri, 3 * MANY)
        await until(lambda: len(many.taken) == 3 * MANY, "all is taken")
        await until(lambda: all(one.is_consuming for one in many.consumers), "all consume again")
    assert [line for line in warned(caplog) if "lost" in line] == [f"tested  lost a consumer of {QUEUE}: cut"]


async def test_what_many_consumers_held_and_did_not_ack_outlasts_a_cut_and_a_restart(own_node: Node) -> None:
    """RabbitMQ 3.10 forgets at its restart in which order more than 32 consumers of one channel gave back what they
    held: acks then count for other messages."""
    uri, count = vhost(own_node), 60
    link = Link(Settings(amqp_uri=(uri,)), "tested", Topology(LOADED.queues, "tested").declare)
    shared, held, acked, is_cut = Links("tested", QUEUE, lambda: link), set[str](), set[str](), asyncio.Event()

    async def take(one: Consumer) -> None:
        async for _ in one.recv():
            arrived = current.get()
            name = arrived.message_id or ""
            if not is_cut.is_set():
                held.add(name)
                await is_cut.wait()
            elif name in sorted(held)[::2]:
                arrived.ack()
                acked.add(name)
            else:
                kept.add(name)
                await asyncio.Event().wait()

    kept = set[str]()
    consumers = [
        Consumer(shared, RECEIVE, f"tested.{number}", Settings(), fail, joins=number > 0) for number in range(count)
    ]
    for one in consumers:
        await one.start()
    taking = [asyncio.ensure_future(take(one)) for one in consumers]
    await publish(uri, count)
    await until(lambda: len(held) == count, "each has one", 30)
    await asyncio.sleep(2.0)  # a queue that is younger when its node stops may find no leader
    (await link.lane()).abort("cut")
    is_cut.set()
    await until(lambda: len(acked) + len(kept) == count, "half are acked, and half are not", 60)
    for task in taking:
        task.cancel()
    await asyncio.gather(*taking, return_exceptions=True)
    await link.end()
    await asyncio.to_thread(own_node.stop)
    await asyncio.to_thread(own_node.start)
    left = set[str]()
    async with await aio_pika.connect(uri) as connection:
        queue = await (await connection.channel()).get_queue(QUEUE, ensure=False)

        async def all_left() -> bool:
            while (message := await queue.get(fail=False, no_ack=True)) is not None:
                left.add(message.message_id or "")
            return len(left) >= count // 2

        await until(all_left, "what was not acked is there", 30)
    assert left == kept


def fail(error: WorkQueueError) -> None:
    raise error


async def test_beyond_the_brokers_limit_of_channels_there_is_a_further_connection(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "MOST_CHANNELS", 6)
    tuned = direct.DirectLane.__init__

    def limited(self: direct.DirectLane, socket: Any, channel: Any) -> None:
        tuned(self, socket, channel)
        channel.connection.connection_tune.channel_max = 0  # no limit but the protocol's

    monkeypatch.setattr(direct.DirectLane, "__init__", limited)
    async with group(vhost(node), count=7) as many:
        assert len(many.links) == 3  # of three consumers each, beside the channel of all
        many.free.set()
        await publish(many.uri, 50)
        await until(lambda: len(many.taken) == 50, "all is taken")
        await end_channel(many.lane(0))
        await until(lambda: many.consumers[0].is_consuming, "it comes back")
        assert len(many.links) == 3


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


async def test_with_the_least_of_channels_a_worker_works_on_many_connections(limited: Site, own_node: Node) -> None:
    limit_channels(own_node, LEAST)
    await limited.worker("w", "--concurrency", "3")
    tasks = [*simulate(10), *simulate(1, failures=1)]
    await limited.send(tasks)
    await limited.all_end(tasks)
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
    lane, looked = await many.links[0].lane(), list[str]()

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
    assert all(channels >= 41 for channels in consuming.values()), named
    assert sum(" publishes" in name for name in named) == 1


async def test_many_channels_that_are_closed_at_once_leave_the_others_at_work(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with group(vhost(node), count=40) as many:
        lanes = many.lanes()
        await asyncio.gather(*(end_channel(lane) for lane in lanes[:30]))
        await publish(many.uri, 80)
        many.free.set()
        await until(lambda: len(many.taken) >= 80, "all is taken")
        await until(lambda: all(one.is_consuming for one in many.consumers), "all consume again")
        assert many.lanes()[30:] == lanes[30:]
    assert not [line for line in warned(caplog) if "channel.open" in line]


async def test_a_consumer_that_may_not_read_any_more_leaves_those_at_work_that_could_before(
    node: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    whole = vhost(node)
    uri, there = user_of(node, whole, ".*", ".*", ".*"), whole.rpartition("/")[2]
    user = user_in(uri)
    async with group(uri) as many:
        lanes = many.lanes()
        node.ctl("set_permissions", "-p", there, user, ".*", ".*", "^$")
        await end_channel(lanes[3])
        await until(lambda: any("ACCESS_REFUSED" in line for line in warned(caplog)), "it is refused", 30)
        assert not many.consumers[3].is_consuming
        assert any(line.endswith("; let the user read it: rabbitmqctl set_permissions") for line in warned(caplog))
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
    allow_channels(node, site.uri, 20)
    worker = await site.worker("many", "--concurrency", "40", ready=False)
    assert await worker.ended() == 3
    assert "maximum allowed user limit of (20)" in worker.text()
    assert "do less at a time, or raise it: rabbitmqctl set_user_limits" in worker.text()
