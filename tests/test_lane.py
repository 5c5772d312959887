"""What a lane promises, held against two: the one the runtime has, and a plain channel of aio-pika."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import aio_pika
import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic
from yarl import URL

from tests.plain import open_plain
from tests.test_refusals import user_of
from tests.test_silent_hosts import RECEIVE, consuming, linked
from workqueue.amqp import connection, direct, handshake
from workqueue.amqp.connection import open_connection
from workqueue.amqp.frames import BODY, HEADER, START, START_BYTES, Arrival, Tap
from workqueue.amqp.handshake import connect
from workqueue.amqp.lane import Connection, Depth, Lane, Nacked, NoChannelLeft, Refused, Unroutable
from workqueue.amqp.publisher import Publisher
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker
from workqueue.testing.proxy import Proxy

Opener = Callable[..., Any]
KINDS: dict[str, Opener] = {"direct": open_connection, "plain": open_plain}
MOST_BYTES = 1 << 24
ID = Basic.Properties(message_id="m")

HEADERS: dict[str, Any] = {
    "none": None, "yes": True, "no": False, "small": 1, "negative": -(2**31), "large": 2**62, "float": 1.5,
    "decimal": Decimal("1.25"), "text": "Grüße", "empty": "", "bytes": bytearray(b"\x00\xff"), "long": "x" * 70_000,
    "time": datetime(2026, 11, 25, 9, 30, tzinfo=UTC), "list": [1, "two", None, [3.0, {"four": False}]],
    "table": {"a": {"b": []}},
}  # fmt: skip
MESSAGES: list[tuple[dict[str, Any], bytes]] = [
    ({"message_id": "bare"}, b""),
    ({"message_id": "headers", "headers": HEADERS, "delivery_mode": 2}, b"{}"),
    (
        {
            "message_id": "everything", "content_type": "application/json", "content_encoding": "identity",
            "delivery_mode": 1, "priority": 9, "correlation_id": "c", "reply_to": "answers", "expiration": "60000",
            "timestamp": datetime(2026, 11, 25, tzinfo=UTC), "message_type": "task", "app_id": "tests", "headers": {},
        },
        bytes(range(256)),
    ),
    ({"message_id": "one frame", "priority": 0}, b"x" * (131_072 - 8)),
    ({"message_id": "a byte more"}, b"x" * (131_072 - 7)),
    ({"message_id": "many frames"}, bytes(range(256)) * 8192),
]  # fmt: skip


@pytest.fixture(params=KINDS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return KINDS[request.param]


@asynccontextmanager
async def opened(opener: Opener, uri: str) -> AsyncIterator[Lane]:
    async with connected(opener, uri) as connection:
        yield connection.first


@asynccontextmanager
async def connected(opener: Opener, uri: str) -> AsyncIterator[Connection]:
    connection = await opener(uri, Settings(amqp_uri=(uri,)), "tested")
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def aside(uri: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel of nobody's that is tested."""
    async with await aio_pika.connect(uri) as other:
        yield await other.channel()


async def declare(uri: str, name: str = "there", arguments: dict[str, Any] | None = None) -> str:
    """A queue, of the classic type unless told otherwise. Returns its name."""
    async with aside(uri) as channel:
        await channel.declare_queue(name, durable=True, arguments=arguments)
    return name


async def lies(uri: str, queue: str, messages: int) -> None:
    """Wait until so many lie in a queue."""
    async with aside(uri) as channel:

        async def found() -> bool:
            return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count == messages

        await until(found, f"{messages} lie in {queue}")


class Inbox(asyncio.Queue[Arrival | None]):
    async def take(self, count: int = 1) -> list[Any]:
        async with asyncio.timeout(20):
            return [await self.get() for _ in range(count)]


async def fill(lane: Lane, queue: str, messages: int) -> None:
    """Publish so many, whose ids are their numbers."""
    for number in range(messages):
        await lane.publish(queue, Basic.Properties(message_id=str(number)), b"", mandatory=True)


async def consume(lane: Lane, queue: str, prefetch: int = 10, tag: str = "tested") -> Inbox:
    inbox = Inbox()
    await lane.consume(queue, tag, prefetch, inbox.put_nowait, MOST_BYTES)
    return inbox


async def spoil(lane: Lane) -> None:
    """Have the broker close this channel."""
    with pytest.raises(ChannelNotFoundEntity):
        await lane.look("nowhere")


# What is written, and what is read


class Recording(Tap):
    """Keeps all that arrives."""

    stream = b""

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        self.stream += data
        super().feed_data(data)


