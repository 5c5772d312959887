"""Where tasks come from: files below paths, and lines of JSON."""

import argparse
import json
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from generated.producer.messages.json import Checksum, Simulate, Task
from tools.project import ROOT
from workqueue import source
from workqueue.codec import Undecodable
from workqueue.errors import InputInvalid
from workqueue.settings import Settings
from workqueue.source import envelope, files, lines

SIMULATE = {"kind": "simulate", "seconds": 0.5}
WHOLE = {
    "id": "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01",
    "created_at": "2026-11-25T09:30:00.25+01:00",
    "payload": SIMULATE,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("b/2", "b/1", "a/deep/er/x", "c", "odd name\n"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return root


def found(*paths: Path | str) -> list[str]:
    made = list(files(map(str, paths)))
    assert all(isinstance(path, Path) for path in made), made
    return [str(path) for path in made]


def problem(*paths: Path | str) -> str:
    (only,) = files(map(str, paths))
    assert isinstance(only, InputInvalid)
    return str(only)


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_regular_file_below_a_path_is_found_once_in_a_steady_order(tree: Path) -> None:
    expected = [str(tree / name) for name in ("c", "odd name\n", "a/deep/er/x", "b/1", "b/2")]
    assert found(tree) == expected
    assert found(tree / "a" / ".." / ".") == expected


def test_paths_are_taken_in_their_order_and_a_file_may_be_named_itself(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    assert found("b", "c", "a") == [str(tree / name) for name in ("b/1", "b/2", "c", "a/deep/er/x")]


def test_links_below_a_path_are_not_followed_and_a_loop_of_folders_ends(tree: Path) -> None:
    before = found(tree)
    (tree / "b" / "link").symlink_to(tree.parent / "outside" / "secret")
    (tree / "b" / "folder").symlink_to(tree.parent / "outside")
    (tree / "b" / "up").symlink_to(tree)
    (tree / "b" / "broken").symlink_to(tree / "nothing")
    assert found(tree) == before


def test_a_link_that_is_named_itself_is_followed_to_what_it_means(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree / "c")
    assert found(tree.parent / "link") == [str(tree / "c")]


def test_special_files_below_a_path_are_no_files_and_one_that_is_named_is_told(tree: Path) -> None:
    before = found(tree)
    os.mkfifo(tree / "b" / "pipe")
    assert found(tree) == before
    assert problem(tree / "b" / "pipe") == f"{tree}/b/pipe: is not a regular file"


def test_a_missing_path_is_told_and_the_others_are_read(tree: Path) -> None:
    made = list(files([str(tree / "nothing"), str(tree / "c")]))
    assert str(made[0]) == f"{tree}/nothing: there is no such file or folder"
    assert made[1:] == [tree / "c"]


def test_an_unreadable_file_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK or Path(path).name != "c")  # root reads all
    assert problem(tree / "c") == f"{tree}/c: can't be read (permission denied)"


def test_an_unreadable_folder_is_told_after_what_could_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    made = list(files([str(tree)]))
    assert [path.name for path in made if isinstance(path, Path)] == ["c", "odd name\n", "1", "2"]
    assert str(made[-1]) == f"{tree}/a/deep: can't be read (Permission denied)"


@pytest.mark.parametrize("name", ["x" * 300, "loop"])
def test_a_path_that_can_be_no_file_is_told(name: str, tree: Path) -> None:
    (tree / "loop").symlink_to("loop")
    assert "loop" in problem(tree / name) or "x" in problem(tree / name)


@pytest.fixture
def tasks() -> Callable[[argparse.Namespace], Any]:
    """What main-producer.py makes of the flags."""
    spec = spec_from_file_location("main_producer", ROOT / "main-producer.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda given: module.tasks(given, Settings())


def asked(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"paths": [], "jsonl": None, "simulate": 0, "seconds": 0.0, **given})


def test_the_producer_makes_one_task_for_each_file_and_each_of_them_another_id(
    tree: Path, tasks: Callable[[argparse.Namespace], Any]
) -> None:
    made = list(tasks(asked(paths=[str(tree), str(tree / "nothing")])))
    assert isinstance(made.pop(), InputInvalid)
    assert [task.payload.path for task in made] == found(tree)
    assert len({task.id for task in made}) == len(made)
    simulated = list(tasks(asked(simulate=3, seconds=0.5)))
    assert [task.payload for task in simulated] == [Simulate(kind="simulate", seconds=0.5)] * 3


def test_a_file_name_that_is_not_unicode_is_told_and_stops_nothing(
    tree: Path, tasks: Callable[[argparse.Namespace], Any]
) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/aa\xff")).write_text("x")
    made = list(tasks(asked(paths=[str(tree)])))
    assert len([task for task in made if isinstance(task, InputInvalid)]) == 1
    assert len(made) == len(list(files([str(tree)])))


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Any]]:
    """The tasks of a file with these lines."""

    def reading(*given: bytes | dict[str, Any]) -> list[Any]:
        whole = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in given)
        (tmp_path / "tasks.jsonl").write_bytes(whole)
        return list(lines(str(tmp_path / "tasks.jsonl"), Task))

    return reading


