"""What belongs to a lane is taken off a connection as it arrives; everything else passes, byte for byte."""

import asyncio
import gc
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq import Channel
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Queue
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from tests.harness import QUEUE, Site, simulate
from workqueue.amqp import frames
from workqueue.amqp.frames import Arrival, Closed, Tap, read_properties
from workqueue.amqp.handshake import connect
from workqueue.amqp.lane import HeaderTooLarge, Lane, Nacked, Refused, Unroutable
from workqueue.delivery import Properties

HEARTBEAT = frame.marshal(Heartbeat(), 0)
OTHERS = [
    HEARTBEAT,
    frame.marshal(Queue.DeclareOk("queue", 1, 2), 1),
    frame.marshal(Basic.Cancel("worker", False), 1),
]
PROPERTIES = Basic.Properties(message_id="identity", headers={"x-attempts": []}, delivery_mode=2)
READ = Properties(headers={"x-attempts": []}, message_id="identity")


@dataclass
class Sent:
    """Frames of a delivery; a heartbeat, which may come between any two, in between if told so."""

    tag: int
    redelivered: bool
    parts: list[bytes]
    heartbeats: bool

    @property
    def frames(self) -> list[bytes]:
        size = sum(map(len, self.parts))
        frames = [
            frame.marshal(Basic.Deliver("worker1.1", self.tag, self.redelivered, "", "task-queue"), 1),
            frame.marshal(ContentHeader(0, size, PROPERTIES), 1),
            *(frame.marshal(ContentBody(part), 1) for part in self.parts),
        ]
        return [one for each in frames for one in ([HEARTBEAT, each] if self.heartbeats else [each])]


DELIVERIES = st.builds(
    Sent,
    st.integers(1, 2**63 - 1),
    st.booleans(),
    st.lists(st.binary(min_size=1, max_size=40), max_size=3),
    st.booleans(),
)


class Taking:
    """In place of a lane: keeps what it gets."""

    def __init__(self) -> None:
        self.deliveries: list[Arrival] = []
        self.returns: list[Arrival] = []
        self.confirms: list[tuple[int, bool, bool]] = []
        self.closings: list[Closed] = []
        self.deliver, self.returned, self.closed = self.deliveries.append, self.returns.append, self.closings.append

    def confirmed(self, tag: int, *, multiple: bool, stored: bool) -> None:
        self.confirms.append((tag, multiple, stored))


class Listening(Tap):
    """A tap, what it passed on, and what it took."""

    def __init__(self, *, taking: bool = True) -> None:
        super().__init__()
        self._shown_s = float("inf")  # adds no heartbeat of its own
        self.taken = Taking()
        if taking:
            self.attach(self.taken, 1)

    @property
    def passed(self) -> bytes:
        buffer: bytearray = self._buffer  # type: ignore[attr-defined]
        return bytes(buffer)


def heard(stream: bytes, cuts: list[int], *, taking: bool = True) -> Listening:
    """What a tap makes of a stream that arrives in these pieces."""

    async def listen() -> Listening:
        listening = Listening(taking=taking)
        edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
        for start, end in pairwise(edges):
            listening.feed_data(stream[start:end])
        return listening

    return asyncio.run(listen())


@given(st.lists(st.one_of(DELIVERIES, st.sampled_from(OTHERS)), max_size=8), st.lists(st.integers(0, 5000), max_size=8))
def test_in_whatever_pieces_they_arrive_deliveries_are_taken_whole_and_the_rest_passes(
    sent: list[Sent | bytes], cuts: list[int]
) -> None:
    frames = [one for each in sent for one in ([each] if isinstance(each, bytes) else each.frames)]
    listening = heard(b"".join(frames), cuts)
    deliveries = [one for one in sent if isinstance(one, Sent)]
    assert [(a.tag, a.redelivered, a.body) for a in listening.taken.deliveries] == [
        (one.tag, one.redelivered, b"".join(one.parts)) for one in deliveries
    ]
    assert all(arrived.properties == READ for arrived in listening.taken.deliveries)
    others = [one for one in frames if one in OTHERS]
    assert listening.passed == b"".join(others)