async def raw(uri: str, queue: str, count: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Header and body of the messages in a queue, byte for byte as the broker sends them."""
    monkeypatch.setattr(handshake, "Tap", Recording)
    plain, socket = await connect(URL(uri), "raw", 5.0)
    async with plain:
        channel = await plain.channel()
        for _ in range(count):
            await channel.basic_get(queue, no_ack=True)
    assert isinstance(socket.tap, Recording)
    found, stream = list[tuple[bytes, bytes]](), socket.tap.stream
    while stream:
        kind, _, size = START.unpack_from(stream)
        content, stream = stream[START_BYTES : START_BYTES + size], stream[START_BYTES + size + 1 :]
        if kind == HEADER:
            found.append((content, b""))
        elif kind == BODY:
            found[-1] = found[-1][0], found[-1][1] + content
    return found


async def test_what_is_published_by_either_is_the_same_byte_for_byte(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, said = vhost(node), {}
    for name, opener in KINDS.items():
        queue = await declare(uri, name)
        async with opened(opener, uri) as lane:
            for properties, body in MESSAGES:
                await lane.publish(queue, Basic.Properties(**properties), body, mandatory=True)
        said[name] = await raw(uri, queue, len(MESSAGES), monkeypatch)
    assert [body for _, body in said["direct"]] == [body for _, body in MESSAGES]
    assert said["direct"] == said["plain"]


async def test_what_is_delivered_by_either_is_the_same(node: Broker) -> None:
    uri, got = vhost(node), dict[str, list[Arrival]]()
    queue = await declare(uri)
    for name, opener in KINDS.items():
        async with opened(open_plain, uri) as lane:
            for properties, body in MESSAGES:
                await lane.publish(queue, Basic.Properties(**{"priority": 3, **properties}), body, mandatory=True)
        async with opened(opener, uri) as lane:
            inbox = await consume(lane, queue, prefetch=len(MESSAGES))
            got[name] = await inbox.take(len(MESSAGES))
            for arrived in got[name]:
                lane.settle(arrived.tag, "ack")
    assert [one.body for one in got["direct"]] == [body for _, body in MESSAGES]
    assert got["direct"] == got["plain"]
    assert repr(got["direct"]) == repr(got["plain"])  # 1, 1.0 and True are equal


# Publishing


async def test_of_many_in_flight_each_ends_as_its_own_confirm_says(node: Broker, opener: Opener) -> None:
    uri = vhost(node)
    queue = await declare(uri, arguments={"x-queue-type": "quorum"})
    async with opened(opener, uri) as lane:

        async def send(number: int) -> bool:
            name = queue if number % 5 else "nowhere"
            try:
                await lane.publish(name, Basic.Properties(message_id=str(number)), b"body", mandatory=True)
            except Unroutable:
                return name == "nowhere"
            return name == queue

        assert all(await asyncio.gather(*map(send, range(1000))))
        assert lane.is_open
    await lies(uri, queue, 800)


async def test_a_message_that_nobody_must_take_is_confirmed_although_there_is_no_queue(
    node: Broker, opener: Opener
) -> None:
    async with opened(opener, vhost(node)) as lane:
        await lane.publish("nowhere", ID, b"body", mandatory=False)
        with pytest.raises(Unroutable):
            await lane.publish("nowhere", ID, b"body", mandatory=True)


async def test_a_message_that_a_full_queue_does_not_take_is_nacked(node: Broker, opener: Opener) -> None:
    uri = vhost(node)
    queue = await declare(uri, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    async with opened(opener, uri) as lane:
        await lane.publish(queue, ID, b"first", mandatory=True)
        for _ in range(2):
            with pytest.raises(Nacked):
                await lane.publish(queue, ID, b"more", mandatory=True)
        async with aside(uri) as channel:
            await (await channel.get_queue(queue)).purge()
        await lane.publish(queue, ID, b"now", mandatory=True)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_publish_over_which_the_channel_is_closed_is_refused_and_so_is_what_was_in_flight_with_it(
    node: Broker, opener: Opener, count: int
) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with opened(opener, user_of(node, uri, "", "^$", ".*")) as lane:
        sending = [lane.publish(queue, Basic.Properties(message_id=str(n)), b"", mandatory=True) for n in range(count)]
        ends = await asyncio.gather(*sending, return_exceptions=True)
        assert [(type(one), one.why.code, one.alone) for one in ends if isinstance(one, Refused)] == [
            (Refused, 403, count == 1)
        ] * count
        assert not lane.is_open
        assert "ACCESS_REFUSED" in str(lane.cause)
        with pytest.raises(ConnectionError):
            await lane.publish(queue, ID, b"", mandatory=True)


async def test_properties_that_cannot_be_encoded_fail_alone(node: Broker, opener: Opener) -> None:
    uri, nothing = vhost(node), object()
    queue = await declare(uri)
    async with opened(opener, uri) as lane:
        with pytest.raises(TypeError):
            await lane.publish(queue, Basic.Properties(headers={"x": nothing}), b"", mandatory=True)  # type: ignore[dict-item]
        await lane.publish(queue, ID, b"", mandatory=True)


# Consuming


async def test_a_delivery_is_forgotten_delivered_again_or_dead_lettered_as_it_is_settled(
    node: Broker, opener: Opener
) -> None:
    uri = vhost(node)
    dead = await declare(uri, "dead")
    queue = await declare(uri, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    async with opened(opener, uri) as lane:
        for body in (b"ack", b"requeue", b"reject"):
            await lane.publish(queue, Basic.Properties(message_id=str(body)), body, mandatory=True)
        inbox = await consume(lane, queue, prefetch=3)
        for arrived in await inbox.take(3):
            assert not arrived.redelivered
            lane.settle(arrived.tag, arrived.body.decode())
        (again,) = await inbox.take()
        assert (again.body, again.redelivered) == (b"requeue", True)
        lane.settle(again.tag, "ack")
    async with aside(uri) as channel:
        letter = await (await channel.get_queue(dead)).get()
        assert letter.body == b"reject"
    await lies(uri, queue, 0)


async def test_no_more_is_delivered_than_may_wait_to_be_settled(node: Broker, opener: Opener) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with opened(opener, uri) as lane:
        inbox = await consume(lane, queue, prefetch=2)
        await fill(lane, queue, 4)
        first, _ = await inbox.take(2)
        assert await lane.look(queue) == Depth(2, 1)
        assert inbox.empty()
        lane.settle(first.tag, "ack")
        await inbox.take()


async def test_a_consumer_that_is_cancelled_gets_no_more_and_its_tag_can_be_used_again(
    node: Broker, opener: Opener
) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with opened(opener, uri) as lane:
        inbox = await consume(lane, queue)
        await lane.cancel("tested")
        await lane.publish(queue, ID, b"later", mandatory=True)
        assert await lane.look(queue) == Depth(1, 0)
        assert inbox.empty()
        (arrived,) = await (await consume(lane, queue)).take()
        assert arrived.body == b"later"


async def test_a_queue_that_is_deleted_ends_its_consumer_and_not_the_channel(node: Broker, opener: Opener) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with opened(opener, uri) as lane, aside(uri) as channel:
        inbox = await consume(lane, queue)
        await channel.queue_delete(queue)
        assert await inbox.take() == [None]
        assert lane.is_open


# Ends


async def test_a_connection_that_is_cut_ends_what_is_in_flight_and_takes_nothing_more(
    node: Broker, opener: Opener
) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with Proxy(node.port) as proxy, opened(opener, uri.replace(f":{node.port}/", f":{proxy.port}/")) as lane:
        inbox = await consume(lane, queue, prefetch=1)
        await lane.publish(queue, ID, b"held", mandatory=True)
        (held,) = await inbox.take()
        (flow,) = proxy.flows
        flow.to_client.open.clear()
        sending = [
            asyncio.ensure_future(lane.publish(queue, Basic.Properties(message_id=str(number)), b"", mandatory=True))
            for number in range(5)
        ]
        await until(lambda: flow.to_client.held, "the broker has answered")
        await lies(uri, queue, 5)  # all of them: what was not written yet would not lie there in the end
        flow.cut()
        ends = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(one, ConnectionError) for one in ends), ends
        await until(lambda: not lane.is_open, "it is noticed")
        assert lane.cause
        assert await inbox.take() == [None]
        with pytest.raises(ConnectionError):
            lane.settle(held.tag, "ack")
        with pytest.raises(ConnectionError):
            await lane.publish(queue, ID, b"", mandatory=True)
    await lies(uri, queue, 6)


async def test_what_was_settled_before_a_lane_is_closed_stays_settled_and_the_rest_is_delivered_again(
    node: Broker, opener: Opener
) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with opened(opener, uri) as lane:
        await fill(lane, queue, 100)
        inbox = await consume(lane, queue, prefetch=100)
        for arrived in (await inbox.take(100))[:60]:
            lane.settle(arrived.tag, "ack")
        await lane.close()
        assert not lane.is_open
        assert await inbox.take() == [None]
    await lies(uri, queue, 40)


async def test_one_that_is_aborted_says_why_it_has_ended(node: Broker, opener: Opener) -> None:
    async with opened(opener, vhost(node)) as lane:
        lane.abort("enough")
        assert (lane.is_open, lane.cause) == (False, "enough")
        with pytest.raises(ConnectionError):
            await lane.publish("nowhere", ID, b"", mandatory=False)


# Channels


async def test_channels_of_one_connection_are_apart_and_one_that_ends_leaves_the_others(
    node: Broker, opener: Opener
) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with connected(opener, uri) as connection:
        one, two = await connection.another(), await connection.another()
        taking = [await consume(lane, queue, 1, tag) for lane, tag in ((one, "one"), (two, "two"))]
        await fill(connection.first, queue, 2)
        (of_one,), (of_two,) = [await inbox.take() for inbox in taking]
        assert {of_one.properties.message_id, of_two.properties.message_id} == {"0", "1"}
        await spoil(two)
        assert await taking[1].take() == [None]
        assert (two.is_open, one.is_open, connection.first.is_open) == (False, True, True)
        one.settle(of_one.tag, "ack")
        (again,) = await taking[0].take()
        assert (again.redelivered, again.properties.message_id) == (True, of_two.properties.message_id)
        one.settle(again.tag, "ack")
        await connection.first.publish(queue, Basic.Properties(message_id="more"), b"", mandatory=True)
        assert (await taking[0].take())[0].properties.message_id == "more"


async def test_a_channel_that_is_closed_gives_back_what_it_has_and_keeps_the_connection(
    node: Broker, opener: Opener
) -> None:
    uri = vhost(node)
    queue = await declare(uri)
    async with connected(opener, uri) as connection:
        lane = await connection.another()
        inbox = await consume(lane, queue, 5)
        await fill(connection.first, queue, 5)
        arrived = await inbox.take(5)
        for one in arrived[:3]:
            lane.settle(one.tag, "ack")
        await lane.close()
        assert (lane.is_open, connection.first.is_open) == (False, True)
        with pytest.raises(ConnectionError):
            lane.settle(arrived[4].tag, "ack")
        inbox = await consume(await connection.another(), queue, 5)
        assert [one.redelivered for one in await inbox.take(2)] == [True, True]


async def test_one_channel_that_aborts_ends_all_of_its_connection(node: Broker, opener: Opener) -> None:
    async with connected(opener, vhost(node)) as connection:
        others = [connection.first, await connection.another()]
        (await connection.another()).abort("enough")
        await until(lambda: not any(lane.is_open for lane in others), "the others have ended")
        with pytest.raises(ConnectionError):
            await others[0].publish("nowhere", ID, b"", mandatory=False)


async def test_the_numbers_of_channels_are_used_again_and_are_within_the_brokers_limit(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(open_connection, vhost(node)) as connection:
        most = connection.first.connection.connection_tune.channel_max
        monkeypatch.setattr(direct, "SPARE_CHANNELS", most - 4)
        lanes = [await connection.another() for _ in range(3)]
        with pytest.raises(NoChannelLeft):
            await connection.another()
        for _ in range(5):
            await lanes[1].close()
            lanes[1] = await connection.another()
        used = [cast(direct.DirectLane, lane).channel.number for lane in (connection.first, *lanes)]
        assert sorted(used) == [1, 2, 3, 4]
        await connection.first.publish("nowhere", ID, b"", mandatory=False)


# The runtime


async def test_the_runtime_sends_and_takes_on_either_and_comes_back(
    node: Broker, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "open_connection", opener)
    uri = vhost(node)
    async with linked((uri,)) as out, linked((uri,)) as link:
        publisher = Publisher(out, "tested")

        async def send(number: int) -> None:
            await publisher.send(
                RECEIVE.queue, b"%d" % number, message_id=str(number), message_type="task", content_type=None,
                headers={}, deadline_s=30,
            )  # fmt: skip

        async with consuming(link) as (_, got):
            for began in (0, 100):
                await asyncio.gather(*map(send, range(began, began + 100)))
                for each in (link, out):
                    (await each.lane()).abort("cut")
            bodies = set[bytes]()
            async with asyncio.timeout(20):
                while len(bodies) < 200:  # what was in hand when it was cut is delivered again
                    bodies.add((await got.get()).payload)
