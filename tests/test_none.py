"""None in Python is null in JSON where the schema has a null; elsewhere an optional property is absent."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tests.test_values import TEXT, Compiled, compiled, kind, union
from workqueue.errors import NotSent

pytestmark = pytest.mark.slow

PER = {"type": "object", "additionalProperties": False, "properties": {"unit": TEXT, "many": {"type": "integer"}}}
QUOTE = kind(
    "quote",
    ("total",),
    total=TEXT,
    per=PER,
    note={"type": ["string", "null"]},
    currency={"type": "string", "enum": ["EUR", "CHF"]},
    either={"oneOf": [TEXT, {"type": "integer"}]},
    parts={"type": "array", "items": PER},
    by_name={"type": "object", "additionalProperties": PER},
    words={"type": "array", "items": TEXT},
    mode={"type": "string", "default": "fast"},
    place={
        "anyOf": [
            {"type": "object", "required": ["street"], "properties": {"street": TEXT, "floor": {"type": "integer"}}},
            {"type": "object", "required": ["box"], "properties": {"box": TEXT, "floor": {"type": ["string", "null"]}}},
        ]
    },
    **{"hyphen-ated": TEXT},
)
NOTE = kind("note", note=TEXT)  # where the same name has no null


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    def add(schemas: dict[str, Any]) -> None:
        schemas |= {"Quoted": QUOTE, "Noted": NOTE}
        schemas["Result"]["oneOf"].append({"$ref": "#/components/schemas/Quoted"})
        union(schemas).extend([{"$ref": "#/components/schemas/Quoted"}, {"$ref": "#/components/schemas/Noted"}])

    return Compiled(compiled(tmp_path_factory.mktemp("none") / "project", add))


def task(ours: Compiled, **fields: Any) -> Any:
    payload = ours.models.Quoted(kind="quote", **{"total": "1", **fields})
    return ours.models.Task(id=UUID(int=1), created_at=datetime.now(UTC), payload=payload)


ABSENT = ["per", "currency", "either", "parts", "by_name", "words", "place", "hyphen-ated"]


@pytest.mark.parametrize("name", ABSENT)
def test_none_for_an_optional_property_without_a_null_is_absent(ours: Compiled, name: str) -> None:
    sent = task(ours, **{name: None})
    assert ours.sent(sent) == {"kind": "quote", "total": "1"}
    assert json.loads(ours.results.encode(task(ours, **{name: None}).payload)) == {"kind": "quote", "total": "1"}


def test_all_of_them_at_once_are_absent_and_a_null_that_the_schema_has_stays(ours: Compiled) -> None:
    given = {**dict.fromkeys(ABSENT), "note": None}
    assert ours.sent(task(ours, **given)) == {"kind": "quote", "total": "1", "note": None}
    encoded = ours.results.encode(task(ours, **given).payload)
    assert json.loads(encoded) == {"kind": "quote", "total": "1", "note": None}


def test_none_is_absent_below_lists_and_maps_too(ours: Compiled) -> None:
    below = {"unit": None, "many": 2}
    sent = ours.sent(task(ours, parts=[below, {"unit": "a"}], by_name={"b": below}, note=None))
    assert sent == {
        "kind": "quote",
        "total": "1",
        "note": None,
        "parts": [{"many": 2}, {"unit": "a"}],
        "by_name": {"b": {"many": 2}},
    }


def test_in_a_union_without_a_tag_none_is_absent_for_the_alternative_that_has_no_null(ours: Compiled) -> None:
    sent = ours.sent(task(ours, place={"street": "a", "floor": None}, per=None))
    assert sent["place"] == {"street": "a"}
    sent = ours.sent(task(ours, place={"box": "a", "floor": None}, per=None))
    assert sent["place"] == {"box": "a", "floor": None}


def test_a_field_that_was_set_to_none_later_is_absent(ours: Compiled) -> None:
    sent = task(ours, per={"unit": "a"})
    sent.payload.per = None
    assert ours.sent(sent) == {"kind": "quote", "total": "1"}


def test_what_is_wrong_beside_it_is_told_alone(ours: Compiled) -> None:
    sent = task(ours, per=None)
    sent.payload.currency = "USD"
    with pytest.raises(NotSent, match="/payload/currency") as refused:
        ours.codec.encode(sent)
    assert "null" not in refused.value.reason


@pytest.mark.parametrize(("name", "value"), [("total", None), ("mode", None), ("words", ["a", None])])
def test_a_none_that_is_not_an_absent_property_is_refused(ours: Compiled, name: str, value: Any) -> None:
    """A required property; one whose absence means its default; an item of a list."""
    sent = task(ours)
    setattr(sent.payload, name, value)
    with pytest.raises(NotSent, match=rf"/payload/{name}.*null is not of type"):
        ours.codec.encode(sent)
    with pytest.raises(ValueError, match=rf"/{name}.*null is not of type"):
        ours.results.encode(sent.payload)


def test_a_null_that_was_received_is_still_refused(ours: Compiled) -> None:
    assert "/payload/per: null is not of type" in ours.refusal({"kind": "quote", "total": "1", "per": None})
