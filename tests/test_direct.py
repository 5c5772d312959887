"""The lane that writes frames itself: each publish has its own end, and what is written is what the client library
would write. What it shares with a plain channel of aio-pika is in test_lane.py."""

import asyncio
import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq import Channel
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from yarl import URL

from tests.harness import QUEUE, Site, simulate
from workqueue.amqp.direct import DirectLane
from workqueue.amqp.frames import Arrival, Closed
from workqueue.amqp.handshake import connect
from workqueue.amqp.lane import HeaderTooLarge, Nacked, Refused, Unroutable
from workqueue.delivery import Properties

PROPERTIES = Basic.Properties(message_id="identity", headers={"x-attempts": []}, delivery_mode=2)


class Broker:
    """In place of a socket and a channel: what was written, and what closes it."""

    def __init__(self) -> None:
        self.written, self.number, self.aborted = b"", 1, False
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection = SimpleNamespace(connection_tune=SimpleNamespace(frame_max=4096))
        self.writes: list[bytes] = []
        self.transport: Any = SimpleNamespace(
            write=self._write,
            writelines=lambda parts: self._write(b"".join(parts)),
            is_closing=lambda: self.aborted,
            get_write_buffer_size=lambda: 0,
        )
        self.tap = SimpleNamespace(attach=lambda receiver, number: None, detach=lambda receiver, number: None)
        self.cause: str | None = None
        me: Any = self
        self.lane = DirectLane(me, me)

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    def _write(self, data: bytes) -> None:
        self.written += data
        self.writes.append(data)

    def abort(self, cause: str) -> None:
        self.cause, self.aborted = cause, True

    def publish(self, message_id: str | None) -> "asyncio.Future[None]":
        properties = Basic.Properties(message_id=message_id)
        return asyncio.ensure_future(self.lane.publish("queue", properties, b"body", mandatory=True))


def frames_in(written: bytes) -> list[Any]:
    """What the client library reads there, on channel 1 and in frames as long as agreed."""
    read = []
    while written:
        used, number, one = frame.unmarshal(written)
        assert number == 1
        assert used <= 4096
        read.append(one)
        written = written[used:]
    return read


async def test_each_publish_ends_as_its_own_confirm_says() -> None:
    broker = Broker()
    first, *several, nacked, open_ = (broker.publish(str(n)) for n in range(6))
    await asyncio.sleep(0)
    broker.lane.confirmed(1, multiple=False, stored=True)
    await first
    assert not any(one.done() for one in several)
    broker.lane.confirmed(4, multiple=True, stored=True)
    await asyncio.gather(*several)
    broker.lane.confirmed(5, multiple=True, stored=False)
    with pytest.raises(Nacked):
        await nacked
    broker.lane.confirmed(5, multiple=False, stored=True)  # one that is known already, and one that is not: ignored
    broker.lane.confirmed(99, multiple=False, stored=True)
    assert not open_.done()
    broker.lane.confirmed(0, multiple=True, stored=True)
    await asyncio.sleep(0)
    assert not open_.done()
    broker.lane.confirmed(6, multiple=True, stored=True)
    await open_


async def test_what_is_published_in_one_turn_with_others_in_flight_is_written_at_once_and_nothing_waits_for_more() -> (
    None
):
    broker = Broker()
    alone = broker.publish("first")
    await asyncio.sleep(0)
    assert len(broker.writes) == 1
    many = [broker.publish(str(n)) for n in range(50)]
    await asyncio.sleep(0)
    assert len(broker.writes) == 1
    assert broker.lane.buffered_bytes > 50 * len(b"body")
    await asyncio.sleep(0)
    assert [len(broker.writes), broker.lane.buffered_bytes] == [2, 0]
    ids = [sent.properties.message_id for sent in frames_in(broker.written) if isinstance(sent, ContentHeader)]
    assert ids == ["first", *map(str, range(50))]
    broker.lane.confirmed(51, multiple=True, stored=True)
    await asyncio.gather(alone, *many)


