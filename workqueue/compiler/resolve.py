"""One application's document made whole: references followed, traits applied, every schema under a name of its own.

What comes out refers to nothing outside itself: `channels` with their messages, `operations` that name one of them, and
under `components/schemas` just the schemas in use. Both the generator and `contract.json` are made from it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workqueue.compiler import integers
from workqueue.compiler.documents import mapping
from workqueue.compiler.places import At, Place, Places, reference
from workqueue.compiler.references import References
from workqueue.compiler.schemas import Schemas

# Which of an object's fields hold what; of all other fields the references are followed.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "root": {"channels": "{channel}", "operations": "{operation}"},
    "channel": {"messages": "{message}"},
    "operation": {
        "channel": "channel?",
        "traits": "[operation]",
        **dict.fromkeys(("reply", "x-retry", "x-deadLetter"), "route"),
    },
    "route": {"channel": "channel?", "channels": "[channel?]"},
    "message": {
        "traits": "[message]",
        "examples": "value",
        **dict.fromkeys(("payload", "headers", "x-result"), "schema"),
    },
    # Draft 07. What is no schema (`const`, `default`, `examples`) may hold anything, a `$ref` too.
    "schema": {
        **dict.fromkeys(("properties", "patternProperties", "dependencies"), "{schema}"),
        **dict.fromkeys(("allOf", "anyOf", "oneOf"), "[schema]"),
        **dict.fromkeys(("additionalProperties", "additionalItems", "contains", "propertyNames"), "schema"),
        **dict.fromkeys(("not", "if", "then", "else"), "schema"),
        "items": "schema",
    },
}  # fmt: skip
DRAFT_07 = "http://json-schema.org/draft-07/schema"
READABLE_FORMATS = ("application/vnd.aai.asyncapi", "application/schema+json;version=draft-07",
                    "application/schema+yaml;version=draft-07")  # fmt: skip


@dataclass
class Resolved:
    """The document that came out, what was wrong on the way, and where each part of it was written."""

    document: dict[str, Any]
    problems: list[str]
    places: Places
    root: Path

    def place(self, *at: str | int) -> str:
        """Where the author wrote it, as a reference: `spec/common.asyncapi.yaml#/channels/tasks`."""
        return reference(self.places.written(tuple(map(str, at))), self.root)


def resolve(document: Path, root: Path) -> Resolved:
    """Never raises for what a document says: what can't be resolved is in `problems`, one line each."""
    references, whole = References(root), (document, ())
    places = Places({(): whole})
    source = references.load(document)
    if isinstance(source, dict):
        try:
            return Resolved(_Work(references, places).whole(document, source), references.problems, places, root)
        except RecursionError:
            references.problem(whole, "contains itself (an anchor within what it names); say it with a $ref")
    elif not references.problems:
        shown = "nothing" if source is None else f"a {type(source).__name__}"
        references.problem(whole, f"is {shown}; an AsyncAPI document begins with `asyncapi: 3.1.0`")
    return Resolved({}, references.problems, places, root)


