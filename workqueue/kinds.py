"""The kinds of a payload: the alternatives of its schema, and the required constant that tells them apart.

Pure functions on a resolved document's schemas. The names of the generated models play no part, because a title that
is no class name, or that is there twice, becomes another name.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
LIMIT = "x-time-limit-s"
UNTOLD = "task"
"""In lines and in the ledger, the kind of a task that nothing tells from others."""


def target(schema: Schema, schemas: Schema) -> Schema:
    """The schema itself, after any `$ref`s into `components/schemas`; draft 07's `true` and `false` state nothing."""
    while isinstance(schema, Mapping) and "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema if isinstance(schema, Mapping) else {}


def parts(schema: Schema, schemas: Schema) -> Iterator[Schema]:
    """The schema and all that it is made of by `$ref` and `allOf`."""
    here = target(schema, schemas)
    yield here
    for part in here.get("allOf", ()):
        yield from parts(part, schemas)


def field(schema: Schema, name: str, schemas: Schema) -> Schema | None:
    """The schema of a property, wherever in the parts it is stated."""
    stated = (part["properties"][name] for part in parts(schema, schemas) if name in part.get("properties", {}))
    return next(stated, None)


def alternatives(schema: Schema, schemas: Schema) -> Iterator[tuple[Schema, ...]]:
    """Each alternative of a union, whole unions inside it unfolded, with the schemas that led to it, outermost first;
    a schema that is no union is its only alternative."""
    whole = tuple(parts(schema, schemas))
    unions = [union for part in whole for key in ("oneOf", "anyOf") if (union := part.get(key))]
    if not unions:
        yield whole
    for branch in (branch for union in unions for branch in union):
        for below in alternatives(branch, schemas):
            yield (*whole, *below)


def constants(schema: Schema, schemas: Schema) -> dict[str, tuple[Any, ...]]:
    """The values of each required property that has only some: a `const` or an `enum`."""
    whole = list(parts(schema, schemas))
    required = {name for part in whole for name in part.get("required", ())}
    found: dict[str, tuple[Any, ...]] = {}
    for part in whole:
        for name, stated in part.get("properties", {}).items():
            values = _values(stated, schemas)
            if values and name in required:
                found[name] = values
    return found


def _values(schema: Schema, schemas: Schema) -> tuple[Any, ...]:
    for part in parts(schema, schemas):
        if "const" in part:
            return (part["const"],)
        if "enum" in part:
            return tuple(part["enum"])
    return ()


def tag(found: list[dict[str, tuple[Any, ...]]]) -> str | None:
    """The property that tells alternatives with these constants apart: all have it, and none has more values."""
    shared = [name for name in found[0] if all(name in one for one in found)] if found else []
    distinct = {name: len({text(value) for one in found for value in one[name]}) for name in shared}
    best = max(distinct, key=distinct.__getitem__, default=None)
    return best if best is not None and (len(found) == 1 or distinct[best] > 1) else None


def text(value: Any) -> str:
    """A tag's value as the text that names a kind."""
    return value if isinstance(value, str) else repr(value)


def payload_tag(schema: Schema, schemas: Schema) -> str | None:
    """The property that tells the kinds of this payload apart; None if nothing does."""
    return tag(list(options(schema, schemas)))


def names(payload: Schema, schemas: Schema) -> frozenset[str]:
    """The kinds of this payload, as lines and the ledger have them."""
    found = list(options(payload, schemas))
    name = tag(found)
    return frozenset([UNTOLD] if name is None else (text(value) for one in found for value in one[name]))


def options(schema: Schema, schemas: Schema) -> Iterator[dict[str, tuple[Any, ...]]]:
    """The constants of each alternative."""
    return (merged(path, schemas) for path in alternatives(schema, schemas))


def merged(path: tuple[Schema, ...], schemas: Schema) -> dict[str, tuple[Any, ...]]:
    return {name: values for part in path for name, values in constants(part, schemas).items()}


def time_limits_s(message: Schema, schemas: Schema) -> dict[str | None, float]:
    """How long an attempt may take, by the kind's tag; `None` is for whatever has no limit of its own.

    The innermost limit holds: one on a kind, then one on the union, then one on the message's own schema.
    """
    limits: dict[str | None, float] = {}
    payload = field(message, "payload", schemas) or {}
    for part in (*parts(message, schemas), *parts(payload, schemas)):
        if LIMIT in part:
            limits[None] = float(part[LIMIT])
    name = payload_tag(payload, schemas)
    for path in alternatives(payload, schemas):
        stated = [float(part[LIMIT]) for part in path if LIMIT in part]
        if stated and name is not None:
            limits |= dict.fromkeys(map(text, merged(path, schemas)[name]), stated[-1])
    return limits


def unreachable_limits(message: Schema, schemas: Schema) -> list[str]:
    """A line for each `x-time-limit-s` of the message that no task would be held to: it stands on something that is no
    kind, or nothing tells its kind from the others."""
    payload = field(message, "payload", schemas) or {}
    paths = list(alternatives(payload, schemas))
    common = [*parts(message, schemas), *parts(payload, schemas)]
    held = {id(part) for part in common}
    problems = []
    if payload_tag(payload, schemas) is not None:
        held |= {id(part) for path in paths for part in path}
    elif any(LIMIT in part and id(part) not in held for path in paths for part in path):
        problems.append(f"{LIMIT} on a kind of a payload whose kinds no required const tells apart; add one to each")
        held |= {id(part) for path in paths for part in path}
    for place, schema in walk(message, schemas, "", set()):
        if LIMIT in schema and id(schema) not in held:
            problems.append(f"{place or '/'}: {LIMIT} is on nothing that is a kind of the payload; move it to the kind")
    return problems


def walk(node: Any, schemas: Schema, place: str, seen: set[int]) -> Iterator[tuple[str, Schema]]:
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from walk(item, schemas, f"{place}/{number}", seen)
    if not isinstance(node, Mapping):
        return
    here = target(node, schemas) if isinstance(node.get("$ref"), str) else node
    if id(here) in seen:
        return
    seen.add(id(here))
    yield place, here
    for key, below in here.items():
        if key not in ("const", "enum", "default", "examples"):
            yield from walk(below, schemas, f"{place}/{key}", seen)


def naming(name: str | None) -> Callable[[Any], str | None]:
    """A function from a payload's model to its kind, the value of its tag `name`."""
    attributes: dict[type, str] = {}

    def kind(payload: Any) -> str | None:
        attribute = attributes.get(type(payload))
        if attribute is None:
            attribute = attributes[type(payload)] = _attribute(type(payload), name)
        value = getattr(payload, attribute, None)
        return value if value is None or isinstance(value, str) else text(value)

    return kind


def _attribute(model: type, name: str | None) -> str:
    fields: Mapping[str, Any] = getattr(model, "model_fields", {})
    return next((key for key, field in fields.items() if (field.alias or key) == name), name or "")
