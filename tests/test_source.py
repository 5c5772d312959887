"""Where tasks come from: lines of JSON."""

import json
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from tests.generated.producer.messages.json import Nap, Task
from workqueue.client.sending import envelope
from workqueue.codec import Undecodable
from workqueue.errors import InputInvalid
from workqueue.producer import source
from workqueue.producer.source import lines

NAP = {"kind": "nap", "seconds": 0.5}
WHOLE = {
    "id": "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01",
    "created_at": "2026-11-25T09:30:00.25+01:00",
    "payload": NAP,
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Any]]:
    """The tasks of a file with these lines."""

    def reading(*given: bytes | dict[str, Any]) -> list[Any]:
        whole = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in given)
        (tmp_path / "tasks.jsonl").write_bytes(whole)
        return list(lines(str(tmp_path / "tasks.jsonl"), Task))

    return reading


def test_a_payload_gets_an_id_of_its_own_and_the_time(read: Callable[..., list[Any]]) -> None:
    one, two = read(NAP, NAP)
    assert one.id != two.id
    assert one.id < two.id  # by the time at their beginning
    assert one.payload == Nap(kind="nap", seconds=0.5)
    assert timedelta() <= datetime.now(UTC) - one.created_at < timedelta(minutes=1)


def test_a_whole_task_keeps_its_id_and_its_time(read: Callable[..., list[Any]]) -> None:
    for task in read(WHOLE, WHOLE):
        assert task.id == UUID(str(WHOLE["id"]))
        assert task.created_at == datetime.fromisoformat(str(WHOLE["created_at"]))
        assert task.payload == Nap(kind="nap", seconds=0.5)


def test_empty_lines_and_windows_line_ends_are_nothing(read: Callable[..., list[Any]]) -> None:
    made = read(b"", b"  \t", json.dumps(NAP).encode() + b"\r", b"\r", NAP, b"")
    assert [task.payload.kind for task in made] == ["nap", "nap"]
    assert read() == []


BAD: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "not JSON": (b"{'kind': 'nap'}", "not JSON: "),
    "half a line": (b'{"kind": ', "not JSON: "),
    "latin-1": ('{"kind": "é"}'.encode("latin-1"), "not JSON: "),
    "NaN": (b'{"kind": "nap", "seconds": NaN}', "not JSON: "),
    "deep": (b"[" * 5000, "not JSON: "),
    "too large": (b'"' + b"x" * 70_000 + b'"', "70002 bytes, the contract's limit is 66000"),
    "no object": (b"[1]", "/: "),
    "an unknown kind": ({"kind": "other"}, "/payload: no such kind"),
    "a bad payload": ({"kind": "nap", "seconds": -1}, "/payload/seconds: "),
    "an envelope of its own": ({"id": WHOLE["id"], **NAP}, "/payload: "),
    "half an envelope": ({"payload": NAP}, '/: "id" is a required property'),
    "a bad id": ({**WHOLE, "id": "7"}, "/id"),
    "a payload that is null": ({**WHOLE, "payload": None}, "/payload: "),
}


@pytest.mark.parametrize(("bad", "told"), BAD.values(), ids=BAD)
def test_a_bad_line_is_told_with_its_file_and_number_and_stops_nothing(
    bad: bytes | dict[str, Any], told: str, read: Callable[..., list[Any]], tmp_path: Path
) -> None:
    before, error, after = read(NAP, b"", bad, WHOLE)
    assert isinstance(error, InputInvalid)
    assert str(error).startswith(f"{tmp_path}/tasks.jsonl:3: {told}")
    assert len(str(error).splitlines()) == 1
    assert before.payload == after.payload


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for name, why in (("nothing", "No such file or directory"), (".", "Is a directory")):
        (error,) = lines(str(tmp_path / name), Task)
        assert str(error) == f"{tmp_path / name}: can't be read ({why})"


def test_a_dash_is_standard_input_and_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(json.dumps(WHOLE).encode() + b"\nno\n")
    kept = os.dup(0)
    with (tmp_path / "given").open("rb") as given:
        os.dup2(given.fileno(), 0)
    try:
        task, error = lines("-", Task)
        os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert isinstance(task, Task)
    assert str(error).startswith("-:2: not JSON")


