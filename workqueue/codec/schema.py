"""A compiled JSON Schema (draft 07, with formats), and what it says against a value, in one line."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

from workqueue import kinds
from workqueue.errors import escaped

Path = tuple[str | int, ...]

ERROR_LIMIT = 1000  # characters: an error goes into a header and a log line, and may quote the value it is about

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
        except ValueError as error:  # a value that JSON does not have, such as a date in an AMQP header
            return printable(str(error))
        lines = (f"{place(path)}: {text}" for path, text in self._explain(value, self._validator.iter_errors(value)))
        return printable("; ".join(dict.fromkeys(lines)))

    def refused_nulls(self, value: Any) -> list[Path]:
        """The places of the nulls that the schema does not allow."""
        refused = (tuple(path) for path, _ in self._explain(value, self._validator.iter_errors(value)))
        return [path for path in dict.fromkeys(refused) if _at(value, path) is None]

    def _explain(self, whole: Any, errors: Iterator[jsonschema_rs.ValidationError]) -> Iterator[tuple[Any, str]]:
        """The errors, each with its place; for a union those of the alternative that the value's tag chose."""
        for error in errors:
            branches = list(getattr(error.kind, "context", None) or ())
            if not branches:
                yield error.instance_path, error.message
                continue
            chosen, known = self._chosen(whole, error, branches)
            if len(chosen) == 1:
                yield from self._explain(whole, iter(branches[chosen[0]]))
            elif known and not chosen:
                yield error.instance_path, f"no such kind ({', '.join(known)})"
            else:
                common = _common([branches[number] for number in chosen])
                yield error.instance_path, ", ".join(common) or error.message

    def _chosen(self, whole: Any, error: Any, branches: list[Any]) -> tuple[list[int], list[str]]:
        """The alternatives of a union that the value's type and tag leave, and what may stand in the tag if it has
        one. Without a tag, the first alternative that only nulls inside the value keep from being met is meant."""
        value, union = _at(whole, error.instance_path), _at(self._schema, error.schema_path)
        fitting = [number for number, errors in enumerate(branches) if not _of_another_type(errors, error)]
        options = {number: list(kinds.options(union[number], self._schemas)) for number in fitting}
        name = kinds.tag([option for found in options.values() for option in found])
        if name is None or not isinstance(value, dict) or name not in value:
            but_for_nulls = [number for number in fitting if value is not None and _only_nulls(branches[number])]
            return but_for_nulls[:1] or fitting, []
        allowed = {number: [one for option in found for one in option[name]] for number, found in options.items()}
        known = [json.dumps(one) for values in allowed.values() for one in values]
        return [number for number in fitting if value[name] in allowed[number]], known


def _of_another_type(errors: list[Any], union: Any) -> bool:
    return any(e.kind.name == "type" and e.instance_path == union.instance_path for e in errors)


def _only_nulls(errors: list[Any]) -> bool:
    return all(e.instance is None for e in errors)


def printable(text: str) -> str:
    """One line that any terminal, header and database takes: what is not printable is escaped, the rest cut off."""
    return escaped(text)[:ERROR_LIMIT]


def place(path: Any) -> str:
    """A place in a value, as a JSON pointer."""
    return "/" + "/".join(map(str, path))


def _common(branches: list[Any]) -> list[str]:
    if not branches:
        return []
    first, *others = ([e.message for e in branch] for branch in branches)
    return [message for message in first if all(message in other for other in others)]


def _at(node: Any, path: Any) -> Any:
    for step in path:
        node = node[step]
    return node
