"""The properties of a message as bytes: read from the content of a header frame, and written to one.

pamqp does both, by way of the type of each field; written so, they are a tenth of what a publish takes. It still writes
whatever is rare. The layout is that of section 4.2.6.1 of https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf.
"""

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from pamqp import decode, encode
from pamqp.commands import Basic

from workqueue.delivery import Properties

PROPERTIES = {
    "content_type": 1 << 15, "content_encoding": 1 << 14, "headers": 1 << 13, "delivery_mode": 1 << 12,
    "priority": 1 << 11, "correlation_id": 1 << 10, "reply_to": 1 << 9, "expiration": 1 << 8, "message_id": 1 << 7,
    "timestamp": 1 << 6, "message_type": 1 << 5, "user_id": 1 << 4, "app_id": 1 << 3,
}  # fmt: skip
"""With their flags, in the order in which they come; those after the type are written, and not read."""
BASIC = 60  # the class of the methods for messages
NOT_READ = ("user_id", "app_id")
NOT_KEPT = ("delivery_mode", "expiration", "timestamp")
FIXED_BYTES = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
DEEPEST = 100  # levels of headers: each is a call of a call, and Python has 1000 for all that goes on
CONTENT = struct.Struct(">HHQ")  # the class, the weight, the size of the body
FLAGS = struct.Struct(">H")


def read_properties(content: bytes) -> Properties | None:
    """From the content of a header frame; None if a foreign client has sent what can't be read."""
    at = 14  # after the class, the weight, the size of the body, and the flags of what follows
    flags = int.from_bytes(content[12:at], "big")
    read: dict[str, Any] = {}
    try:
        for name, bytes_, kept in properties_of(flags):
            start = at
            if bytes_:
                at += bytes_
                if kept:
                    read[name] = content[start]
            elif name == "headers":
                at += 4 + int.from_bytes(content[at : at + 4], "big")
                read[name] = table(content[start:at])
            else:
                at += 1 + content[at]
                text = content[start + 1 : at].decode()
                if kept:
                    read[name] = text
    except (ValueError, LookupError, struct.error, RecursionError):
        return None
    return Properties(**read)


@lru_cache(maxsize=16)
def properties_of(flags: int) -> list[tuple[str, int, bool]]:
    """What follows flags: the names, the size if it is always the same, and whether it is kept."""
    found = (name for name, flag in PROPERTIES.items() if flags & flag and name not in NOT_READ)
    return [(name, FIXED_BYTES.get(name, 0), name not in NOT_KEPT) for name in found]


@lru_cache(maxsize=16)
def table(content: bytes) -> Mapping[str, Any]:
    """Headers. Most messages have the same ones, and to read them takes as long as to read all else. Raises as pamqp
    does, and ValueError for those that are deeper than what writes, compares or checks them can follow."""
    read: Mapping[str, Any] = decode.field_table(content)[1]
    level: list[Any] = [read]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
                 if isinstance(inner, dict | list)]  # fmt: skip
        if not level:
            return read
    raise ValueError(f"headers of more than {DEEPEST} levels")


def write_properties(properties: Basic.Properties, body_bytes: int) -> bytes:
    """The content of a header frame. Raises as pamqp does for what can't be written, see `UNENCODABLE`."""
    flags = 0
    parts = [CONTENT.pack(BASIC, 0, body_bytes), b""]
    for name, flag, write in WRITTEN:
        value = getattr(properties, name)
        if value is not None and value != "":
            flags |= flag
            parts.append(write(value))
    parts[1] = FLAGS.pack(flags)
    return b"".join(parts)


def _short(text: Any) -> bytes:
    if type(text) is str:
        data = text.encode()
        if len(data) < 256:
            return bytes((len(data),)) + data
    return encode.short_string(text)


def _headers(headers: Any) -> bytes:
    if isinstance(headers, dict) and all(type(value) is str for value in headers.values()):
        return _texts(tuple(headers.items()))  # those of nearly all new tasks, which have the same ones
    return encode.field_table(headers)


@lru_cache(maxsize=16)
def _texts(headers: tuple[tuple[str, str], ...]) -> bytes:
    return encode.field_table(dict(headers))


Write = Callable[[Any], bytes]
OTHER: dict[str, Write] = {
    "headers": _headers,
    "delivery_mode": encode.octet,
    "priority": encode.octet,
    "timestamp": encode.timestamp,
}
WRITTEN: list[tuple[str, int, Write]] = [(name, flag, OTHER.get(name, _short)) for name, flag in PROPERTIES.items()]
"""The properties, with their flags and what writes each."""
