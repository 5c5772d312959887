"""What is sent is what arrives, with contracts that are not the example's.

One contract with many kinds is compiled once, and its values go through the codec; those that can't be kept are
compiled one by one, and refused.
"""

import importlib.util
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from workqueue import contract, kinds
from workqueue.codec import ModelCodec, ResultCodec, Undecodable, digest
from workqueue.codec.models import as_json
from workqueue.compiler import generate, roundtrip
from workqueue.errors import NotSent, TaskInvalid

pytestmark = pytest.mark.slow

SPEC = Path(__file__).parent.parent / "spec"
TEXT = {"type": "string"}
DAY = {"type": "string", "format": "date"}


def kind(name: str, required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    tag = {"type": "string", "const": name}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["kind", *required],
        "properties": {"kind": tag, **properties},
    }


FORMATS = {  # a value that a type of its own would write in another way, or not take
    "password": "hunter2",
    "uri": "https://example.com",
    "uri-reference": "../a",
    "iri": "https://example.com/é",
    "duration": "P1M",
    "email": "A.B@EXAMPLE.com",
    "idn-email": "ü@example.com",
    "time": "23:59:59.123456789+01:00",
    "hostname": "EXAMPLE.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:DB8:0:0:0:0:0:1",
    "ipv4-network": "192.0.2.1/24",
    "byte": "aGVsbG8=",
    "binary": "é",
    "decimal": "1.10",
    "date": "2026-01-01",
    "date-time-local": "2026-01-01T00:00:00.50",
    "path": "a//b/./c",
    "regex": "^a+$",
    "json-pointer": "/a~1b",
    "colour": "Red",
    "uuid4": "6A0E1C1E3C534A3C9C9B2F2F4C9C0F01",  # draft 07 knows no such format: any text
}
PROBE = kind(
    "probe",
    **{name: {"type": "string", "format": name} for name in FORMATS},
    when={"type": "string", "format": "date-time"},
    ref={"type": "string", "format": "uuid"},
    amount={"type": "number", "format": "decimal", "minimum": 0.01},
    number={"type": "number"},
    flag={"type": ["boolean", "number"]},
    large={"type": "integer", "format": "int64"},
    tags={"type": "array", "items": TEXT, "default": []},
    labels={"type": "object", "additionalProperties": {"type": "integer"}, "default": {}},
    options={
        "type": "object",
        "default": {},
        "properties": {"steps": {"type": "array", "items": {"type": "integer"}, "default": [1]}},
    },
    lines={
        "type": "array",
        "default": [],
        "items": {"type": "object", "properties": {"notes": {"type": "array", "items": TEXT, "default": []}}},
    },
    camelCase=TEXT,
    **dict.fromkeys(("hyphen-ated", "class", "from", "model_config", "json", "copy", "payload", "_under"), TEXT),
    **dict.fromkeys(("model_dump", "modelDumped", "model_validate_json"), TEXT),
)
STRICT = kind("strict", ("when",), when={"type": "string", "format": "date-time"}, version={"const": 2})
NAP = {**kind("nap"), "title": "Take a nap", "x-time-limit-s": 2}
ANY = {**kind("any"), "title": "Any", "x-time-limit-s": 3}
INLINE = {**kind("inline"), "x-time-limit-s": 4}
TREE = kind("tree", kids={"type": "array", "items": {"$ref": "#/components/schemas/Tree"}})
MADE_OF = {
    "allOf": [{"$ref": "#/components/schemas/Base"}, {"required": ["n"], "properties": {"n": {"type": "integer"}}}],
    "x-time-limit-s": 5,
}
BASE = {"type": "object", "required": ["kind"], "properties": {"kind": {"const": "made-of"}}}
SCHEMAS = {"Probe": PROBE, "Strict": STRICT, "Nap": NAP, "Any": ANY, "Tree": TREE, "MadeOf": MADE_OF, "Base": BASE}
REPORT = kind("probe", ("mail",), mail={"type": "string", "format": "email"}, tags=PROBE["properties"]["tags"])