def test_a_payload_gets_an_id_of_its_own_and_the_time(read: Callable[..., list[Any]]) -> None:
    one, two = read(SIMULATE, SIMULATE)
    assert one.id != two.id
    assert one.id < two.id  # by the time at their beginning
    assert one.payload == Simulate(kind="simulate", seconds=0.5)
    assert timedelta() <= datetime.now(UTC) - one.created_at < timedelta(minutes=1)


def test_a_whole_task_keeps_its_id_and_its_time(read: Callable[..., list[Any]]) -> None:
    for task in read(WHOLE, WHOLE):
        assert task.id == UUID(str(WHOLE["id"]))
        assert task.created_at == datetime.fromisoformat(str(WHOLE["created_at"]))
        assert task.payload == Simulate(kind="simulate", seconds=0.5)


def test_empty_lines_and_windows_line_ends_are_nothing(read: Callable[..., list[Any]]) -> None:
    made = read(b"", b"  \t", json.dumps(SIMULATE).encode() + b"\r", b"\r", SIMULATE, b"")
    assert [task.payload.kind for task in made] == ["simulate", "simulate"]
    assert read() == []


BAD: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "not JSON": (b"{'kind': 'simulate'}", "not JSON: "),
    "half a line": (b'{"kind": ', "not JSON: "),
    "latin-1": ('{"kind": "é"}'.encode("latin-1"), "not JSON: "),
    "NaN": (b'{"kind": "simulate", "seconds": NaN}', "not JSON: "),
    "deep": (b"[" * 5000, "not JSON: "),
    "too large": (b'"' + b"x" * 70_000 + b'"', "70002 bytes, the contract's limit is 65536"),
    "no object": (b"[1]", "/: "),
    "an unknown kind": ({"kind": "other"}, "/payload: no such kind"),
    "a bad payload": ({"kind": "simulate", "seconds": -1}, "/payload/seconds: "),
    "an envelope of its own": ({"id": WHOLE["id"], **SIMULATE}, "/payload: "),
    "half an envelope": ({"payload": SIMULATE}, '/: "id" is a required property'),
    "a bad id": ({**WHOLE, "id": "7"}, "/id"),
    "a payload that is null": ({**WHOLE, "payload": None}, "/payload: "),
}


@pytest.mark.parametrize(("bad", "told"), BAD.values(), ids=BAD)
def test_a_bad_line_is_told_with_its_file_and_number_and_stops_nothing(
    bad: bytes | dict[str, Any], told: str, read: Callable[..., list[Any]], tmp_path: Path
) -> None:
    before, error, after = read(SIMULATE, b"", bad, WHOLE)
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
    task = Task(**envelope(), payload=Checksum(kind="checksum", path="a"))
    assert task.created_at.utcoffset() == timedelta()


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_a_line_that_is_too_long_is_told_with_its_size_and_the_next_one_is_read(
    size: int, read: Callable[..., list[Any]]
) -> None:
    before, error, after = read(SIMULATE, b"x" * size, SIMULATE)
    assert str(error).endswith(f":2: {size} bytes, the contract's limit is 65536")
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
    assert str(error).endswith(":1: 200000000 bytes, the contract's limit is 65536")


def test_a_line_of_just_the_limit_is_read_whole(read: Callable[..., list[Any]]) -> None:
    whole = json.dumps(WHOLE).encode()
    padded = whole[:-1] + b" " * (65_536 - len(whole)) + b"}"
    (task,) = read(padded + b"\r\n" + b"")
    assert isinstance(task, Task)
    (error,) = read(padded[:-1] + b" }")
    assert "65537 bytes" in str(error)


def test_a_byte_order_mark_is_no_part_of_the_first_line(read: Callable[..., list[Any]]) -> None:
    (task,) = read(b"\xef\xbb\xbf" + json.dumps(WHOLE).encode())
    assert isinstance(task, Task)


def test_nul_bytes_are_told(read: Callable[..., list[Any]]) -> None:
    error, task = read(b"\0\0", SIMULATE)
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


def test_the_ledgers_own_files_are_left_out(tree: Path) -> None:
    before = found(tree)
    for name in (
        ".workqueue/ledger.db",
        ".workqueue/ledger.db.holders/set-up",
        "b/l.db",
        "b/l.db-wal",
        "b/l.db.holders/x",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    assert [str(path) for path in files([str(tree)], str(tree / "b" / "l.db"))] == before
    (named,) = files([str(tree / "b" / "l.db-wal")], str(tree / "b" / "l.db"))
    assert str(named) == f"{tree}/b/l.db-wal: belongs to the ledger"


def test_a_file_that_is_named_itself_and_has_a_name_that_is_not_unicode_is_told(tree: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tree) + b"/aa\xff"))
    path.write_text("x")
    assert "has a name that is not UTF-8" in problem(path)
