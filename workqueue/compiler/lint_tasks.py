"""What a task must be: an envelope with an id, kinds that can be told apart, limits that reach one, examples and
defaults that are valid, and headers that take what the runtime writes into them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

from workqueue.compiler.documents import mapping
from workqueue.compiler.findings import Findings, channel_of, shown
from workqueue.compiler.lint_schemas import Path, every
from workqueue.tasks import story

ENVELOPE = ("id", "created_at", "payload")
"""What the runtime gives each task, and what it can fill."""
TASKS: tuple[Mapping[str, Any], ...] = (*({name: value} for name, value in story.READ.items()), story.ON_TASK)
LETTERS = tuple({**story.ON_LETTER, "x-reason": reason} for reason in story.REASONS)


def check(found: Findings) -> None:
    """Only for schemas that are JSON Schemas: they are applied here."""
    kinds: set[Path] = set()
    for operation in mapping(found.document.get("operations")).values():
        key, channel = channel_of(found, operation)
        for name, message in mapping(channel.get("messages")).items():
            at: Path = ("channels", key, "messages", name)
            kinds.update(_task(found, at, mapping(message)))
            _result(found, at, mapping(message))
            _examples(found, at, mapping(message), mapping(message).get("payload"))
            _accepts(found, (*at, "headers"), mapping(message).get("headers"), TASKS)
        if mapping(operation).get("action") == "receive":
            _stories(found, operation)
    for at, schema in every(found):
        _default(found, at, schema)
        if "x-time-limit-s" in schema and at not in kinds:
            text = "limits nothing: this is no kind of a task; put it on one of payload's kinds"
            found.say((*at, "x-time-limit-s"), text)


def flat(found: Findings, schema: Any) -> dict[str, Any]:
    """An object's schema with what its references and its `allOf` say of its properties."""
    while "$ref" in mapping(schema):
        schema = found.schemas.get(schema["$ref"].rpartition("/")[2])
    whole = dict(mapping(schema))
    for part in whole.pop("allOf", []):
        more = flat(found, part)
        theirs, ours = mapping(more.get("properties")), mapping(whole.get("properties"))
        told = {name: field for name, field in theirs.items() if "const" in mapping(field)}
        plain = {name: field for name, field in ours.items() if name not in told or "const" in mapping(field)}
        whole["properties"] = {**theirs, **plain}
        whole["required"] = [*whole.get("required", []), *more.get("required", [])]
        whole = {**more, **whole}
    return whole


def _task(found: Findings, at: Path, message: Mapping[str, Any]) -> set[Path]:
    """The envelope of a task. Gives the places of its kinds."""
    at, schema = _target((*at, "payload"), message.get("payload"), found)
    task = flat(found, schema)
    if not task:
        return set()
    properties, required = mapping(task.get("properties")), task.get("required", [])
    if task.get("type") != "object":
        found.say(at, "a task is type: object, with id, created_at and payload")
        return set()
    for name in ("id", "payload"):
        if name not in properties or name not in required:
            found.say(at, f"a task needs {name}: state it in properties and in required")
    for name, form in (("id", "uuid"), ("created_at", "date-time")):
        field = flat(found, properties.get(name, {}))
        if (field.get("type"), field.get("format")) != ("string", form) and (
            name in properties or name == "created_at"
        ):
            found.say((*at, "properties", name), f"the runtime fills it, as type: string with format: {form}; say that")
    for name in sorted(set(required) - set(ENVELOPE)):
        found.say(
            (*at, "required"),
            f"{name} is not filled by the runtime, which makes {', '.join(ENVELOPE)}; put it into the kinds",
        )
    return _kinds(found, (*at, "properties", "payload"), properties.get("payload"))


def _target(at: Path, schema: Any, found: Findings) -> tuple[Path, Any]:
    while "$ref" in mapping(schema):
        name = schema["$ref"].rpartition("/")[2]
        at, schema = ("components", "schemas", name), found.schemas.get(name)
    return at, schema


def _alternatives(found: Findings, at: Path, schema: Any) -> Iterator[tuple[Path, Any]]:
    at, schema = _target(at, schema, found)
    for key in ("oneOf", "anyOf"):
        if key in mapping(schema):
            for index, part in enumerate(schema[key]):
                yield from _alternatives(found, (*at, key, index), part)
            return
    yield at, schema