def compiled(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The worker's package of a contract whose common document `edit` has changed."""
    spec = folder / "spec"
    spec.mkdir(parents=True)
    for document in SPEC.glob("*.yaml"):
        content = yaml.safe_load(document.read_text())
        if "schemas" in content.get("components", {}):
            edit(content["components"]["schemas"])
        (spec / document.name).write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generator's own
        patch.chdir(SPEC.parent)  # the generator takes its options from the pyproject.toml there
        generate.build(folder, folder / "generated")
    return folder / "generated" / "worker"


def union(schemas: dict[str, Any]) -> list[Any]:
    found: list[Any] = schemas["Task"]["properties"]["payload"]["oneOf"]
    return found


def with_kinds(schemas: dict[str, Any]) -> None:
    schemas |= deepcopy(SCHEMAS)
    union(schemas).extend([{"$ref": f"#/components/schemas/{name}"} for name in SCHEMAS if name != "Base"])
    union(schemas).append(deepcopy(INLINE))
    schemas["Report"] = deepcopy(REPORT)
    schemas["Result"]["oneOf"].append({"$ref": "#/components/schemas/Report"})


class Compiled:
    def __init__(self, package: Path) -> None:
        spec = importlib.util.spec_from_file_location("values_models", package / "messages" / "json" / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        self.models = sys.modules["values_models"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.models)
        (self.receive,) = contract.read(json.loads((package / "contract.json").read_text())).receives.values()
        self.codec: ModelCodec[Any] = ModelCodec(self.models.Task, self.receive.message)
        self.results = ResultCodec(self.receive)

    def body(self, payload: dict[str, Any]) -> bytes:
        return json.dumps({"id": str(UUID(int=1)), "created_at": "2026-01-01T00:00:00Z", "payload": payload}).encode()

    def task(self, payload: dict[str, Any]) -> Any:
        made = self.codec.decode(self.body(payload))
        assert not isinstance(made, Undecodable), made
        return made

    def refusal(self, payload: dict[str, Any]) -> str:
        made = self.codec.decode(self.body(payload))
        assert isinstance(made, Undecodable), made
        assert made.reason == "invalid"
        return made.error

    def sent(self, task: Any) -> Any:
        return json.loads(self.codec.encode(task))["payload"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(compiled(tmp_path_factory.mktemp("values") / "project", with_kinds))


# --- every format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), FORMATS.items())
def test_a_text_of_any_format_arrives_as_it_was_sent(ours: Compiled, name: str, value: str) -> None:
    payload = {"kind": "probe", name: value}
    task = ours.task(payload)
    assert ours.sent(task) == payload
    given = type(task.payload)(**payload)
    assert ours.sent(ours.models.Task(id=UUID(int=1), created_at=datetime.now(UTC), payload=given)) == payload


@pytest.mark.parametrize("name", ["uri", "email", "time", "ipv4", "ipv6", "duration", "date", "json-pointer"])
def test_the_schema_still_checks_a_format_whose_model_is_text(ours: Compiled, name: str) -> None:
    assert f"/payload/{name}" in ours.refusal({"kind": "probe", name: "no such thing"})


@pytest.mark.parametrize("text", ["P", "PT", "P1", "1M", "P1S", "P1MT", "-P1M"])
def test_what_is_no_duration_is_refused(ours: Compiled, text: str) -> None:
    assert "/payload/duration" in ours.refusal({"kind": "probe", "duration": text})


@pytest.mark.parametrize(
    "payload",
    [
        {"amount": 1.5},
        {"large": 2**63 - 1},
        {"large": 2**70},
        {"number": 1},
        {"number": 0.1},
        {"number": 1e300},
        {"flag": True},
        {"flag": 1},
        {"when": "2026-11-25T09:30:00.25+01:00"},
        {"ref": "6A0E1C1E-3C53-4A3C-9C9B-2F2F4C9C0F01"},
        {"camelCase": "a", "hyphen-ated": "b", "class": "c", "from": "d", "model_config": "e"},
        {"json": "a", "copy": "b", "payload": "c", "_under": "d"},
        {"labels": {"a": 1}, "tags": [""], "options": {"steps": []}},
    ],
    ids=str,
)
def test_values_and_names_of_every_sort_arrive(ours: Compiled, payload: dict[str, Any]) -> None:
    sent = ours.sent(ours.task({"kind": "probe", **payload}))
    again = ours.task(sent)
    assert again == ours.task({"kind": "probe", **payload})
    if "when" not in payload and "ref" not in payload:
        assert sent == {"kind": "probe", **payload}


# --- what can't be kept is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("when", "2026-01-01T00:00:00.123456789Z"),
        ("number", 2**53 + 1),
        ("ref", "urn:uuid:6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01"),
    ],
)
def test_a_value_that_its_model_would_change_is_refused_with_the_change(ours: Compiled, name: str, value: Any) -> None:
    error = ours.refusal({"kind": "probe", name: value})
    assert error.startswith(f"/payload/{name}: {value!r} would become ")
    made = ours.codec.from_value(json.loads(ours.body({"kind": "probe", name: value})))
    assert isinstance(made, Undecodable)  # so for a line of --jsonl
    assert made.error == error


def test_a_body_may_be_spelled_in_any_way(ours: Compiled) -> None:
    payload = {"when": "2026-01-01T00:00:00.500+00:00", "number": 1.0, "kind": "probe"}
    body = json.dumps({"payload": payload, "created_at": "2026-01-01T00:00:00.1Z", "id": str(UUID(int=1))}, indent=2)
    assert not isinstance(ours.codec.decode(body.encode()), Undecodable)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("password", SecretStr("hunter2"), "/payload/password: SecretStr('**********') would become '**********'"),
        ("number", 2**53 + 1, f"/payload/number: {2**53 + 1} would become {float(2**53)!r}"),
        ("date", datetime(2026, 1, 1, tzinfo=UTC), "/payload/date: "),
    ],
)
def test_a_model_that_would_arrive_changed_is_not_sent(ours: Compiled, name: str, value: Any, shown: str) -> None:
    task = ours.task({"kind": "probe"})
    setattr(task.payload, name, value)
    with pytest.raises(NotSent) as refused:
        ours.codec.encode(task)
    assert refused.value.reason.startswith(shown)
    assert len(str(refused.value).splitlines()) == 1


