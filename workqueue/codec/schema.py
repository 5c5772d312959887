"""A compiled JSON Schema (draft 07, with formats), and what it says against a value, in one line."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import jsonschema_rs
from jsonschema_rs import ValidationError

from workqueue import kinds
from workqueue.errors import escaped

Path = tuple[str | int, ...]

ERROR_LIMIT = 1000  # characters: what a dead letter says was wrong with it, which may quote the value that was
MOST_LINES = 100  # that is more than fit; a value can break its schema in each of 100 000 places

DURATION = re.compile(r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)")
FORMATS = {"duration": lambda text: DURATION.fullmatch(text) is not None}  # ISO 8601; draft 07 has no such format


class Schema:
    """`problem(value)` is None, or one line that says where and what."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = dict(schema)
        self._schemas: Mapping[str, Any] = schema.get("components", {}).get("schemas", {})
        self._validator = jsonschema_rs.Draft7Validator(self._schema, validate_formats=True, formats=FORMATS)

    def problem(self, value: Any) -> str | None:
        try:
            if self._validator.is_valid(value):
                return None
            errors = islice(self._explain(self._validator.iter_errors(value)), MOST_LINES)
            lines = dict.fromkeys(f"{place(_path(value, error))}: {text}" for error, text in errors)
        except ValueError as error:  # a value that JSON does not have, such as a date in an AMQP header
            return printable(str(error))
        return printable("; ".join(lines))

    def refused_nulls(self, value: Any) -> list[Path]:
        """The places of the nulls that the schema does not allow."""
        errors = (error for error, _ in self._explain(self._validator.iter_errors(value)))
        return list(dict.fromkeys(_path(value, error) for error in errors if error.instance is None))

    def _explain(self, errors: Iterable[ValidationError]) -> Iterator[tuple[ValidationError, str]]:
        """The errors, each with what it says; for a union those of the alternative that the value's tag chose. What
        can't be told so is told as the library does: no value may be without an answer."""
        for error in errors:
            try:
                yield from list(self._meant(error))
            except Exception:  # noqa: BLE001  # whatever a schema has that this does not know
                yield error, error.message

    def _meant(self, error: ValidationError) -> Iterator[tuple[ValidationError, str]]:
        branches = list(getattr(error.kind, "context", None) or ())
        if not branches:
            yield error, error.message
            return
        chosen, known = self._chosen(error, branches)
        if len(chosen) == 1:
            yield from self._explain(branches[chosen[0]])
        elif known and not chosen:
            yield error, f"no such kind ({', '.join(known)})"
        else:
            common = _common([branches[number] for number in chosen])
            yield error, ", ".join(common) or error.message

    def _chosen(self, error: ValidationError, branches: list[list[ValidationError]]) -> tuple[list[int], list[str]]:
        """The alternatives of a union that the value's type and tag leave, and what may stand in the tag if it has
        one. Without a tag, the first alternative that only nulls inside the value keep from being met is meant."""
        value, union = error.instance, self._union(error, len(branches))
        fitting = [number for number, errors in enumerate(branches) if not _of_another_type(errors, error)]
        options = {number: list(kinds.options(union[number], self._schemas)) for number in fitting}
        name = kinds.tag([option for found in options.values() for option in found])
        if name is None or not isinstance(value, dict) or name not in value:
            but_for_nulls = [number for number in fitting if value is not None and _only_nulls(branches[number])]
            return but_for_nulls[:1] or fitting, []
        allowed = {number: [one for option in found for one in option[name]] for number, found in options.items()}
        known = [json.dumps(one) for values in allowed.values() for one in values]
        return [number for number in fitting if value[name] in allowed[number]], known

    def _union(self, error: ValidationError, size: int) -> list[Any]:
        """The alternatives that an error is about."""
        nodes = (node for _, node in _places(self._schema, error.schema_path))
        return next(node for node in nodes if isinstance(node, list) and len(node) == size)


def _of_another_type(errors: list[ValidationError], union: ValidationError) -> bool:
    return any(e.kind.name == "type" and e.instance_path == union.instance_path for e in errors)


def _only_nulls(errors: list[ValidationError]) -> bool:
    return all(e.instance is None for e in errors)


def printable(text: str) -> str:
    """One line that any terminal, header and database takes: what is not printable is escaped, the rest cut off."""
    return escaped(text)[:ERROR_LIMIT]


def place(path: Any) -> str:
    """A place in a value, as a JSON pointer."""
    return "/" + "/".join(map(str, path))


def _common(branches: list[list[ValidationError]]) -> list[str]:
    if not branches:
        return []
    first, *others = ([e.message for e in branch] for branch in branches)
    return [message for message in first if all(message in other for other in others)]


def _path(whole: Any, error: ValidationError) -> Path:
    """The keys and numbers that lead to what an error is about."""
    paths = (path for path, node in _places(whole, error.instance_path) if node == error.instance)
    return next(paths, tuple(error.instance_path))


def _places(node: Any, steps: list[str | int]) -> Iterator[tuple[Path, Any]]:
    """Each place that the library may mean by these steps, the likeliest first: it tells a key that can be read as a
    number as that number, and leaves out an empty one."""
    if not steps:
        yield (), node
    for key, rest in _ways(node, steps):
        yield from (((key, *path), found) for path, found in _places(node[key], rest))


def _ways(node: Any, steps: list[str | int]) -> Iterator[tuple[str | int, list[str | int]]]:
    """What may be the next key or number, with the steps below it."""
    if isinstance(node, list):
        yield from ((step, steps[1:]) for step in steps[:1] if isinstance(step, int) and step < len(node))
    elif isinstance(node, dict):
        yield from ((key, steps[1:]) for step in steps[:1] for key in _keys(node, step))
        if "" in node:
            yield "", steps


def _keys(node: dict[str, Any], step: str | int) -> Iterator[str]:
    plain = str(step)
    if plain in node:
        yield plain
    if isinstance(step, int):
        spelled = re.compile(rf"\+?0*{step}")
        yield from (key for key in node if key != plain and spelled.fullmatch(key))
