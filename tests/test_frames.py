"""What belongs to a lane is taken off a connection as it arrives; everything else passes, byte for byte."""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Queue
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from workqueue.amqp import frames
from workqueue.amqp.frames import Arrival, Closed, Tap
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
    channel: int = 1

    @property
    def frames(self) -> list[bytes]:
        size = sum(map(len, self.parts))
        frames = [
            frame.marshal(Basic.Deliver("worker1.1", self.tag, self.redelivered, "", "task-queue"), self.channel),
            frame.marshal(ContentHeader(0, size, PROPERTIES), self.channel),
            *(frame.marshal(ContentBody(part), self.channel) for part in self.parts),
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

    most_bytes = 1 << 62

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


CHANNELS = (1, 2, 7)


@given(
    st.tuples(*(st.lists(DELIVERIES, max_size=4) for _ in CHANNELS)),
    st.lists(st.sampled_from(CHANNELS), max_size=60),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_messages_that_arrive_on_several_channels_at_a_time_are_kept_apart(
    sent: tuple[list[Sent], ...], turns: list[int], cuts: list[int]
) -> None:
    """The frames of one may come between those of another, at any place."""
    waiting = {
        channel: deque(one for each in deliveries for one in replace(each, channel=channel).frames)
        for channel, deliveries in zip(CHANNELS, sent, strict=True)
    }
    frames = [waiting[channel].popleft() for channel in turns if waiting[channel]]
    frames += [one for rest in waiting.values() for one in rest]
    stream = b"".join(frames)

    async def listen() -> list[Taking]:
        listening, taken = Listening(taking=False), [Taking() for _ in CHANNELS]
        for channel, receiver in zip(CHANNELS, taken, strict=True):
            listening.attach(receiver, channel)
        for start, end in pairwise([0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]):
            listening.feed_data(stream[start:end])
        return taken

    for deliveries, taken in zip(sent, asyncio.run(listen()), strict=True):
        assert [(a.tag, a.redelivered, a.body) for a in taken.deliveries] == [
            (one.tag, one.redelivered, b"".join(one.parts)) for one in deliveries
        ]


async def test_who_was_attached_before_takes_nothing_of_who_has_the_number_now() -> None:
    listening, before, now = Listening(taking=False), Taking(), Taking()
    listening.attach(before, 1)
    listening.attach(now, 1)
    listening.detach(before, 1)
    listening.feed_data(b"".join(Sent(1, False, [b"body"], False).frames))
    assert (len(before.deliveries), len(now.deliveries)) == (0, 1)


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


def test_of_a_body_that_is_larger_than_is_held_only_the_size_is_told() -> None:
    async def listen() -> list[Arrival]:
        listening = Listening()
        listening.taken.most_bytes = 10
        for parts in ([b"x" * 6, b"y" * 5], [b"x" * 6, b"y" * 4]):
            listening.feed_data(b"".join(Sent(1, False, parts, True).frames))
        return listening.taken.deliveries

    large, small = asyncio.run(listen())
    assert (large.oversized_bytes, large.body) == (11, b"")
    assert (small.oversized_bytes, small.body) == (None, b"xxxxxxyyyy")