def test_a_value_that_says_the_same_in_another_type_is_sent(ours: Compiled) -> None:
    task = ours.task({"kind": "probe"})
    task.id, task.payload.tags, task.payload.path = str(UUID(int=2)), ("a", "b"), Path("a/b")
    task.payload.number = 3
    assert ours.sent(task) == {"kind": "probe", "tags": ["a", "b"], "path": "a/b", "number": 3}


# --- defaults that are filled in place --------------------------------------------------------------------------------


def test_a_default_that_was_filled_in_place_is_sent(ours: Compiled) -> None:
    task = ours.task({"kind": "probe"})
    assert ours.sent(task) == {"kind": "probe"}
    task.payload.tags.append("urgent")
    assert ours.sent(task) == {"kind": "probe", "tags": ["urgent"]}
    task.payload.labels["a"] = 1
    task.payload.options.steps.append(2)
    filled = {"kind": "probe", "tags": ["urgent"], "labels": {"a": 1}, "options": {"steps": [1, 2]}}
    assert ours.sent(task) == filled
    assert ours.task(filled) == task


def test_a_default_that_was_filled_below_a_filled_default_is_sent(ours: Compiled) -> None:
    task = ours.task({"kind": "probe"})
    line = type(ours.task({"kind": "probe", "lines": [{}]}).payload.lines[0])()
    line.notes.append("fragile")
    task.payload.lines.append(line)
    assert ours.sent(task) == {"kind": "probe", "lines": [{"notes": ["fragile"]}]}


@pytest.mark.parametrize("below", [[], ["fragile"]])
def test_a_number_that_json_has_not_is_refused_whatever_else_is_filled(ours: Compiled, below: list[str]) -> None:
    task = ours.task({"kind": "probe"})
    task.payload.number = float("nan")
    task.payload.tags.extend(below)
    with pytest.raises(TaskInvalid, match="/payload/number: null is not of type"):
        ours.codec.encode(task)


def test_a_default_that_was_filled_in_a_model_within_plain_values_is_sent(ours: Compiled) -> None:
    line = type(ours.task({"kind": "probe", "lines": [{}]}).payload.lines[0])()
    line.notes.append("fragile")
    given = {"kind": "probe", "lines": [line]}
    assert as_json(given) == ({"kind": "probe", "lines": [{"notes": ["fragile"]}]}, None)
    line.notes.append({"a", "b"})
    _, changed = as_json(given)
    assert changed is not None
    assert str(changed).startswith("/lines/0/notes/1: {")


def test_a_default_that_was_filled_below_a_list_is_sent(ours: Compiled) -> None:
    task = ours.task({"kind": "tree", "kids": [{"kind": "tree"}, {"kind": "tree", "kids": []}]})
    first = task.payload.kids[0]
    first.kids = None
    assert "kids" in ours.refusal({"kind": "tree", "kids": [{"kind": "tree", "kids": None}]})
    assert ours.sent(task)["kids"][0] == {"kind": "tree"}  # there is no null, so that None is absent
    first.kids = [type(first)(kind="tree")]
    assert ours.sent(task)["kids"][0] == {"kind": "tree", "kids": [{"kind": "tree"}]}


