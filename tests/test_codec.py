"""The codec against the contract's own schema and an independent validator of it (python-jsonschema).

Values are made from the schema, broken by the schema, and judged by both; nothing here repeats what spec/ says.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from tests.generated import worker
from tests.generated.producer.messages.json import Digest, Nap, Task
from tests.generated.worker.messages.json import DigestResult, NapResult
from tests.harness import QUEUE, RECEIVE
from workqueue import contract
from workqueue.codec import ContractCodecs, ModelCodec, ResultCodec, Schema, Undecodable, for_model
from workqueue.codec import models as codec_module
from workqueue.errors import TaskInvalid

SPEC = Path(__file__).parent / "spec"

SEND = contract.load("tests.generated.producer").sends[QUEUE]
CODEC: ModelCodec[Task] = for_model(Task)
SCHEMA: dict[str, Any] = dict(SEND.message.schema)
SCHEMAS: dict[str, Any] = SCHEMA["components"]["schemas"]
CREATED_AT = re.compile(SCHEMAS["Task"]["properties"]["created_at"]["pattern"])

quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def independent(schema: Mapping[str, Any]) -> Any:
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


VALIDATOR = independent(SCHEMA)


@st.composite
def times(draw: st.DrawFn) -> str:
    """RFC 3339 with every zone and every number of decimals that the contract allows."""
    made = draw(st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59)))
    decimals = draw(st.integers(0, 6))
    fraction = f".{made.microsecond:06}"[: decimals + 1] if decimals else ""
    minutes = draw(st.integers(0, 23 * 60 + 59))
    zone = draw(st.sampled_from(["Z", "+", "-"]))
    return f"{made:%Y-%m-%dT%H:%M:%S}{fraction}" + (
        zone if zone == "Z" else f"{zone}{minutes // 60:02}:{minutes % 60:02}"
    )


uuids = st.uuids().map(str) | st.uuids().map(lambda made: str(made).upper())
dates = st.dates(min_value=date(1000, 1, 1)).map(date.isoformat)
FORMATS = {"uuid": uuids, "date-time": times(), "date": dates}


def values(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows. The scalars are made by hypothesis-jsonschema; its objects need a part of
    Hypothesis that newer versions lack, and ours are closed anyway."""
    if "$ref" in schema:
        return values(SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "oneOf" in schema:
        return st.one_of(*map(values, schema["oneOf"]))
    if schema.get("type") == "array":
        return st.lists(values(schema["items"]), max_size=schema["maxItems"])
    if isinstance(schema.get("additionalProperties"), dict):
        return st.dictionaries(st.text(max_size=8), values(schema["additionalProperties"]), max_size=4)
    if schema.get("type") == "object":
        fields = {name: values(below) for name, below in schema["properties"].items()}
        optional = {name: fields.pop(name) for name in set(fields) - set(schema["required"])}
        return st.fixed_dictionaries(fields, optional=optional)
    if "format" in schema:
        return FORMATS[schema["format"]]
    made: st.SearchStrategy[Any] = from_schema(dict(schema))
    return made


valid_tasks = values(SCHEMAS["Task"])

NAP = {
    "id": "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01",
    "created_at": "2026-11-25T09:30:00Z",
    "payload": {"kind": "nap", "seconds": 0.5, "failures": 1},
}
DIGEST = NAP | {"payload": {"kind": "digest", "text": "a", "algorithm": "sha256"}}


def body(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def decoded(value: Any) -> Task:
    task = CODEC.decode(body(value))
    assert isinstance(task, Task), task
    return task


def refused(payload: bytes) -> Undecodable:
    answer = CODEC.decode(payload)
    assert isinstance(answer, Undecodable), answer
    return answer


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def by_meaning(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task with its id as a UUID and its times as instants: two spellings of one value are equal."""
    payload = {name: instant(value) if name == "packed_at" else value for name, value in task["payload"].items()}
    return {**task, "id": UUID(task["id"]), "created_at": instant(task["created_at"]), "payload": payload}


# --- what is valid goes through ---------------------------------------------------------------------------------------


@quick
@example(DIGEST | {"payload": {"kind": "digest", "text": "\U0001f4a9" * 4096}})
@example(DIGEST | {"payload": {"kind": "digest", "text": " \n\t\"\\\u2028'"}})
@example(NAP | {"payload": {"kind": "nap", "seconds": 86400, "failures": 100.0}})
@example(NAP | {"created_at": "9999-12-31T23:59:59.999999-23:59"})
@example(NAP | {"created_at": "1000-01-01T00:00:00+23:59"})
@given(valid_tasks)
def test_every_valid_task_comes_back_as_the_same_json(sent: Any) -> None:
    assert VALIDATOR.is_valid(sent)
    task = decoded(sent)
    encoded = CODEC.encode(task)
    back = json.loads(encoded)
    assert by_meaning(back) == by_meaning(sent)
    assert VALIDATOR.is_valid(back)
    assert decoded(back) == task
    assert encoded.message_id == str(UUID(sent["id"]))


@quick
@given(valid_tasks)
def test_the_model_carries_what_the_json_says(sent: Any) -> None:
    task = decoded(sent)
    assert task.id == UUID(sent["id"])
    assert task.created_at == instant(sent["created_at"])
    assert type(task.payload).__name__ == sent["payload"]["kind"].capitalize()
    carried = task.payload.model_dump(mode="json", exclude_unset=True)
    assert by_meaning({**sent, "payload": carried}) == by_meaning(sent)


def test_what_is_not_set_is_not_sent_and_a_default_is_read() -> None:
    task = Task(id=UUID(NAP["id"]), created_at=datetime.now(UTC), payload=Digest(kind="digest", text="a"))  # type: ignore[arg-type]
    assert json.loads(CODEC.encode(task))["payload"] == {"kind": "digest", "text": "a"}
    back = CODEC.decode(CODEC.encode(task))
    assert isinstance(back, Task)
    assert isinstance(back.payload, Digest)
    assert back.payload.algorithm == SCHEMAS["Digest"]["properties"]["algorithm"]["default"]


def examples(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((SPEC / "common.asyncapi.yaml").read_text())["components"]["messages"][
        name
    ]["examples"]
    return found


@pytest.mark.parametrize("given_example", examples("task"), ids=lambda found: found["name"])
def test_the_examples_of_a_task_in_the_contract_are_valid_and_decode(given_example: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(given_example["payload"])
    assert by_meaning(json.loads(CODEC.encode(decoded(given_example["payload"])))) == by_meaning(
        given_example["payload"]
    )
    assert independent(SEND.message.headers_schema).is_valid(given_example["headers"])
    assert Schema(SEND.message.headers_schema).problem(given_example["headers"]) is None


@pytest.mark.parametrize("given_example", examples("deadLetter"), ids=lambda found: found["name"])
def test_the_examples_of_a_dead_letter_in_the_contract_tell_a_valid_story(given_example: dict[str, Any]) -> None:
    document = json.loads((SPEC.parent / "generated/worker/contract.json").read_text())
    story = {"$ref": "#/components/schemas/Story", "components": document["components"]}
    assert independent(story).is_valid(given_example["headers"])


# --- what breaks the contract is refused ------------------------------------------------------------------------------

OF_ANOTHER_TYPE: dict[str, list[Any]] = {
    "string": [1, 0.5, True, None, [], {}],
    "number": ["3", "", True, False, None, [1], {}],
    "integer": ["3", True, False, 1.5, None, [1], {}],
    "object": ["x", 1, True, None, []],
    "array": ["x", 1, True, None, {}],
}
AGAINST_FORMAT: dict[str, list[Any]] = {
    "uuid": ["", "no", f"{UUID(int=0)}a", f"{UUID(int=0)}"[:-1], f"{UUID(int=0)}".replace("0", "g")],
    "date-time": [
        *("", "now", "2026-11-25", "1764063000", "2026-11-25T09:30:00", "2026-11-25 09:30:00Z"),
        *("2026-02-30T09:30:00Z", "2026-13-01T09:30:00Z", "2026-11-25T24:00:00Z", "2026-11-25T09:60:00Z"),
        *("2026-11-25T09:30:00+24:00", "2026-11-25T09:30:00+01:60", "2025-02-29T09:30:00Z"),
    ],
}
AGAINST_FORMAT["date"] = ["", "today", "2026-02-30", "2026-13-01", "2026-11-25T00:00:00Z", "20261125"]
AGAINST_PATTERN: dict[str, list[Any]] = {
    r"^[^\x00]+$": ["\x00", "a\x00b", "a\x00"],
    r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$": ["6a0e1c1e3c534a3c9c9b2f2f4c9c0f01", "no", ""],
    SCHEMAS["Parcel"]["properties"]["due"]["pattern"]: ["0999-11-25", "2026-1-5", "2026/11/25"],
    CREATED_AT.pattern: [
        *("2026-11-25t09:30:00z", "0999-11-25T09:30:00Z", "2026-11-25T09:30:60Z"),
        *("2026-11-25T09:30:00.1234567Z", "2026-11-25T09:30:00.Z", "2026-11-25T09:30:00,5Z"),
    ],
}


def breakages(schema: Mapping[str, Any], value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every way the schema offers to break this valid value: the place that breaks, and the broken value."""
    if "$ref" in schema:
        yield from breakages(SCHEMAS[schema["$ref"].rpartition("/")[2]], value, place)
        return
    for part in schema.get("allOf", []):
        yield from breakages(part, value, place)
    for branch in schema.get("oneOf", []):
        if independent({"allOf": [branch], "components": {"schemas": SCHEMAS}}).is_valid(value):
            yield from breakages(branch, value, place)
    for name, below in schema.get("properties", {}).items():
        if name in value:
            for inner, broken in breakages(below, value[name], f"{place}/{name}"):
                yield inner, {**value, name: broken}
    if isinstance(below := schema.get("additionalProperties"), dict):
        for name in value:
            for _, broken in breakages(below, value[name]):
                yield place, {**value, name: broken}
    for index, item in enumerate(value if isinstance(value, list) else ()):
        for _, broken in breakages(schema["items"], item):
            yield place, [*value[:index], broken, *value[index + 1 :]]
    yield from ((place, broken) for broken in _broken_here(schema, value))


def _broken_here(schema: Mapping[str, Any], value: Any) -> Iterator[Any]:
    yield from OF_ANOTHER_TYPE.get(schema.get("type", ""), [])
    for name in schema.get("required", []):
        yield {key: kept for key, kept in value.items() if key != name}
    if schema.get("additionalProperties") is False:
        yield from ({**value, name: None} for name in ("x", "", "Kind", "__class__", "\u043a"))
    if "maxItems" in schema:
        yield ["x"] * (schema["maxItems"] + 1)
    if "maxProperties" in schema:
        yield {str(number): "x" for number in range(schema["maxProperties"] + 1)}
    if "const" in schema:
        yield from (schema["const"].upper(), schema["const"] + " ", "", "nothing")
    if "enum" in schema:
        yield from (schema["enum"][0].upper(), "", "md5")
    if "minimum" in schema:
        yield from (schema["minimum"] - past for past in (1, 10**30))
    if "maximum" in schema:
        yield from (schema["maximum"] + past for past in (1, 10**30))
    if schema.get("type") == "number":
        yield from (schema["minimum"] - 1e-9, schema["maximum"] + 1e-9)
    if "minLength" in schema:
        yield "a" * (schema["minLength"] - 1)
    if "maxLength" in schema:
        yield "a" * (schema["maxLength"] + 1)
    yield from AGAINST_FORMAT.get(schema.get("format", ""), [])
    yield from AGAINST_PATTERN.get(schema.get("pattern", ""), [])


def kinds() -> list[str]:
    return [branch["$ref"].rpartition("/")[2] for branch in SCHEMAS["Task"]["properties"]["payload"]["oneOf"]]


def test_the_breakages_cover_every_limit_and_format_of_the_contract() -> None:
    """A new keyword in the contract needs a breakage here, else its enforcement would go untested."""
    known = {"title", "description", "default", "type", "additionalProperties", "required", "properties", "oneOf"}
    known |= {"$ref", "const", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "format"}
    known |= {"items", "maxItems", "maxProperties"}

    def check(schema: Mapping[str, Any]) -> None:
        assert {key for key in schema if not key.startswith("x-")} <= known, schema
        assert schema.get("format") in {None, *AGAINST_FORMAT}
        assert schema.get("pattern") in {None, *AGAINST_PATTERN}
        for below in [*schema.get("properties", {}).values(), *schema.get("oneOf", [])]:
            check(below)

    for branch in ("Task", "Box", *kinds()):
        check(SCHEMAS[branch])


@settings(quick, max_examples=25)
@example(NAP)
@example(DIGEST)
@given(valid_tasks)
def test_whatever_breaks_the_contract_is_refused_with_one_line_that_names_the_place(value: Any) -> None:
    broken = list(breakages(SCHEMA, value))
    assert len(broken) > 60
    for place, mutated in broken:
        assert not VALIDATOR.is_valid(mutated), (place, mutated)
        answer = refused(body(mutated))
        assert answer.reason == "invalid", mutated
        assert len(answer.error.splitlines()) == 1
        # A wrong tag is the union's problem: no alternative is chosen.
        expected = "/payload" if place == "/payload/kind" else place or "/"
        inside = place in ("/payload/labels", "/payload/stops")  # it may be one of their items that is wrong
        assert f"{expected}{'' if inside else ': '}" in answer.error, (place, mutated, answer.error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "created_at", "payload", "kind", "seconds", "a"]), below, max_size=4)
    ),
    max_leaves=8,
)
almost_times = st.from_regex(CREATED_AT, fullmatch=True) | st.from_regex(
    r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,8})?(Z|\+0[0-9]:[0-6]0)",
    fullmatch=True,
)
almost_texts = st.text(max_size=4) | st.sampled_from(["a" * 4096, "a" * 4097])


