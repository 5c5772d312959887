"""What every schema must be: draft 07, without a keyword that nobody would read, and such that a model can be made."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs
from pydantic_core import SchemaError, SchemaValidator, core_schema

from workqueue.compiler.documents import mapping
from workqueue.compiler.findings import Findings, nearest, shown
from workqueue.compiler.resolve import DRAFT_07, FIELDS
from workqueue.compiler.samples import LARGEST

Path = tuple[str | int, ...]

META = jsonschema_rs.Draft7Validator({"$ref": f"{DRAFT_07}#"}, validate_formats=True)
KEYWORDS = {
    *FIELDS["schema"], "$ref", "title", "description", "type", "enum", "const", "default", "examples", "format",
    "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems",
    "maxItems", "uniqueItems", "minProperties", "maxProperties", "required", "readOnly", "writeOnly", "contentEncoding",
    "contentMediaType", "discriminator", "externalDocs", "deprecated",
}  # fmt: skip
TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
KEYS = "patternProperties"
# Of later drafts and of OpenAPI: draft 07 passes over them, so that they would promise what nobody checks.
INSTEAD = {
    "nullable": "say type: [..., 'null']",
    "prefixItems": "say items: [...]",
    "dependentRequired": "say dependencies",
    "dependentSchemas": "say dependencies",
    "unevaluatedProperties": "say additionalProperties: false",
    "unevaluatedItems": "say additionalItems: false",
    "minContains": "leave it out",
    "maxContains": "leave it out",
    "$dynamicRef": "say $ref",
    "$recursiveRef": "say $ref",
    "$anchor": "refer by #/ and the way to it",
}


def check(found: Findings) -> bool:
    """Whether the schemas can be applied to anything."""
    before = len(found.lines)
    for at, schema in roots(found):
        for error in META.iter_errors(schema):
            _broken(found, (*at, *error.instance_path), error)
    for at, schema in every(found):
        _patterns(found, at, schema)
    sound = len(found.lines) == before
    for at, schema in every(found):
        _keywords(found, at, schema)
        if sound:
            _bounds(found, at, schema)
            _told_apart(found, at, schema)
            _satisfiable(found, at, schema)
            _named(found, at, schema)
    return sound


def roots(found: Findings) -> Iterator[tuple[Path, Any]]:
    """The schemas that stand in no other."""
    for name, schema in found.schemas.items():
        yield ("components", "schemas", name), schema
    for key, channel in mapping(found.document.get("channels")).items():
        for name, message in mapping(mapping(channel).get("messages")).items():
            for part in ("payload", "headers", "x-result"):
                if part in mapping(message):
                    yield ("channels", key, "messages", name, part), message[part]


def every(found: Findings) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every schema of the document, those within others too."""
    for at, schema in roots(found):
        yield from within(at, schema)


def within(at: Path, schema: Any) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield at, schema
    for key, kind in FIELDS["schema"].items():
        below = schema.get(key)
        if kind == "{schema}" and isinstance(below, dict):
            children = [((*at, key, name), child) for name, child in below.items()]
        elif isinstance(below, list):
            children = [((*at, key, index), child) for index, child in enumerate(below)]
        else:
            children = [((*at, key), below)]
        for where, child in children:
            yield from within(where, child)


def _keywords(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    for key in schema:
        if key in INSTEAD:
            found.say((*at, key), f"draft 07 has no such keyword, and passes over it; {INSTEAD[key]}")
        elif key not in KEYWORDS and not key.startswith("x-") and (near := nearest(key, dict.fromkeys(KEYWORDS))):
            found.say((*at, key), f"draft 07 has no such keyword, and passes over it; is it {near}?")
    if "x-time-limit-s" in schema:
        found.rule("kind", schema, at)


def _patterns(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    """The values are checked with every pattern; a model holds only those of keys."""
    stated: dict[Path, Any] = {("pattern",): schema.get("pattern")}
    for below, pattern in (stated | {(KEYS, key): key for key in mapping(schema.get(KEYS))}).items():
        if not isinstance(pattern, str):
            continue
        if META.is_valid({"pattern": pattern}) and not _compiles(pattern):
            text = f"{shown(pattern)} can't be checked: it repeats too much, or names what is not known"
            found.say((*at, *below), text)
        elif KEYS in below and not modelled(pattern):
            found.say((*at, *below), "can't be in a model (no look-ahead or look-behind there)")


def _compiles(pattern: str) -> bool:
    try:
        jsonschema_rs.Draft7Validator({"pattern": pattern})
    except jsonschema_rs.ValidationError:
        return False
    return True


def _bounds(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    """A least that is more than the most, or than any message can hold."""
    bounds = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"),
              *itertools.product(("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")))  # fmt: skip
    for low, high in bounds:
        least, most = schema.get(low, -math.inf), schema.get(high, math.inf)
        if least > most or (least == most and "exclusive" in low + high):
            found.say((*at, low), f"{shown(least)}, with {high} {shown(most)}: no value is within both")
    for low, each in (("minLength", 1), ("minItems", 2), ("minProperties", 5)):
        if schema.get(low, 0) * each > LARGEST:
            found.say(
                (*at, low), f"{shown(schema[low])}: no message can hold so many (x-max-bytes is at most {LARGEST})"
            )


def _told_apart(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    """To Python true is 1, and false is 0: a model that takes both makes one of the other."""
    values = [value for value in schema.get("enum", ()) if isinstance(value, bool | int | float)]
    for truth in (value for value in values if isinstance(value, bool)):
        if any(value == truth for value in values if not isinstance(value, bool)):
            found.say((*at, "enum"), f"{shown(truth)} and {int(truth)} are one value in Python; leave one out")


def _satisfiable(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    """A required property that is none of those that are allowed, being misspelt: no value has it."""
    if schema.get("additionalProperties") is not False or schema.get("patternProperties"):
        return
    known = mapping(schema.get("properties"))
    for name in schema.get("required", ()):
        if name not in known:
            found.say((*at, "required"), f"{shown(name)} is none of its properties, and no others are allowed")


def _named(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    """A title that is another schema's name: both would be models of that name, and one of them gets another."""
    title = schema.get("title")
    if title in found.schemas and at != ("components", "schemas", title) and "properties" in schema:
        found.say((*at, "title"), f"{shown(title)} is the name of another schema, and so of its model; take another")


def modelled(pattern: str) -> bool:
    """Whether a generated model can hold this pattern, which the schema is checked with in any case."""
    try:
        SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError:
        return False
    return True


def _broken(found: Findings, at: Path, error: jsonschema_rs.ValidationError) -> None:
    if error.kind.name == "format" and at[-1] != "$ref":
        found.say(at, f"{shown(error.instance)} is no regular expression (ECMA 262)")
    elif at[-1] == "type":
        found.say(at, f"{shown(error.instance)} is no type of JSON; those are {', '.join(TYPES)}")
    else:
        found.say(at, f"{error.message}, and so no JSON Schema of draft 07")