def test_a_result_that_was_filled_in_place_is_kept(ours: Compiled) -> None:
    report = next(
        m for m in vars(ours.models).values() if getattr(m, "model_fields", {}).keys() == {"kind", "mail", "tags"}
    )
    result = report(kind="probe", mail="A@EXAMPLE.com")
    result.tags.append("x")
    assert json.loads(ours.results.encode(result)) == {"kind": "probe", "mail": "A@EXAMPLE.com", "tags": ["x"]}


@pytest.mark.parametrize("result", [{"kind": "probe"}, "done", 3, [1], object, b"x"], ids=repr)
def test_a_result_that_is_no_model_is_refused_in_one_line_with_the_way_out(ours: Compiled, result: Any) -> None:
    with pytest.raises(ValueError, match=f"^the handler returned {type(result).__name__}, which is no model; return"):
        ours.results.encode(result)


# --- unions -----------------------------------------------------------------------------------------------------------


def test_what_a_model_refuses_is_told_of_the_kind_that_the_tag_chose(ours: Compiled) -> None:
    error = ours.refusal({"kind": "strict", "when": "2016-12-31T23:59:60Z"})
    assert error.startswith("/payload/when: ")
    assert "hecksum" not in error


def test_a_wrong_constant_that_is_not_the_tag_does_not_hide_the_kind(ours: Compiled) -> None:
    error = ours.refusal({"kind": "strict", "when": "2026-01-01T00:00:00Z", "version": 1})
    assert error.startswith("/payload/version: ")


def test_an_unknown_kind_is_told_with_all_that_there_are(ours: Compiled) -> None:
    error = ours.refusal({"kind": "none"})
    assert error.startswith("/payload: no such kind (")
    assert all(f'"{name}"' in error for name in ("probe", "strict", "nap", "made-of", "inline"))


# --- time limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "limit_s"),
    [
        ({"kind": "nap"}, 2.0),
        ({"kind": "any"}, 3.0),
        ({"kind": "inline"}, 4.0),
        ({"kind": "made-of", "n": 1}, 5.0),
        ({"kind": "probe"}, None),
    ],
)
def test_a_time_limit_holds_whatever_the_title_and_the_place_of_its_kind(
    ours: Compiled, payload: dict[str, Any], limit_s: float | None
) -> None:
    task = ours.task(payload)
    assert ours.receive.kind_of(task.payload) == payload["kind"]
    assert ours.receive.time_limit_s(ours.receive.kind_of(task.payload)) == limit_s


def limits(payload: dict[str, Any], **message: Any) -> dict[str | None, float]:
    return kinds.time_limits_s({"properties": {"payload": payload}, **message}, {})


def test_the_innermost_time_limit_holds() -> None:
    one, two = {**kind("a"), "x-time-limit-s": 1}, kind("b")
    assert limits({"oneOf": [one, two], "x-time-limit-s": 7}) == {"a": 1.0, "b": 7.0, None: 7.0}
    assert limits({"oneOf": [one, two]}, **{"x-time-limit-s": 9}) == {"a": 1.0, None: 9.0}
    assert limits({"type": "object", "x-time-limit-s": 3}) == {None: 3.0}


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"oneOf": [{**kind("a"), "x-time-limit-s": 1}, kind("b")]}, {"a", "b"}),
        (kind("a"), {"a"}),
        ({"type": "object"}, {"task"}),
        ({"oneOf": [{"type": "object"}, {"type": "array"}]}, {"task"}),
    ],
)
def test_a_kind_needs_no_time_limit_to_be_one(payload: dict[str, Any], found: set[str]) -> None:
    assert kinds.names(payload, {}) == found


def test_a_limit_that_no_task_would_be_held_to_is_told() -> None:
    lost = {**kind("a", below={"type": "object", "x-time-limit-s": 1})}
    (line,) = kinds.unreachable_limits({"properties": {"payload": {"oneOf": [lost, kind("b")]}}}, {})
    assert line.startswith("/properties/payload/oneOf/0/properties/below: x-time-limit-s")
    untold = {"oneOf": [{"type": "object", "x-time-limit-s": 1}, {"type": "array"}]}
    (line,) = kinds.unreachable_limits({"properties": {"payload": untold}}, {})
    assert "no required const" in line
    assert kinds.unreachable_limits({"properties": {"payload": {"oneOf": [kind("a"), NAP]}}}, {}) == []