def test_before_there_is_a_lane_everything_passes() -> None:
    stream = b"".join([OTHERS[0], *Sent(1, False, [b"body"], False).frames, OTHERS[1]])
    listening = heard(stream, [30])
    assert listening.taken.deliveries
    listening = heard(stream, [30], taking=False)
    assert (listening.passed, listening.taken.deliveries) == (stream, [])


@pytest.mark.parametrize("said", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_broker_is_passed_on_at_once(said: bytes) -> None:
    assert heard(said, []).passed == said


def test_a_frame_that_ends_wrong_is_left_to_the_client_library() -> None:
    deliver, header, body = Sent(1, False, [b"body"], False).frames
    listening = heard(deliver[:-1] + b"\x00" + header + body, [])
    assert (listening.taken.deliveries, listening.passed) == ([], deliver[:-1] + b"\x00" + header + body)


async def test_what_had_begun_to_arrive_when_the_connection_ended_is_passed_on() -> None:
    listening = Listening()
    listening.feed_data(OTHERS[1][:-3])
    assert listening.passed == b""
    listening.feed_eof()
    assert listening.passed == OTHERS[1][:-3]


async def test_a_connection_busy_with_deliveries_shows_now_and_then_that_it_is_alive() -> None:
    listening = Listening()
    listening._shown_s = 0.0
    for tag in range(100):
        listening.feed_data(b"".join(Sent(tag, False, [b"body"], False).frames))
    assert listening.passed == HEARTBEAT
    listening._shown_s -= frames.ALIVE_S + 0.1
    listening.feed_data(b"".join(Sent(1, False, [b"body"], False).frames))
    assert listening.passed == HEARTBEAT * 2


def test_confirms_and_returns_are_taken_too() -> None:
    returned = frame.marshal(Basic.Return(312, "NO_ROUTE", "", "nowhere"), 1)
    content = [frame.marshal(ContentHeader(0, 4, PROPERTIES), 1), frame.marshal(ContentBody(b"body"), 1)]
    frames = [
        frame.marshal(Basic.Ack(1, False), 1),
        OTHERS[1],
        returned,
        *content,
        frame.marshal(Basic.Ack(3, True), 1),
        frame.marshal(Basic.Nack(4, False), 1),
        frame.marshal(Basic.Nack(6, True), 1),
    ]
    listening = heard(b"".join(frames), [7, 40, 80])
    assert listening.taken.confirms == [(1, False, True), (3, True, True), (4, False, False), (6, True, False)]
    assert [(one.properties, one.body) for one in listening.taken.returns] == [(READ, b"body")]
    assert (listening.taken.deliveries, listening.passed) == ([], OTHERS[1])


class Broker:
    """In place of a socket and a channel: what was written, and what closes it."""

    def __init__(self) -> None:
        self.written, self.number, self.aborted = b"", 1, False
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection = SimpleNamespace(connection_tune=SimpleNamespace(frame_max=4096))
        self.transport: Any = SimpleNamespace(write=self._write, is_closing=lambda: self.aborted, abort=self._abort)
        self.tap = SimpleNamespace(attach=lambda receiver, number: None)
        me: Any = self
        self.lane = Lane(me, me)

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    def _write(self, data: bytes) -> None:
        self.written += data

    def _abort(self) -> None:
        self.aborted = True

    def publish(self, message_id: str | None) -> "asyncio.Future[None]":
        properties = Basic.Properties(message_id=message_id)
        return asyncio.ensure_future(self.lane.publish("queue", properties, b"body", mandatory=True))


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
        broker.lane.ack(1)
    with pytest.raises(ConnectionError):
        broker.lane.requeue(1)
    assert broker.written == written


TOO_LARGE = Closed(406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8")


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


@pytest.mark.parametrize("code", [320, 506, 541])
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
    unlimited = Lane(*[cast(Any, broker)] * 2)
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


def test_of_a_body_that_is_larger_than_is_held_only_the_size_is_told() -> None:
    async def listen() -> list[Arrival]:
        listening = Listening()
        listening.most_bytes = 10
        for parts in ([b"x" * 6, b"y" * 5], [b"x" * 6, b"y" * 4]):
            listening.feed_data(b"".join(Sent(1, False, parts, True).frames))
        return listening.taken.deliveries

    large, small = asyncio.run(listen())
    assert (large.oversized_bytes, large.body) == (11, b"")
    assert (small.oversized_bytes, small.body) == (None, b"xxxxxxyyyy")


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
    broker.lane.ack(2**40)
    broker.lane.requeue(7)
    broker.lane.reject(8)
    read, rest = [], broker.written
    while rest:
        used, number, one = frame.unmarshal(rest)
        assert number == 1
        assert used <= 4096
        read.append(one)
        rest = rest[used:]
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


async def astray(message: object) -> None:
    raise AssertionError(message)


async def test_publishing_and_acking_leave_nothing_behind(site: Site) -> None:
    """One future a publish was once kept for as long as the channel: a kilobyte a task."""
    await site.send(simulate(1))  # declares the queue
    connection, socket = await connect(URL(site.uri), "many", 5.0)
    async with connection:
        underlay = await connection.channel()
        assert isinstance(underlay, Channel)
        busy = Lane(socket, underlay)
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()
        busy.deliver = arrived.put_nowait
        await underlay.basic_consume(QUEUE, astray)

        async def work(count: int) -> int:
            for _ in range(count):
                await busy.publish(QUEUE, PROPERTIES, b"body", mandatory=True)
                busy.ack((await arrived.get()).tag)
            gc.collect()
            return len(gc.get_objects())

        before = await work(20)
        assert await work(300) - before < 100


async def test_a_worker_that_gets_nothing_but_deliveries_keeps_its_connection(site: Site) -> None:
    worker = await site.worker(WORKQUEUE_HEARTBEAT_S="1")  # the library gives a silent broker up after 6 s
    tasks = simulate(450, seconds=0.02)
    await site.send(tasks)
    await site.all_end(tasks)
    assert not worker.says("lost its consumer")


WORDS = st.text(max_size=20)
MAYBE = {
    "content_type": WORDS,
    "content_encoding": WORDS,
    "headers": st.dictionaries(WORDS, st.one_of(WORDS, st.integers(-(2**31), 2**31), st.booleans()), max_size=3),
    "delivery_mode": st.sampled_from([1, 2]),
    "priority": st.integers(0, 255),
    "correlation_id": WORDS,
    "reply_to": WORDS,
    "expiration": WORDS,
    "message_id": WORDS,
    "timestamp": st.datetimes(datetime(2000, 1, 1), timezones=st.just(UTC)),  # as hypothesis wants it
    "message_type": WORDS,
    "app_id": WORDS,
}


@given(st.fixed_dictionaries({}, optional=MAYBE))
def test_what_a_sender_says_is_read_as_the_client_library_reads_it(said: dict[str, Any]) -> None:
    content = frame.marshal(ContentHeader(0, 7, Basic.Properties(**said)), 1)[frames.START_BYTES : -1]
    header = ContentHeader()
    header.unmarshal(content)
    read = header.properties
    assert read_properties(content) == Properties(
        read.content_type, read.content_encoding, read.headers or {}, read.priority, read.correlation_id,
        read.reply_to, read.message_id, read.message_type,
    )  # fmt: skip


@given(st.binary(max_size=60))
def test_whatever_bytes_are_in_place_of_properties_reading_them_raises_nothing(noise: bytes) -> None:
    read_properties(bytes(12) + noise)


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
    assert not worker.says("lost its consumer")
    tasks = simulate(5)
    await site.send(tasks)
    await site.all_end(tasks)
