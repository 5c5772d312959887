"""Values of a JSON Schema: its boundaries and one of each sort, made without chance."""

import itertools
import json
import re
import re._parser as re_parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from workqueue import kinds
from workqueue.codec import Schema
from workqueue.compiler.documents import mapping

MOST = 2000  # values of one schema
LARGE = 65_536  # bytes of a value, of which only some are tried
ROOM = 4_000_000  # bytes of those
LARGEST = 16_777_216  # bytes that any message may have
DEPTH = 4  # of schemas that contain themselves

TEXTS = ("", "a", "A b", "é\u2028\U0001f4a9", '"\\/\n', "1", "1.0", "true", "null", "2026-01-01", " x ")
FORMATS: Mapping[str, tuple[str, ...]] = {
    "date": ("2026-02-28", "0001-01-01", "9999-12-31"),
    "date-time": ("2026-01-01T00:00:00Z", "2026-11-25T09:30:00.250+01:00", "2026-11-25T09:30:59.000001-11:30"),
    "time": ("00:00:00Z", "23:59:59.123456789+01:00"),
    "duration": ("P1M", "P30D", "PT36H", "P1Y2M3DT4H5M6S", "P2W"),
    "uuid": ("6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01", "6A0E1C1E-3C53-1A3C-9C9B-2F2F4C9C0F02"),
    "uri": ("https://example.com", "https://EXAMPLE.com:443/a/../b?q=%7e#f", "urn:a:b"),
    "uri-reference": ("a", "/a/../b", "https://example.com"),
    "iri": ("https://example.com/é",),
    "iri-reference": ("é",),
    "email": ("a@example.com", "A.B+c@EXAMPLE.com"),
    "idn-email": ("a@example.com", "ü@example.com"),
    "hostname": ("example.com", "EXAMPLE.com", "a-b"),
    "idn-hostname": ("example.com", "bücher.example"),
    "ipv4": ("0.0.0.0", "192.0.2.255"),
    "ipv6": ("::", "2001:DB8:0:0:0:0:0:1", "::ffff:192.0.2.1"),
    "ipv4-network": ("192.0.2.0/24", "192.0.2.1/24"),
    "ipv6-network": ("2001:DB8::/32",),
    "byte": ("", "YQ==", "aGVsbG8="),
    "binary": ("a", "é"),
    "password": ("hunter2",),
    "regex": ("^a+$",),
    "json-pointer": ("", "/a~1b/0"),
    "relative-json-pointer": ("1/a",),
    "uri-template": ("/a/{b}",),
    "decimal": ("1.10", "1e3", "00.1"),
}
NUMBERS = (0, 1, -1, 1.5, 0.1, 1.10, 1e-7, 1e21, -2.5, 2**31 - 1, 2**53 - 1, 2**31)
INTEGERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**53 - 1, 2**53 + 1, 2**63 - 1, -(2**63), 2**70)