async def test_large_messages_are_not_held_back() -> None:
    broker = Broker()
    properties = Basic.Properties(message_id="large")
    several = [
        asyncio.ensure_future(broker.lane.publish("q", properties, bytes(40_000), mandatory=False)) for _ in range(4)
    ]
    await asyncio.sleep(0)
    assert [len(data) // 40_000 for data in broker.writes] == [1, 2]
    await asyncio.sleep(0)
    assert broker.lane.buffered_bytes == 0
    assert len(broker.writes) == 3
    broker.lane.confirmed(4, multiple=True, stored=True)
    await asyncio.gather(*several)


async def test_what_was_not_written_yet_when_the_connection_goes_is_not_written_and_told() -> None:
    broker = Broker()
    several = [broker.publish(str(n)) for n in range(3)]
    await asyncio.sleep(0)
    broker.lane.abort("cut")
    ended = await asyncio.gather(*several, return_exceptions=True)
    assert [type(error) for error in ended] == [ConnectionError] * 3
    assert len(broker.writes) == 1


async def test_a_publish_that_comes_back_fails_at_its_confirm_and_no_other_does() -> None:
    broker = Broker()
    lost, kept, again = broker.publish("a"), broker.publish("b"), broker.publish("a")
    await asyncio.sleep(0)
    broker.lane.returned(Arrival(0, redelivered=False, properties=Properties(message_id="a")))
    broker.lane.confirmed(3, multiple=True, stored=True)
    with pytest.raises(Unroutable):
        await lost
    await asyncio.gather(kept, again)


async def test_a_channel_that_closes_ends_every_publish_and_takes_no_other() -> None:
    broker = Broker()
    waiting, given_up = broker.publish("a"), broker.publish("b")
    await asyncio.sleep(0)
    given_up.cancel()
    broker.closing.set_result(None)
    with pytest.raises(ConnectionError):
        await waiting
    written = broker.written
    with pytest.raises(ConnectionError):
        await broker.publish("c")
    with pytest.raises(ConnectionError):
        broker.lane.settle(1, "ack")
    with pytest.raises(ConnectionError):
        broker.lane.settle(1, "requeue")
    assert broker.written == written


TOO_LARGE = Closed(406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8")


@pytest.mark.parametrize("raised", [Exception, asyncio.CancelledError])  # as aiormq does
async def test_a_call_on_a_channel_that_goes_without_a_reason_is_a_lost_connection_and_no_fault_of_ours(
    raised: type[BaseException],
) -> None:
    async def gone(*_: Any, **__: Any) -> Any:
        raise raised

    broker: Any = Broker()
    broker.basic_qos = broker.basic_cancel = broker.queue_declare = gone
    broker.on_consumer_cancel_callbacks = set()
    lane = broker.lane
    for call in (lane.consume("queue", "tag", 1, lambda arrived: None, 100), lane.cancel("tag"), lane.look("queue")):
        with pytest.raises(ConnectionError, match="the channel was lost"):
            await call


async def test_a_refusal_ends_all_in_flight_and_says_whether_it_can_only_be_over_this_one() -> None:
    for count in (1, 2):
        broker = Broker()
        publishing = [broker.publish(str(number)) for number in range(count)]
        await asyncio.sleep(0)
        broker.lane.closed(TOO_LARGE)
        for one in publishing:
            with pytest.raises(Refused) as refusal:
                await one
            assert (refusal.value.why, refusal.value.alone) == (TOO_LARGE, count == 1)
        assert not broker.lane.is_open


@pytest.mark.parametrize("code", [320, 504, 506, 541])
async def test_what_may_pass_is_no_refusal(code: int) -> None:
    broker = Broker()
    publishing = broker.publish("a")
    await asyncio.sleep(0)
    broker.lane.closed(Closed(code, "it passes"))
    with pytest.raises(ConnectionError, match="it passes"):
        await publishing


@pytest.mark.parametrize("code", [403, 404, 406, 501, 530])
def test_what_would_be_refused_again_is_a_refusal(code: int) -> None:
    assert Closed(code, "").refusal


async def test_a_header_that_exceeds_a_frame_is_not_written_and_without_a_limit_all_are() -> None:
    large = Basic.Properties(message_id="a", headers={"x": "y" * 5000})
    broker = Broker()
    with pytest.raises(HeaderTooLarge):
        await broker.lane.publish("queue", large, b"body", mandatory=True)
    assert (broker.written, broker.lane.in_flight) == (b"", 0)
    broker.connection.connection_tune.frame_max = 0
    unlimited = DirectLane(*[cast(Any, broker)] * 2)
    publishing = asyncio.ensure_future(unlimited.publish("queue", large, b"body", mandatory=True))
    await asyncio.sleep(0)
    assert broker.written.endswith(b"body\xce")
    publishing.cancel()


async def test_a_message_that_comes_back_and_is_not_known_ends_the_connection() -> None:
    """Its confirm would else be taken for that of a message that was stored."""
    broker = Broker()
    publishing = broker.publish("a")
    await asyncio.sleep(0)
    broker.lane.returned(Arrival(0, redelivered=False, properties=Properties(message_id="b")))
    with pytest.raises(ConnectionError):
        await publishing
    assert broker.aborted


async def test_a_publish_that_cannot_be_encoded_leaves_the_count_of_confirms_right() -> None:
    broker = Broker()
    nothing: Any = object()
    impossible = Basic.Properties(headers={"x": nothing})
    with pytest.raises(TypeError):
        await broker.lane.publish("queue", impossible, b"", mandatory=True)
    assert broker.written == b""
    good = broker.publish("a")
    await asyncio.sleep(0)
    broker.lane.confirmed(1, multiple=False, stored=True)
    await good


async def test_frames_are_those_of_the_client_library_and_no_longer_than_agreed() -> None:
    broker, body = Broker(), bytes(range(256)) * 40
    publishing = asyncio.ensure_future(broker.lane.publish("queue", PROPERTIES, body, mandatory=True))
    await asyncio.sleep(0)
    broker.lane.settle(2**40, "ack")
    broker.lane.settle(7, "requeue")
    broker.lane.settle(8, "reject")
    read = frames_in(broker.written)
    method, header, *bodies, ack, nack, reject = read
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("", "queue", True)
    assert isinstance(header, ContentHeader)
    assert (header.body_size, header.properties) == (len(body), PROPERTIES)
    assert b"".join(one.value for one in bodies if isinstance(one, ContentBody)) == body
    assert isinstance(ack, Basic.Ack)
    assert (ack.delivery_tag, ack.multiple) == (2**40, False)
    assert isinstance(nack, Basic.Nack)
    assert (nack.delivery_tag, nack.multiple, nack.requeue) == (7, False, True)
    assert isinstance(reject, Basic.Reject)
    assert (reject.delivery_tag, reject.requeue) == (8, False)
    publishing.cancel()


async def test_publishing_and_acking_leave_nothing_behind(site: Site) -> None:
    """One future a publish was once kept for as long as the channel: a kilobyte a task."""
    await site.send(simulate(1))  # declares the queue
    connection, socket = await connect(URL(site.uri), "many", 5.0)
    async with connection:
        underlay = await connection.channel()
        assert isinstance(underlay, Channel)
        busy = DirectLane(socket, underlay)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        await busy.consume(QUEUE, "many", 1, arrived.put_nowait, 1 << 20)

        async def work(count: int) -> int:
            for _ in range(count):
                await busy.publish(QUEUE, PROPERTIES, b"body", mandatory=True)
                busy.settle((await arrived.get()).tag, "ack")
            gc.collect()
            return len(gc.get_objects())

        before = await work(20)
        assert await work(300) - before < 100


async def test_a_worker_that_gets_nothing_but_deliveries_keeps_its_connection(site: Site) -> None:
    worker = await site.worker(WORKQUEUE_HEARTBEAT_S="1")  # the library gives a silent broker up after 6 s
    tasks = simulate(450, seconds=0.02)
    await site.send(tasks)
    await site.all_end(tasks)
    assert not worker.says("lost a consumer")


UNREADABLE: dict[str, tuple[dict[str, Any], bytes, bytes]] = {
    "an id that is not UTF-8": ({"message_id": "####"}, b"####", b"\xff\xfe\xff\xfe"),
    "a header whose name is not UTF-8": ({"headers": {"####": 1}}, b"####", b"\xff\xfe\xff\xfe"),
}


async def test_a_message_whose_properties_cannot_be_read_is_dead_lettered_and_costs_no_connection(site: Site) -> None:
    worker = await site.worker()
    connection, socket = await connect(URL(site.uri), "foreign", 5.0)
    async with connection:
        await connection.channel(publisher_confirms=False)
        for properties, right, wrong in UNREADABLE.values():
            header = frame.marshal(ContentHeader(0, len(b"{}"), Basic.Properties(**properties)), 1)
            assert right in header
            cast(asyncio.Transport, socket.transport).write(
                frame.marshal(Basic.Publish(exchange="", routing_key=QUEUE), 1)
                + header.replace(right, wrong)
                + frame.marshal(ContentBody(b"{}"), 1)
            )
        letters = await site.dead_letters(len(UNREADABLE))
    assert [str(letter.headers["x-error"]) for letter in letters] == ["its properties can't be read"] * len(UNREADABLE)
    assert all(letter.body == b"{}" for letter in letters)
    assert not worker.says("lost a consumer")
    tasks = simulate(5)
    await site.send(tasks)
    await site.all_end(tasks)