def test_lines_are_read_as_they_are_asked_for() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        made = lines(f"/dev/fd/{reading}", Task)
        pipe.write(json.dumps(WHOLE).encode() + b"\n")
        assert isinstance(next(made), Task)
        pipe.write(json.dumps(WHOLE).encode() + b"\n")
        assert isinstance(next(made), Task)
    assert list(made) == []
    os.close(reading)


def test_an_envelope_is_what_a_task_needs_beside_its_payload() -> None:
    task = Task(**envelope(), payload=Nap(kind="nap", seconds=0.5))
    assert task.created_at.utcoffset() == timedelta()


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_a_line_that_is_too_long_is_told_with_its_size_and_the_next_one_is_read(
    size: int, read: Callable[..., list[Any]]
) -> None:
    before, error, after = read(NAP, b"x" * size, NAP)
    assert str(error).endswith(f":2: {size} bytes, the contract's limit is 66000")
    assert before.payload == after.payload


def test_of_a_line_without_an_end_only_a_little_is_ever_in_memory() -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            for _ in range(200):
                pipe.write(b"x" * 1_000_000)

    threading.Thread(target=write, daemon=True).start()
    tracemalloc.start()
    try:
        (error,) = lines(f"/dev/fd/{reading}", Task)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
        os.close(reading)
    assert str(error).endswith(":1: 200000000 bytes, the contract's limit is 66000")


def test_a_line_of_just_the_limit_is_read_whole(read: Callable[..., list[Any]]) -> None:
    whole = json.dumps(WHOLE).encode()
    padded = whole[:-1] + b" " * (66_000 - len(whole)) + b"}"
    (task,) = read(padded + b"\r\n" + b"")
    assert isinstance(task, Task)
    (error,) = read(padded[:-1] + b" }")
    assert "66001 bytes" in str(error)


def test_a_byte_order_mark_is_no_part_of_the_first_line(read: Callable[..., list[Any]]) -> None:
    (task,) = read(b"\xef\xbb\xbf" + json.dumps(WHOLE).encode())
    assert isinstance(task, Task)


def test_nul_bytes_are_told(read: Callable[..., list[Any]]) -> None:
    error, task = read(b"\0\0", NAP)
    assert isinstance(error, InputInvalid)
    assert "not JSON" in str(error)
    assert str(error).isprintable()
    assert isinstance(task, Task)


def test_a_standard_input_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    (error,) = lines("-", Task)
    assert str(error) == "-: can't be read (it is closed)"


class Parcel(BaseModel):
    """A payload with fields that are named like those of the envelope."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["parcel"]
    id: str
    payload: dict[str, int]


class Wrapped(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: UUID
    created_at: datetime
    payload: Parcel


class Codec:
    """Stands in for the codec of a contract with that kind."""

    max_bytes = 65_536

    def from_value(self, value: Any) -> Wrapped | Undecodable:
        try:
            return Wrapped.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            return Undecodable("invalid", f"/{'/'.join(map(str, first['loc']))}: {first['msg']}")


def test_a_payload_may_have_fields_that_are_named_like_those_of_the_envelope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "for_model", lambda model: Codec())
    parcel: dict[str, Any] = {"kind": "parcel", "id": "p-1", "payload": {"a": 1}}
    given = [parcel, {**WHOLE, "payload": parcel}, {**parcel, "payload": 1}, {**WHOLE, "payload": {**parcel, "id": 1}}]
    (tmp_path / "tasks").write_text("\n".join(map(json.dumps, given)))
    bare, whole, bad, bad_whole = lines(str(tmp_path / "tasks"), Wrapped)
    assert isinstance(bare, Wrapped)
    assert isinstance(whole, Wrapped)
    assert bare.payload == whole.payload
    assert str(whole.id) == WHOLE["id"]
    assert "/payload/payload: " in str(bad)
    assert "/payload/id: " in str(bad_whole)