CATEGORIES = {
    "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip


class Maker:
    """Makes values of schemas; what it makes may break a schema (a pattern beside a format), and is then not used."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas, self._sizes = schemas, Sizes()

    def values(self, schema: Any, depth: int = 0) -> list[Any]:
        """Values that the schema accepts, a few of each sort, the most ordinary first; of large ones not so many."""
        if not isinstance(schema, Mapping):
            return ["a"] if schema else []
        accepts = Schema({"allOf": [schema], "components": {"schemas": self._schemas}})
        unlike, room = dict[str, Any](), ROOM
        for value in self._made(schema, depth):
            size = self._sizes.of(value)
            if (size > LARGE and room < 0) or size > LARGEST:
                continue
            if accepts.problem(value) is None:
                unlike[json.dumps(value, sort_keys=True)] = value
                room -= size if size > LARGE else 0
            if len(unlike) == MOST:
                break
        return list(unlike.values())

    def _made(self, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        whole = list(kinds.parts(schema, self._schemas))
        merged = {key: value for part in reversed(whole) for key, value in part.items()}
        yield from merged.get("examples", ())
        yield from ([merged["default"]] if "default" in merged else ())
        if "const" in merged:
            yield merged["const"]
            return
        if "enum" in merged:
            yield from merged["enum"]
            return
        branches = [branch for part in whole for key in ("oneOf", "anyOf") for branch in part.get(key, ())]
        if branches and not any("properties" in part for part in whole):
            yield from _in_turn([self.values(branch, depth) for branch in branches])
            return
        types = merged.get("type") or ("object" if "properties" in merged else None)
        for name in [types] if isinstance(types, str) else types or ["string", "integer", "null", "boolean"]:
            yield from self._typed(name, merged, whole, branches, depth)

    def _typed(self, name: str, merged: Any, whole: list[Any], branches: list[Any], depth: int) -> Iterator[Any]:
        match name:
            case "null":
                yield None
            case "boolean":
                yield from (True, False)
            case "integer":
                yield from _bounded(merged, INTEGERS)
            case "number":
                yield from _bounded(merged, NUMBERS)
            case "string":
                yield from _texts(merged)
            case "array" if depth < DEPTH:
                yield from self._arrays(merged, depth)
            case "object" if depth < DEPTH:
                for branch in branches or [{}]:
                    yield from self._objects([*whole, *kinds.parts(branch, self._schemas)], depth)

    def _arrays(self, schema: Mapping[str, Any], depth: int) -> Iterator[list[Any]]:
        least, items = schema.get("minItems", 0), schema.get("items", {"type": "string"})
        if isinstance(items, list):
            columns = [self.values(item, depth + 1) for item in items]
            yield from ([column[number % len(column)] for column in columns] for number in range(3) if all(columns))
            return
        made = self.values(items, depth + 1)
        yield from ([], made[: max(least, 1)], made[:least], made)
        for value in made:
            size = least * (self._sizes.of(value) + 1) + 1
            if size <= LARGEST:
                yield self._sizes.note([value] * max(least, 1), size)

    def _objects(self, whole: list[Mapping[str, Any]], depth: int) -> Iterator[dict[str, Any]]:
        fields = {name: below for part in whole for name, below in part.get("properties", {}).items()}
        required = {name for part in whole for name in part.get("required", ())}
        made = {name: self.values(below, depth + 1) for name, below in fields.items()}
        ordinary = {name: values[0] for name, values in made.items() if values}
        least = {name: value for name, value in ordinary.items() if name in required}
        small = {name: value if "format" in mapping(fields[name]) else min(made[name], key=self._sizes.of)
                 for name, value in least.items()}  # fmt: skip
        yield from (ordinary, least, small)
        least = small if self._sizes.of(least) > LARGE else least
        for name, values in made.items():
            yield from ({**least, name: value} for value in values)
        for part in whole:
            extra = part.get("additionalProperties", True)
            if extra is not False:
                yield from ({**least, "x y": value} for value in self.values(extra, depth + 1)[:8])


class Sizes:
    """The bytes of values as a message carries them, each counted once, since the large are made of one another."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, int]] = {}  # with the value, so that its id stays its own

    def of(self, value: Any) -> int:
        if id(value) not in self._known:
            if isinstance(value, Mapping):
                size = 1 + sum(len(json.dumps(key)) + 2 + self.of(below) for key, below in value.items())
            elif isinstance(value, list):
                size = 1 + sum(1 + self.of(below) for below in value)
            elif (size := len(json.dumps(value, ensure_ascii=False).encode())) <= LARGE:
                return size
            self.note(value, size)
        return self._known[id(value)][1]

    def note(self, value: Any, size: int) -> Any:
        self._known[id(value)] = value, size
        return value


def _in_turn(lists: list[list[Any]]) -> Iterator[Any]:
    """The first of each, then the second of each, and so on."""
    end = object()
    return (value for row in itertools.zip_longest(*lists, fillvalue=end) for value in row if value is not end)


def _bounded(schema: Mapping[str, Any], ordinary: Iterable[int | float]) -> Iterator[int | float]:
    step = schema.get("multipleOf", 1)
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        bound = schema.get(key)
        if isinstance(bound, int | float) and not isinstance(bound, bool):
            yield from (bound, bound + step, bound - step, bound + step / 2, bound - step / 2)
    yield from (number * schema.get("multipleOf", 1) for number in ordinary)


def _texts(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from matching(schema["pattern"]) if "pattern" in schema else ()
    yield from FORMATS.get(schema.get("format", ""), ())
    for length in sorted({schema.get("minLength", 0), min(schema.get("maxLength", 8), 4096)}):
        yield from ("x" * length, "é" * length)
    yield from TEXTS


def matching(pattern: str) -> Iterator[str]:
    """Texts that the pattern may match: its shortest, one with every repetition once more, and the other branches."""
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of [[ and --, which Python may change
            parsed = re_parser.parse(re.sub(r"\\p\{\w+\}", r"\\w", pattern))
    except (re.error, RecursionError, OverflowError):  # another dialect's: the caller's other texts must do
        return
    for more, turn in itertools.product((0, 1, 3), range(4)):
        yield "".join(_written(token, more, turn) for token in parsed)


def _written(token: tuple[Any, Any], more: int, turn: int) -> str:
    kind, value = str(token[0]), token[1]
    match kind:
        case "LITERAL":
            return chr(value)
        case "NOT_LITERAL":
            return "b" if value == ord("a") else "a"
        case "ANY":
            return "a0-A"[turn % 4]
        case "IN":
            ordinary = _members(tuple(value))
            return ordinary[(turn * 17) % len(ordinary)]
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, inner = value
            return "".join(
                _written(one, more, turn + number) for number in range(min(least + more, most)) for one in inner
            )
        case "SUBPATTERN":
            return "".join(_written(one, more, turn) for one in value[-1])
        case "BRANCH":
            return "".join(_written(one, more, turn) for one in value[1][turn % len(value[1])])
        case _:  # an anchor, a look-ahead: matches no character of its own
            return ""


@cache
def _members(members: tuple[tuple[Any, Any], ...]) -> list[str]:
    """Characters of a set, letters and digits if it has any."""
    inside = [char for char in map(chr, (*range(32, 127), 9, 233, 955, 8232)) if _is_in(members, char)]
    return [char for char in inside if char.isalnum()] or inside or ["a"]


def _is_in(members: tuple[tuple[Any, Any], ...], char: str) -> bool:
    negated, found = False, False
    for kind, value in members:
        match str(kind):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found = found or ord(char) == value
            case "RANGE":
                found = found or value[0] <= ord(char) <= value[1]
            case "CATEGORY":
                found = found or re.fullmatch(CATEGORIES[str(value)], char) is not None
    return found is not negated