# --- the proof --------------------------------------------------------------------------------------------------------

UNKEPT = {
    "a date or a time": (
        {"oneOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]},
        "/payload/field: '2026-01-01T00:00:00Z' would become '2026-01-01'",
    ),
    "a default of a type of its own": (
        {**DAY, "default": "2026-01-01"},
        'properties/field/default: "2026-01-01" would reach a handler as it is written',
    ),
    "such a default far below": (
        {
            "type": "array",
            "items": {"type": "array", "items": {"properties": {"day": {**DAY, "default": "2026-01-01"}}}},
        },
        'properties/day/default: "2026-01-01" would reach a handler as it is written',
    ),
    "an integer as a fraction in a list": (
        {"type": "array", "items": {"type": "integer"}, "default": [1.0]},
        "properties/field/default: [1.0] would reach a handler as it is written",
    ),
    "such a default in a list": (
        {"type": "array", "items": DAY, "default": ["2026-01-01"]},
        'properties/field/default: ["2026-01-01"] would reach a handler as it is written',
    ),
}


@pytest.mark.parametrize(("schema", "said"), UNKEPT.values(), ids=UNKEPT)
def test_generate_refuses_what_can_not_be_kept_and_names_kind_field_and_change(
    tmp_path: Path, schema: dict[str, Any], said: str
) -> None:
    def add(schemas: dict[str, Any]) -> None:
        union(schemas).append(kind("trial", field=schema))

    with pytest.raises(generate.SpecError) as refused:
        compiled(tmp_path / "project", add)
    assert all(said in line for line in refused.value.problems)
    assert len(refused.value.problems) <= 2  # for each application; of a place that both have just one


def test_the_examples_own_contract_is_proved_quickly() -> None:
    assert unkept(SPEC.parent / "generated" / "worker") == []
    assert unkept(SPEC.parent / "generated" / "producer") == []


def unkept(package: Path) -> list[str]:
    loaded = contract.read(json.loads((package / "contract.json").read_bytes()))
    return roundtrip.problems(loaded, generate.load(package).messages.json)


def test_the_proof_sees_a_model_that_changes_values(tmp_path: Path) -> None:
    package = shutil.copytree(SPEC.parent / "generated" / "worker", tmp_path / "worker")
    text = (package / "messages" / "json" / "__init__.py").read_text()
    changed = text.replace("class Simulate(BaseModel):", "class Simulate(BaseModel):\n    seconds: int", 1)
    changed = changed.replace("    seconds: Annotated[\n        float,", "    other: Annotated[\n        float | None,")
    assert changed != text
    (package / "messages" / "json" / "__init__.py").write_text(changed)
    assert unkept(package)


# --- the digest -------------------------------------------------------------------------------------------------------


def test_a_digest_is_of_the_payload_alone_and_of_its_meaning() -> None:
    one = b'{"id": "1", "created_at": "x", "payload": {"kind": "a", "n": 1, "m": {"b": [1.5, "\xc3\xa9"], "a": null}}}'
    other = b'{"payload":{"m":{"a":null,"b":[1.5,"\\u00e9"]},"n":1.0,"kind":"a"},"id":"2"}'
    assert digest(one) == digest(other)
    for changed in (one.replace(b"1.5", b"1.6"), one.replace(b"null", b"0"), one.replace(b'"n"', b'"o"')):
        assert digest(changed) != digest(one)


def test_a_digest_stays_the_same_from_version_to_version() -> None:
    """The ledger remembers it: another one for the same payload would be taken for a conflict."""
    body = (
        '{"payload": {"kind": "a", "t": "\u00e9\u2028\\n\\"/", "n": [0.1, 1e21, -0.0, 9007199254740993, true, null]}}'
    )
    assert len(digest(body.encode())) == 8
    assert digest(body.encode()).hex() == "4f5d994577cfcfc6"


def test_a_model_is_untouched_by_being_encoded(ours: Compiled) -> None:
    task = ours.task({"kind": "probe", "uri": "https://example.com"})
    before: BaseModel = task.model_copy(deep=True)
    ours.codec.encode(task)
    assert task == before
    assert task.payload.model_fields_set == {"kind", "uri"}
