"""What of a message's properties can be written again: a foreign client may send more than a publish may carry."""

import logging
import struct
from collections.abc import Iterator, Mapping, Set
from typing import Any

from pamqp.commands import Basic

from workqueue.amqp.frames import HEADER, frame_of
from workqueue.amqp.properties import write_properties

log = logging.getLogger(__name__)

UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, struct.error)
DROPPED = "x-dropped-headers"
MOST_NAMED = 1000  # characters of the names of what was dropped
STORY = "x-attempts"
SHORTER = (300, 100, 30, 0)  # characters of each attempt's error, until the story fits


def encodable(properties: Basic.Properties) -> Basic.Properties:
    """Without what our library could read, and can't write: text that is not UTF-8, ..."""
    kept: dict[str, Any] = {}
    named: Iterator[tuple[str, Any]] = iter(properties)
    for name, value in named:
        if name == "headers":
            value = {key: one for key, one in (value or {}).items() if _is_encodable("headers", {key: one})}
        if _is_encodable(name, value):
            kept[name] = value
    return Basic.Properties(**kept)


def fitted(properties: Basic.Properties, ours: Set[str], most_bytes: int) -> Basic.Properties:
    """With headers that fit in one frame of `most_bytes`: all that is not `ours` gives way, the largest first, and is
    named in a header. Where not even ours fit, what the attempts say is cut, and at last the oldest attempts go."""
    headers: dict[str, Any] = dict(properties.headers or {})
    foreign = sorted(headers.keys() - ours - {DROPPED}, key=lambda name: header_bytes(headers[name]), reverse=True)
    dropped: list[str] = []
    while foreign and _frame_bytes(properties, headers) > most_bytes:
        for name in foreign[: max(1, len(foreign) // 8)]:  # thousands of small ones are not measured one by one
            del headers[name]
            dropped.append(name)
        del foreign[: max(1, len(foreign) // 8)]
        headers[DROPPED] = ", ".join(dropped)[:MOST_NAMED]
    if dropped:
        log.warning("a copy of %s does without its headers %s: they don't fit", properties.message_id, headers[DROPPED])
    if _frame_bytes(properties, headers) > most_bytes:
        _shorten(properties, headers, most_bytes)
    return _with_headers(properties, headers)


def _shorten(properties: Basic.Properties, headers: dict[str, Any], most_bytes: int) -> None:
    log.warning("a copy of %s tells its attempts in short: the story does not fit", properties.message_id)
    attempts = headers.get(STORY)
    if not isinstance(attempts, list):
        return
    for length in SHORTER:
        headers[STORY] = [
            {**one, "error": str(one.get("error", ""))[:length]} if isinstance(one, Mapping) else one
            for one in attempts
        ]
        if _frame_bytes(properties, headers) <= most_bytes:
            return
    while headers[STORY] and _frame_bytes(properties, headers) > most_bytes:
        headers[STORY] = headers[STORY][(len(headers[STORY]) + 1) // 2 :]


def header_bytes(value: Any) -> int:
    return len(write_properties(Basic.Properties(headers={"": value}), 0))


def _frame_bytes(properties: Basic.Properties, headers: Mapping[str, Any]) -> int:
    return len(frame_of(HEADER, 1, write_properties(_with_headers(properties, headers), 0)))


def _with_headers(properties: Basic.Properties, headers: Mapping[str, Any]) -> Basic.Properties:
    values: dict[str, Any] = dict(iter(properties))
    return Basic.Properties(**{**values, "headers": dict(headers)})


def _is_encodable(name: str, value: Any) -> bool:
    try:
        write_properties(Basic.Properties(**{name: value}), 0)
    except UNENCODABLE:
        return False
    return name == "headers" or not isinstance(value, bytes)