@st.composite
def almost_tasks(draw: st.DrawFn) -> Any:
    """A valid task with one or two of its values replaced by something that may fit or not."""
    value = deepcopy(draw(st.sampled_from([NAP, DIGEST])))
    for _ in range(draw(st.integers(1, 2))):
        holder: Any = draw(st.sampled_from([value, value["payload"]]))
        if not isinstance(holder, dict):
            continue
        name = draw(st.sampled_from([*sorted(holder), "other"]))
        holder[name] = draw(
            {
                "created_at": almost_times,
                "text": almost_texts,
                "kind": st.sampled_from(["digest", "nap"]),
                "seconds": st.floats(-1, 90000) | st.integers(-1, 90000),
                "failures": st.integers(-1, 101) | st.sampled_from([1.0, 100.0, 1e2, 0.1, -0.0]),
            }.get(name, json_values)
            | (json_values if name != "payload" else st.just(deepcopy(value["payload"])))
        )
        if not isinstance(value["payload"], dict):
            break
    return value


@settings(quick, max_examples=200)
@given(json_values | almost_tasks())
def test_the_codec_and_an_independent_validator_agree_on_every_value(value: Any) -> None:
    answer = CODEC.decode(body(value))
    assert isinstance(answer, Task) == VALIDATOR.is_valid(value), answer
    if isinstance(answer, Undecodable):
        assert answer.reason == "invalid"


