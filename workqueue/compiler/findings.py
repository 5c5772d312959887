"""What the checks find, said of places in the document as its author wrote it, and how they look at the document."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jsonschema_rs

from workqueue.compiler.documents import mapping
from workqueue.compiler.resolve import Resolved

RENAMED = {  # an old or a likely name of ours, and what to say for it
    ("operation", "x-result"): "it is stated on the message now, so that senders have the result's model too",
    ("operation", "x-dead-letter"): "it is x-deadLetter: {channel: {$ref: ...}}",
    ("x-retry", "rungs"): "it is channels: a list of $refs such as {$ref: '#/channels/retry1s'}",
    ("x-retry", "deadLetter"): "it is x-deadLetter: {channel: {$ref: ...}}, beside x-retry",
}
SHOWN = 60  # characters of a value that an error quotes


@dataclass
class Findings:
    """What was found so far, said of places in the document as its author wrote it."""

    resolved: Resolved
    rules: Mapping[str, Any]
    lines: list[str] = field(default_factory=list)
    shaped: bool = True
    """Every object and list that the rules speak of is one: what is in them can be looked at."""

    @property
    def document(self) -> Any:
        return self.resolved.document

    def say(self, at: tuple[str | int, ...], text: str) -> None:
        line = f"{self.resolved.place(*at)}: {' '.join(text.split())}"
        if line not in self.lines:
            self.lines.append(line)

    @cached_property
    def schemas(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document["components"]["schemas"]
        return found

    def rule(self, name: str, node: Any, at: tuple[str | int, ...]) -> None:
        """Check an object of the document by its definition in workqueue.schema.json."""
        schema = {**self.rules, "$ref": f"#/definitions/{name}"}
        for error in jsonschema_rs.Draft7Validator(schema).iter_errors(node):
            here = tuple(error.instance_path)
            self.shaped &= error.kind.name not in ("type", "const", "enum") or isinstance(
                error.instance, str | int | float
            )
            if error.kind.name == "required":
                missing = str(getattr(error.kind, "property", ""))
                self.say((*at, *here), f"lacks {missing}: {self.meaning(name, (*here, missing))}")
            elif error.kind.name == "additionalProperties":
                for key in getattr(error.kind, "unexpected", []):
                    told = RENAMED.get((str(here[-1]), key), "there is no such key; take it out")
                    self.say((*at, *here, key), told)
            else:
                what = "" if error.kind.name == "not" else f"{shown(error.instance)} can't be used; it is "
                self.say((*at, *here), f"{what}{self.meaning(name, here)}")

    def meaning(self, name: str, path: tuple[str | int, ...]) -> str:
        rule = self.rules["definitions"][name]
        said = rule["description"]
        for part in path:
            rule = rule.get("items", {}) if isinstance(part, int) else rule.get("properties", {}).get(part, {})
            said = rule.get("description", said)
        examples = rule.get("examples")
        return f"{said}, such as {examples[0]}" if examples else str(said)


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def channel_of(found: Findings, route: Any) -> tuple[str, Mapping[str, Any]]:
    """The channel that an operation, or x-deadLetter, names: its key, and what it says; nothing if it names none."""
    return channel_at(found, mapping(route).get("channel"))


def channel_at(found: Findings, reference: Any) -> tuple[str, Mapping[str, Any]]:
    key = str(mapping(reference).get("$ref", "")).removeprefix("#/channels/")
    return key, mapping(mapping(found.document.get("channels")).get(key))


def nearest(key: str, known: Mapping[str, Any]) -> str | None:
    folded = {name.lower().replace("-", ""): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("-", ""), folded, 1, 0.8)
    return folded[near[0]] if near else None