def _kinds(found: Findings, at: Path, payload: Any) -> set[Path]:
    """A payload is one kind, or several that a required `const` of one field tells apart."""
    kinds = dict(_alternatives(found, at, payload)) if payload is not None else {}
    objects = {place: flat(found, kind) for place, kind in kinds.items()}
    for place, kind in objects.items():
        if kind.get("type") != "object":
            found.say(place, "a kind of task is type: object, so that its payload can be added to")
    if len(kinds) < 2 or any(kind.get("type") != "object" for kind in objects.values()):
        return set(kinds)
    tags = {
        place: {
            name: flat(found, field)["const"]
            for name, field in mapping(kind.get("properties")).items()
            if "const" in flat(found, field) and name in kind.get("required", [])
        }
        for place, kind in objects.items()
    }
    common = set.intersection(*(set(tag) for tag in tags.values()))
    distinct = [name for name in common if len({repr(tag[name]) for tag in tags.values()}) == len(tags)]
    if not common:
        lacking = [place for place, tag in tags.items() if not tag] or list(tags)[1:]
        for place in lacking:
            found.say(
                place,
                "can't be told from the other kinds: give each the same required field, with its own const",
            )
    elif not distinct:
        name, seen = min(common), dict[str, Path]()
        for place, tag in tags.items():
            first = seen.setdefault(repr(tag[name]), place)
            if first != place:
                found.say(
                    (*place, "properties", name, "const"),
                    f"{shown(tag[name])} is the kind {first[-1]} too; give each its own",
                )
    return set(kinds)


def _result(found: Findings, at: Path, message: Mapping[str, Any]) -> None:
    if "x-result" in message:
        where, result = _target((*at, "x-result"), message["x-result"], found)
        found.rule("result", result, where)


# --- what is applied to them ------------------------------------------------------------------------------------------


def _validator(found: Findings, schema: Any) -> jsonschema_rs.Draft7Validator:
    whole = {"allOf": [schema], "components": {"schemas": found.schemas}}
    return jsonschema_rs.Draft7Validator(whole, validate_formats=True)


def _examples(found: Findings, at: Path, message: Mapping[str, Any], payload: Any) -> None:
    examples = message.get("examples")
    for index, example in enumerate(examples if isinstance(examples, list) else []):
        for part, schema in (("payload", payload), ("headers", message.get("headers"))):
            if part in mapping(example) and schema is not None:
                for error in _validator(found, schema).iter_errors(example[part]):
                    inside = "".join(f"/{key}" for key in error.instance_path)
                    found.say(
                        (*at, "examples", index, part), f"breaks its own schema: {inside or '/'}: {error.message}"
                    )


def _default(found: Findings, at: Path, schema: Mapping[str, Any]) -> None:
    if "default" in schema:
        for error in _validator(found, schema).iter_errors(schema["default"]):
            inside = "".join(f"/{key}" for key in error.instance_path)
            text = f"{shown(schema['default'])} breaks its own schema: {inside or '/'}: {error.message}"
            found.say((*at, "default"), f"{text}; give a default that is valid, or none")


def _accepts(found: Findings, at: Path, schema: Any, samples: tuple[Mapping[str, Any], ...]) -> None:
    """Whether headers may be what the runtime makes of them."""
    if not isinstance(schema, dict):
        return
    place, _ = _target(at, schema, found)
    version = str(mapping(found.document.get("info")).get("version"))
    for sample in samples:
        written = {**sample, "x-contract": version} if "x-contract" in sample else sample
        for error in _validator(found, schema).iter_errors(written):
            what = f"{'/'.join(map(str, error.instance_path)) or 'headers'}: {error.message}"
            if error.kind.name == "falseSchema":  # it names a value and no header
                what = f"state {', '.join(sorted(set(sample) - set(mapping(flat(found, schema).get('properties')))))}"
            found.say(place, f"refuses what the runtime writes: {what}")


def _stories(found: Findings, operation: Mapping[str, Any]) -> None:
    """A dead letter's headers take its story, with as many attempts as a task can have."""
    key, channel = channel_of(found, operation)
    dead, dead_channel = channel_of(found, operation.get("x-deadLetter"))
    delays = mapping(operation.get("x-retry")).get("channels")
    crashes = operation.get("x-crash-limit")
    attempts = (len(delays) if isinstance(delays, list) else 0) + 1
    for name, message in mapping(dead_channel.get("messages")).items():
        where: Path = ("channels", dead, "messages", name)
        headers = mapping(message).get("headers")
        _accepts(found, (*where, "headers"), headers, LETTERS)
        _examples(found, where, mapping(message), None)
        if isinstance(crashes, int):
            _room(found, (*where, "headers"), headers, attempts + crashes, needed=True)
    for name, message in mapping(channel.get("messages")).items():
        _room(
            found,
            ("channels", key, "messages", name, "headers"),
            mapping(message).get("headers"),
            attempts,
            needed=False,
        )


def _room(found: Findings, at: Path, headers: Any, attempts: int, *, needed: bool) -> None:
    place, schema = _target(at, headers, found)
    story = flat(found, mapping(flat(found, schema).get("properties")).get("x-attempts", {}))
    room = story.get("maxItems")
    here = (*place, "properties", "x-attempts", "maxItems")
    if needed and not isinstance(room, int):
        found.say(here, f"is missing: say how many attempts a story tells, {attempts} or more")
    elif isinstance(room, int) and room < attempts:
        found.say(here, f"{room}, and a task can have {attempts} failed attempts and crashes; say {attempts} or more")