@pytest.mark.parametrize(
    "spelled",
    [
        "6a0e1c1e3c534a3c9c9b2f2f4c9c0f01",
        "{6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01}",
        "urn:uuid:6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01",
    ],
)
def test_an_id_that_is_not_spelled_as_the_format_says_is_refused(spelled: str) -> None:
    assert not VALIDATOR.is_valid(NAP | {"id": spelled})
    assert refused(body(NAP | {"id": spelled})).reason == "invalid"


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1b[2Jb"])
def test_an_error_is_one_line_of_printable_text_whatever_the_body_says(name: str) -> None:
    error = refused(body(NAP | {name: 1})).error
    assert len(error.splitlines()) == 1
    assert error.isprintable()


def test_the_error_for_a_union_is_the_problem_of_the_chosen_kind() -> None:
    slow = {**NAP, "payload": {"kind": "nap", "seconds": -1}}
    error = refused(body(slow)).error
    assert error.startswith("/payload/seconds: ")
    assert "digest" not in error
    both = {**NAP, "payload": {"kind": "nap", "seconds": -1, "failures": "3"}}
    assert "/payload/failures: " in refused(body(both)).error
    assert "/payload/seconds: " in refused(body(both)).error


def test_the_error_for_an_unknown_kind_says_so_and_names_the_kinds_there_are() -> None:
    error = refused(body({**NAP, "payload": {"kind": "transmogrify", "seconds": 1}})).error
    assert error.startswith("/payload: no such kind")
    assert "digest" in error
    assert "nap" in error


def test_the_error_for_a_missing_kind_names_the_missing_field() -> None:
    assert '"kind"' in refused(body({**NAP, "payload": {"seconds": 1}})).error


NUMBER = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"const": "number"}, "is": {"type": "integer"}},
}
TEXT = {"type": "object", "required": ["kind"], "properties": {"kind": {"const": "text"}, "is": {"type": "string"}}}
EITHER = {"oneOf": [NUMBER, TEXT]}


