"""A message's properties as bytes, against pamqp, which reads and writes the same."""

import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode, frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from workqueue.amqp.copies import UNENCODABLE, encodable
from workqueue.amqp.frames import START_BYTES
from workqueue.amqp.properties import DEEPEST, PROPERTIES, read_properties, write_properties
from workqueue.delivery import Properties

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
    content = frame.marshal(ContentHeader(0, 7, Basic.Properties(**said)), 1)[START_BYTES:-1]
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


def nested(levels: int, *, in_list: bool) -> bytes:
    """The content of a header frame whose headers have as many levels."""
    table = b""
    for _ in range(levels - 1):
        inner = struct.pack(">I", len(table)) + table
        inner = b"F" + inner
        table = b"\x01a" + (b"A" + struct.pack(">I", len(inner)) + inner if in_list else inner)
    return bytes(12) + struct.pack(">HI", PROPERTIES["headers"], len(table)) + table


@pytest.mark.parametrize("in_list", [False, True])
def test_headers_that_are_too_deep_can_not_be_read_and_others_can_be_written_again(in_list: bool) -> None:
    most = DEEPEST // (1 + in_list)
    read = read_properties(nested(most, in_list=in_list))
    assert read is not None
    assert write_properties(Basic.Properties(headers=dict(read.headers)), 0)
    for levels in (most + 1, 480, 490, 495, 500, 2000):
        assert read_properties(nested(levels, in_list=in_list)) is None


@given(st.fixed_dictionaries({}, optional=MAYBE | {"user_id": WORDS}), st.integers(0, 2**40))
def test_what_is_written_is_what_the_client_library_writes(said: dict[str, Any], size: int) -> None:
    properties = Basic.Properties(**said)
    for _ in range(2):  # headers of text are kept
        assert write_properties(properties, size) == ContentHeader(0, size, properties).marshal()


@pytest.mark.parametrize(
    "said",
    [
        {"message_id": "i" * 256},
        {"message_id": "é" * 128},
        {"message_id": "\ud800"},
        {"message_id": b"bytes"},
        {"headers": {"x": "\ud800"}},
        {"headers": {"x": {1, 2}}},
        {"headers": {"x" * 128: {"y": [1, None]}, "z": "text"}},
        {"headers": {}},
        {"headers": [1]},
        {"headers": "text"},
        {"priority": 256},
        {"priority": "1"},
        {"timestamp": 3},
        {"message_id": "i" * 255, "correlation_id": "é" * 127},
    ],
    ids=ascii,
)
def test_what_can_not_be_written_is_refused_as_the_client_library_refuses_it(said: dict[str, Any]) -> None:
    properties = Basic.Properties(**said)
    try:
        told: bytes | type[Exception] = ContentHeader(0, 7, properties).marshal()
    except UNENCODABLE as error:
        told = type(error)
    try:
        ours: bytes | type[Exception] = write_properties(properties, 7)
    except UNENCODABLE as error:
        ours = type(error)
    assert ours == told


def test_a_header_that_is_too_deep_to_be_written_is_left_out_of_a_copy() -> None:
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"y": deep}
    with pytest.raises(UNENCODABLE):
        write_properties(Basic.Properties(headers={"deep": deep}), 0)
    assert encodable(Basic.Properties(headers={"deep": deep, "x": 1})).headers == {"x": 1}


def test_a_table_a_number_and_a_time_are_bytes_by_themselves() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 600, UTC)
    assert encode.field_table({"a": "b"}) == b"\x00\x00\x00\x08\x01aS\x00\x00\x00\x01b"
    assert encode.octet(2) == b"\x02"
    assert encode.short_string("é") == b"\x02\xc3\xa9"
    assert encode.timestamp(at) == int(at.timestamp()).to_bytes(8, "big")


def test_headers_that_are_equal_and_not_of_one_type_are_written_as_what_they_are() -> None:
    for value in (1, True, 1.0, "1", Word("1")):
        properties = Basic.Properties(headers={"x": value})
        assert write_properties(properties, 0) == ContentHeader(0, 0, properties).marshal()


class Word(str):
    """A text that is not just one."""