class _Work:
    """One walk through a document. What a reference leads to takes its place; a channel or a schema stays a reference,
    by its name."""

    def __init__(self, references: References, places: Places) -> None:
        self._references, self._places = references, places
        self._schemas = Schemas(references, places)
        self._channels: dict[Place, str] = {}
        self._added: dict[str, Any] = {}  # the channels that are only in other files, by the key that they get

    def whole(self, file: Path, source: dict[str, Any]) -> dict[str, Any]:
        channels = source.get("channels")
        for key, channel in channels.items() if isinstance(channels, dict) else ():
            self._channels.setdefault((file, ("channels", key)), key)
            if isinstance(channel, dict) and isinstance(channel.get("$ref"), str):
                found = self._references.follow(channel["$ref"], (file, ()), quiet=True)
                if found is not None:
                    self._channels.setdefault(found, key)
        rest = {key: value for key, value in source.items() if key != "components"}
        whole: dict[str, Any] = self._object(rest, (file, ()), (), "root", frozenset())
        if self._added:
            whole["channels"] = {**mapping(whole.get("channels")), **self._added}
        if not self._references.problems:
            self._schemas.take_from_messages(whole)
        whole["components"] = {"schemas": dict(sorted(self._schemas.by_name.items()))}
        return whole

    # --- walking ------------------------------------------------------------------------------------------------------

    def _walk(self, node: Any, here: Place, at: At, kind: str, trail: frozenset[Place]) -> Any:
        """`node`, which is written `here` and will be found `at`, with everything below it resolved."""
        if kind == "value" or not isinstance(node, (dict, list)):
            return integers.integral(node) if kind == "part" else node
        if kind[0] == "{" and isinstance(node, dict):
            inner = kind[1:-1]
            return {key: self._step(value, here, at, key, inner, trail) for key, value in node.items()}
        if isinstance(node, list):
            inner = kind[1:-1] if kind[0] == "[" else kind
            return [self._step(item, here, at, str(index), inner, trail) for index, item in enumerate(node)]
        if kind == "schema" and "schemaFormat" in node and "schema" in node:
            if not str(node["schemaFormat"]).replace(" ", "").startswith(READABLE_FORMATS):
                text = f"schemaFormat {node['schemaFormat']!r} can't be compiled; say it in JSON Schema draft 07"
                self._references.problem(here, text)
            here = self._places[at] = (here[0], (*here[1], "schema"))
            return self._walk(node["schema"], here, at, kind, trail)
        if isinstance(node.get("$ref"), str):
            return self._reference(node, here, at, kind, trail)
        if kind == "channel?":
            self._references.problem(here, "a channel must be named here, not written; say $ref: '#/channels/...'")
        return self._object(node, here, at, kind, trail)

    def _step(self, node: Any, here: Place, at: At, key: str, kind: str, trail: frozenset[Place]) -> Any:
        return self._walk(node, (here[0], (*here[1], key)), (*at, key), kind, trail)

    def _object(self, node: dict[str, Any], here: Place, at: At, kind: str, trail: frozenset[Place]) -> Any:
        if kind == "schema":
            node = integers.of_schema(self._draft_07(node, here))
        if kind == "operation":  # a choice among the channel's messages, which are one
            node = {key: value for key, value in node.items() if key != "messages"}
        fields, other = FIELDS.get(kind, {}), {"schema": "value", "root": "any", "any": "any"}.get(kind, "part")
        made = {key: self._step(value, here, at, key, fields.get(key, other), trail) for key, value in node.items()}
        if isinstance(made.get("traits"), list) and kind in ("operation", "message"):
            self._apply_traits(made, at)
        return made

    def _draft_07(self, node: dict[str, Any], here: Place) -> dict[str, Any]:
        """The schema without what only told its reader how to read it, and where to find its parts."""
        dialect = node.get("$schema", DRAFT_07)
        if not str(dialect).startswith((DRAFT_07, DRAFT_07.replace("http:", "https:"))):
            self._references.problem(here, f"$schema is {dialect!r}, and AsyncAPI's schemas are draft 07 ({DRAFT_07}#)")
        return {
            key: value
            for key, value in node.items()
            if key not in ("$schema", "$id", "$comment", "$defs", "definitions")
        }

    # --- references ---------------------------------------------------------------------------------------------------

    def _reference(self, node: dict[str, Any], here: Place, at: At, kind: str, trail: frozenset[Place]) -> Any:
        target = self._references.follow(node["$ref"], here)
        if target is None:
            return {}
        if kind == "schema":
            return self._schema(node, here, target)
        if kind == "channel?":
            return self._channel(target)
        if target in trail:
            self._references.problem(here, f"the reference {node['$ref']} leads back to itself")
            return {}
        self._places[at] = target
        return self._walk(self._references.at(target), target, at, kind, trail | {target})

    def _channel(self, target: Place) -> dict[str, str]:
        """A channel is named by its key in the document; one that is only in another file gets one."""
        key = self._channels.get(target)
        if key is None:
            taken = set(self._channels.values())
            base = target[1][-1] if target[1] else target[0].name.partition(".")[0]
            key = next(name for n in range(1, 10_000) if (name := base if n == 1 else f"{base}{n}") not in taken)
            self._channels[target] = key
            self._places["channels", key] = target
            at = ("channels", key)
            self._added[key] = self._walk(self._references.at(target), target, at, "channel", frozenset({target}))
        return {"$ref": f"#/channels/{key}"}

    def _schema(self, node: dict[str, Any], here: Place, target: Place) -> dict[str, str]:
        """A schema stays a reference, so that it may refer to itself, and gets a name that can be a class's."""
        beside = sorted(set(node) - {"$ref", "title", "description", "examples", "default", "deprecated"})
        if beside:
            self._references.problem(
                here, f"{', '.join(beside)} beside a $ref: draft 07 ignores it; say it where that leads, or in an allOf"
            )
        name = self._schemas.name_of(target)
        if name is None:
            name = self._schemas.add(target, here)
            at = ("components", "schemas", name)
            self._schemas.by_name[name] = self._walk(self._references.at(target), target, at, "schema", frozenset())
        return {"$ref": f"#/components/schemas/{name}"}

    # --- traits -------------------------------------------------------------------------------------------------------

    def _apply_traits(self, made: dict[str, Any], at: At) -> None:
        """JSON merge patch (RFC 7386) in the order of the traits; nothing that the object says itself is changed."""
        traits = [trait for trait in made.pop("traits") if isinstance(trait, dict)]
        merged: dict[str, Any] = {}
        for trait in traits:
            merged = _patched(merged, trait)
        for key in merged.keys() - made.keys():
            last = max(index for index, trait in enumerate(traits) if key in trait)
            self._places[*at, key] = self._places.written((*at, "traits", str(last), key))
        whole = _patched(merged, made)
        made.clear()
        made.update(whole)


def _patched(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif (
            isinstance(value, dict)
            and isinstance(result.get(key), dict)
            and not {"$ref"} & (value.keys() | result[key].keys())
        ):
            result[key] = _patched(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