@pytest.mark.parametrize("key", ["2024", "07", "007", "+7", "-1", "", "a", "oneOf"])
def test_an_error_names_a_key_as_it_is_spelled_also_one_that_looks_like_a_number(key: str) -> None:
    plain, wrong = {"kind": "number", "is": 7}, {"kind": "number", "is": "seven"}
    said = f'/{key}/is: "seven" is not of type "integer"'
    assert Schema({"additionalProperties": EITHER}).problem({"7": plain, key: wrong}) == said
    assert Schema({"properties": {key: EITHER}}).problem({"7": plain, key: wrong}) == said
    assert Schema({"properties": {key: {"items": EITHER}}}).problem({key: [plain, wrong]}) == said.replace(
        "is", "1/is", 1
    )


def test_a_null_is_found_below_a_key_that_looks_like_a_number() -> None:
    schema = Schema({"additionalProperties": {"additionalProperties": {"type": "integer"}}})
    assert schema.refused_nulls({"2024": {"07": None, "8": 8}, "": {"": None}}) == [("2024", "07"), ("", "")]


@pytest.mark.parametrize("stated", [True, False])
def test_a_union_may_have_alternatives_that_state_nothing(stated: bool) -> None:
    union = {"oneOf": [{"$ref": "#/components/schemas/Stated"}, {"$ref": "#/components/schemas/Stated"}]}
    assert Schema({"allOf": [union], "components": {"schemas": {"Stated": stated}}}).problem({"a": 1}) is not None


