"""Deliveries are taken off a connection as they arrive; everything else on it passes, byte for byte."""

import asyncio
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Queue
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from tests.harness import Site, simulate
from workqueue import tap
from workqueue.tap import Arrival, Tap, connect

HEARTBEAT = frame.marshal(Heartbeat(), 0)
OTHERS = [
    HEARTBEAT,
    frame.marshal(Queue.DeclareOk("queue", 1, 2), 1),
    frame.marshal(Basic.Cancel("worker", False), 1),
]
PROPERTIES = Basic.Properties(message_id="identity", headers={"x-attempts": []}, delivery_mode=2)


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


class Listening(Tap):
    """A tap, what it passed on, and what it took."""

    def __init__(self, *, sink: bool = True) -> None:
        super().__init__()
        self._shown_s = float("inf")  # adds no heartbeat of its own
        self.taken: list[Arrival] = []
        if sink:
            self.sink = self.taken.append

    @property
    def passed(self) -> bytes:
        buffer: bytearray = self._buffer  # type: ignore[attr-defined]
        return bytes(buffer)


def heard(stream: bytes, cuts: list[int], *, sink: bool = True) -> Listening:
    """What a tap makes of a stream that arrives in these pieces."""

    async def listen() -> Listening:
        listening = Listening(sink=sink)
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
    assert [(a.tag, a.redelivered, a.body) for a in listening.taken] == [
        (one.tag, one.redelivered, b"".join(one.parts)) for one in deliveries
    ]
    assert all(arrived.properties == PROPERTIES for arrived in listening.taken)
    others = [one for one in frames if one in OTHERS]
    assert listening.passed == b"".join(others)


def test_before_there_is_a_consumer_everything_passes() -> None:
    stream = b"".join([OTHERS[0], *Sent(1, False, [b"body"], False).frames, OTHERS[1]])
    listening = heard(stream, [30])
    assert listening.taken
    listening = heard(stream, [30], sink=False)
    assert (listening.passed, listening.taken) == (stream, [])


@pytest.mark.parametrize("said", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_broker_is_passed_on_at_once(said: bytes) -> None:
    assert heard(said, []).passed == said


def test_a_frame_that_ends_wrong_is_left_to_the_client_library() -> None:
    deliver, header, body = Sent(1, False, [b"body"], False).frames
    listening = heard(deliver[:-1] + b"\x00" + header + body, [])
    assert (listening.taken, listening.passed) == ([], deliver[:-1] + b"\x00" + header + body)


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
    listening._shown_s -= tap.ALIVE_S + 0.1
    listening.feed_data(b"".join(Sent(1, False, [b"body"], False).frames))
    assert listening.passed == HEARTBEAT * 2


async def test_a_worker_that_gets_nothing_but_deliveries_keeps_its_connection(site: Site) -> None:
    worker = await site.worker(WORKQUEUE_HEARTBEAT_S="1")  # the library gives a silent broker up after 6 s
    tasks = simulate(450, seconds=0.02)
    await site.send(tasks)
    await site.all_end(tasks)
    assert not worker.says("lost its consumer")


SAID, BROKEN = datetime(2026, 11, 25, tzinfo=UTC), struct.pack(">Q", 10**15)
UNREADABLE: dict[str, tuple[dict[str, Any], bytes, bytes]] = {
    "an id that is not UTF-8": ({"message_id": "####"}, b"####", b"\xff\xfe\xff\xfe"),
    "a time in the year 31690708": ({"timestamp": SAID}, struct.pack(">Q", int(SAID.timestamp())), BROKEN),
}


async def test_a_message_whose_properties_cannot_be_read_is_dead_lettered_and_costs_no_connection(site: Site) -> None:
    worker = await site.worker()
    connection, socket = await connect(URL(site.uri), "foreign", 5.0)
    async with connection:
        await connection.channel(publisher_confirms=False)
        for properties, right, wrong in UNREADABLE.values():
            header = frame.marshal(ContentHeader(0, len(b"{}"), Basic.Properties(**properties)), 1)
            assert right in header
            socket.writer.write(
                frame.marshal(Basic.Publish(exchange="", routing_key="task-queue"), 1)
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