def test_an_error_that_cannot_be_explained_is_the_validators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any) -> None:
        raise KeyError("kind")

    monkeypatch.setattr("workqueue.kinds.tag", fault)
    error = refused(body(NAP | {"payload": {"kind": "nap", "seconds": -1}})).error
    assert error.startswith("/payload: ")
    assert "oneOf" in error


def test_of_many_errors_only_as_many_are_looked_for_as_are_told() -> None:
    schema = Schema({"additionalProperties": {"type": "string"}})
    began = time.perf_counter()
    assert schema.problem({f"{number:06}": 1 for number in range(10_000)}) is not None
    assert time.perf_counter() - began < 2


def test_an_error_is_no_longer_than_a_header_may_be() -> None:
    limit = json.loads((SPEC.parent / "generated/worker/contract.json").read_text())["components"]["schemas"]["Story"][
        "properties"
    ]["x-error"]["maxLength"]
    for value in (DIGEST | {"payload": {"kind": "digest", "text": 1, "x" * 5000: 1}}, ["x" * 5000], "y" * 5000):
        assert len(refused(body(value)).error) <= limit


# --- what is not JSON is refused --------------------------------------------------------------------------------------

WHOLE = body(NAP)
NOT_JSON = {
    "nothing": b"",
    "white space": b" \n",
    "a word": b"not json",
    "NaN": WHOLE.replace(b"0.5", b"NaN"),
    "Infinity": WHOLE.replace(b"0.5", b"Infinity"),
    "minus infinity": WHOLE.replace(b"0.5", b"-Infinity"),
    "a leading zero": WHOLE.replace(b"0.5", b"00.5"),
    "two values": WHOLE + WHOLE,
    "a cut-off end": WHOLE[:-1],
    "a trailing comma": WHOLE[:-1] + b",}",
    "a comment": WHOLE + b" // done",
    "single quotes": WHOLE.replace(b'"', b"'"),
    "a byte order mark": b"\xef\xbb\xbf" + WHOLE,
    "a null byte": WHOLE + b"\x00",
    "a lone leading surrogate": WHOLE.replace(b'"nap"', b'"\\ud800"'),
    "a lone trailing surrogate": WHOLE.replace(b'"nap"', b'"\\udc00"'),
    "surrogates as utf-8": WHOLE.replace(b'"nap"', b'"\xed\xa0\x80"'),
    "latin-1": body(DIGEST).replace(b'"a"', '"é"'.encode("latin-1")),
    "utf-16": WHOLE.decode().encode("utf-16"),
    "utf-16 without a mark": WHOLE.decode().encode("utf-16-le"),
    "utf-32": WHOLE.decode().encode("utf-32"),
    "an endless list": b"[" * 60_000,
    "a deep list": b"[" * 30_000 + b"]" * 30_000,
    "a deep object": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "more digits than an integer may have": WHOLE.replace(b"0.5", b"9" * 5000),
}


@pytest.mark.parametrize("payload", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_undecodable_in_one_line(payload: bytes) -> None:
    answer = refused(payload)
    assert answer.reason == "undecodable"
    assert answer.error.startswith("not JSON: ")
    assert len(answer.error.splitlines()) == 1


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 400, b"1" + b"0" * 4000, b"1e308"])
@pytest.mark.parametrize("name", [b'"seconds": 0.5', b'"failures": 1'])
def test_a_number_that_no_machine_holds_is_refused(number: bytes, name: bytes) -> None:
    assert name in WHOLE
    refused(WHOLE.replace(name, name.partition(b":")[0] + b": " + number))


@pytest.mark.parametrize(
    "payload",
    [b"[" * 100_000, b"[" * 50_000 + b"]" * 50_000, b'"' + b"x" * 20_000_000 + b'"', b"9" * 20_000_000],
    ids=["deep", "deep and closed", "20 MB of text", "20 MB of digits"],
)
def test_a_huge_body_is_refused_at_once(payload: bytes) -> None:
    began = time.perf_counter()
    answer = refused(payload)
    assert time.perf_counter() - began < 0.1
    assert answer.reason == "undecodable"
    assert str(len(payload)) in answer.error
    assert str(SEND.message.max_bytes) in answer.error


def test_the_size_limit_is_applied_before_the_body_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = SEND.message.max_bytes
    assert isinstance(CODEC.decode(WHOLE.ljust(limit)), Task)

    def parse(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(codec_module, "from_json", parse)
    assert refused(WHOLE.ljust(limit + 1)).reason == "undecodable"
    assert "parsed" in refused(WHOLE).error


def cut(at: int) -> bytes:
    return WHOLE[:at] + b"\xff" + WHOLE[at:]


@settings(quick, max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | st.integers(0, len(WHOLE)).map(cut))
def test_decode_never_raises(payload: bytes) -> None:
    refused(payload)


@pytest.mark.parametrize("part", ["from_json", "read", "dump"])
def test_not_even_a_fault_of_ours_leaves_decode(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any, **__: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(codec_module, part, fault)
    monkeypatch.setattr(CODEC, "_compares", True)
    assert refused(WHOLE) == Undecodable("invalid", "could not be judged: RecursionError('too deep')")


# --- what is sent keeps the contract ----------------------------------------------------------------------------------


def task_with(payload: Any = None, **fields: Any) -> Task:
    whole: dict[str, Any] = {"id": UUID(int=1), "created_at": datetime.now(UTC)} | fields
    return Task.model_construct(payload=payload or Nap(kind="nap", seconds=1), **whole)


def mutated(name: str, value: Any) -> Task:
    task = decoded(NAP)
    setattr(task.payload, name, value)
    return task


cyclic: list[Any] = []
cyclic.append(cyclic)
INVALID_MODELS = {
    "no field at all": (Task.model_construct(), "/: "),
    "no payload": (Task.model_construct(id=UUID(int=1), created_at=datetime.now(UTC)), "/: "),
    "an id that is none": (task_with(id="nobody"), "/id"),
    "a time without a zone": (task_with(created_at=datetime(2026, 1, 1)), "/created_at: "),
    "a time before the year 1000": (task_with(created_at=datetime(999, 1, 1, tzinfo=UTC)), "/created_at: "),
    "an unknown kind": (task_with(Nap.model_construct(kind="other", seconds=1)), "/payload: no such kind"),
    "a number past its limit": (mutated("seconds", 86400.5), "/payload/seconds: "),
    "a string for a number": (mutated("seconds", "3"), "/payload/seconds: "),
    "not a number": (mutated("seconds", float("nan")), "/payload/seconds: "),
    "infinity": (mutated("seconds", float("inf")), "/payload/seconds: "),
    "None for a default": (mutated("failures", None), "/payload/failures: "),
    "an attribute too many": (mutated("colour", "red"), "/payload: "),
    "an attribute too many at the top": (task_with(colour="red"), "/: "),
    "an empty text": (task_with(Digest.model_construct(kind="digest", text="")), "/payload/text: "),
    "a null byte in a text": (task_with(Digest.model_construct(kind="digest", text="a\x00")), "/payload/text: "),
    "a text that is not Unicode": (
        task_with(Digest.model_construct(kind="digest", text="a\udcff")),
        "surrogates not allowed",
    ),
    "what JSON does not have": (mutated("colour", object()), "Unable to serialize"),
    "itself": (mutated("colour", cyclic), "Circular reference"),
    "more than the size limit": (mutated("colour", "x" * SEND.message.max_bytes), str(SEND.message.max_bytes)),
}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(("model", "problem"), INVALID_MODELS.values(), ids=INVALID_MODELS)
def test_a_model_that_breaks_the_contract_is_not_sent(model: Task, problem: str) -> None:
    with pytest.raises(TaskInvalid) as caught:
        CODEC.encode(model)
    assert problem in caught.value.reason
    assert caught.value.message_id == str(getattr(model, "id", ""))
    assert len(str(caught.value).splitlines()) == 1


def test_a_refused_model_says_so_once() -> None:
    with pytest.raises(TaskInvalid):
        CODEC.encode(mutated("seconds", "3"))


# --- results ----------------------------------------------------------------------------------------------------------

RESULTS = ResultCodec(RECEIVE)


def test_a_result_is_encoded_as_the_contract_says() -> None:
    assert json.loads(RESULTS.encode(NapResult(kind="nap", attempt=3))) == {"kind": "nap", "attempt": 3}
    whole = {"kind": "digest", "text": "a/é", "algorithm": "sha512", "digest": "0f" * 64, "size": 2**53 - 1}
    assert json.loads(RESULTS.encode(DigestResult(**whole))) == whole  # type: ignore[arg-type]
    assert independent(RECEIVE.result_schema).is_valid(whole)


def test_a_result_that_is_too_large_is_refused_by_its_size() -> None:
    huge = DigestResult.model_construct(kind="digest", text="x" * RECEIVE.result_max_bytes)
    with pytest.raises(ValueError, match=f"the limit is {RECEIVE.result_max_bytes}"):
        RESULTS.encode(huge)


@pytest.mark.parametrize(
    ("result", "place"),
    [
        (NapResult.model_construct(kind="nap", attempt=0), "/attempt: "),
        (NapResult.model_construct(kind="nap"), "/: "),
        (NapResult.model_construct(kind="nap", attempt=1, colour="red"), "/: "),
        (NapResult.model_construct(kind="sleep", attempt=1), "/: no such kind"),
        (decoded(NAP), "/: "),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_result_that_breaks_the_contract_is_refused_in_one_line(result: Any, place: str) -> None:
    with pytest.raises(ValueError, match="the result breaks the contract: " + place) as caught:
        RESULTS.encode(result)
    assert len(str(caught.value).splitlines()) == 1


def test_all_applications_of_a_process_share_the_codec_of_a_message() -> None:
    message: Any = SimpleNamespace(name="Task")
    assert ContractCodecs(worker).create(message) is ContractCodecs(worker).create(message)
