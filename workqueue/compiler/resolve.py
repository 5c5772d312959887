"""One application's document made whole: references followed, traits applied, every schema under a name of its own.

What comes out refers to nothing outside itself: `channels` with their messages, `operations` that name one of them, and
under `components/schemas` just the schemas in use. Both the generator and `contract.json` are made from it.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from workqueue.compiler import documents

Place = tuple[Path, tuple[str, ...]]
"""A document, and where in it."""
At = tuple[str, ...]
"""Where in the document that comes out."""

# Which of an object's fields hold what; all other fields are taken as they are, with their references followed.
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
    places: Mapping[At, Place]
    root: Path

    def place(self, *at: str | int) -> str:
        """Where the author wrote it, as a reference: `spec/common.asyncapi.yaml#/channels/tasks`."""
        keys = tuple(map(str, at))
        known = next(keys[:length] for length in range(len(keys), -1, -1) if keys[:length] in self.places)
        file, inside = self.places[known]
        return reference((file, (*inside, *keys[len(known) :])), self.root)


def reference(place: Place, root: Path) -> str:
    file, inside = place
    name = file.relative_to(root) if file.is_relative_to(root) else file
    return f"{name}#/{'/'.join(part.replace('~', '~0').replace('/', '~1') for part in inside)}"


def resolve(document: Path, root: Path) -> Resolved:
    """Never raises for what a document says: what can't be resolved is in `problems`, one line each."""
    work = _Work(root)
    source = work.load(document)
    if isinstance(source, dict):
        try:
            return work.whole(document, source)
        except RecursionError:
            work.problem((document, ()), "contains itself (an anchor within what it names); say it with a $ref")
    elif not work.problems:
        shown = "nothing" if source is None else f"a {type(source).__name__}"
        work.problem((document, ()), f"is {shown}; an AsyncAPI document begins with `asyncapi: 3.1.0`")
    return Resolved({}, work.problems, {(): (document, ())}, root)


@dataclass
class _Work:
    root: Path
    problems: list[str] = field(default_factory=list)
    places: dict[At, Place] = field(default_factory=dict)
    _documents: dict[Path, Any] = field(default_factory=dict)
    _unreadable: set[Path] = field(default_factory=set)
    _channels: dict[Place, str] = field(default_factory=dict)
    _schemas: dict[Place, str] = field(default_factory=dict)
    _out: dict[str, Any] = field(default_factory=dict)

    def whole(self, file: Path, source: dict[str, Any]) -> Resolved:
        channels = source.get("channels")
        for key, channel in channels.items() if isinstance(channels, dict) else ():
            self._channels.setdefault((file, ("channels", key)), key)
            if isinstance(channel, dict) and isinstance(channel.get("$ref"), str):
                found = self._follow(channel["$ref"], file, quiet=True)
                if found is not None:
                    self._channels.setdefault(found, key)
        self._out = {"channels": {}, "operations": {}, "components": {"schemas": {}}}
        self.places[()] = (file, ())
        rest = {key: value for key, value in source.items() if key != "components"}
        found_channels = self._out["channels"]
        whole = self._object(rest, (file, ()), (), "root", frozenset())
        if found_channels:
            whole["channels"] = {**_mapping(whole.get("channels")), **found_channels}
        if not self.problems:
            self._messages(whole)
        whole["components"] = {"schemas": dict(sorted(self._out["components"]["schemas"].items()))}
        return Resolved(whole, self.problems, self.places, self.root)

    def load(self, file: Path) -> Any:
        if file not in self._documents:
            try:
                self._documents[file] = documents.read(file)
            except documents.Unreadable as error:
                self._documents[file] = None
                self._unreadable.add(file)
                name = file.relative_to(self.root) if file.is_relative_to(self.root) else file
                self.problems.append(f"{name}: {error}")
        return self._documents[file]

    def problem(self, place: Place, text: str) -> None:
        line = f"{reference(place, self.root)}: {text}"
        if line not in self.problems:
            self.problems.append(line)

    # --- walking ------------------------------------------------------------------------------------------------------

    def _walk(self, node: Any, here: Place, at: At, kind: str, trail: frozenset[Place]) -> Any:
        """`node`, which is written `here` and will be found `at`, with everything below it resolved."""
        if kind == "value" or not isinstance(node, (dict, list)):
            return node
        if kind[0] == "{" and isinstance(node, dict):
            inner = kind[1:-1]
            return {key: self._step(value, here, at, key, inner, trail) for key, value in node.items()}
        if isinstance(node, list):
            inner = kind[1:-1] if kind[0] == "[" else kind
            return [self._step(item, here, at, str(index), inner, trail) for index, item in enumerate(node)]
        if kind == "schema" and "schemaFormat" in node and "schema" in node:
            if not str(node["schemaFormat"]).replace(" ", "").startswith(READABLE_FORMATS):
                text = f"schemaFormat {node['schemaFormat']!r} can't be compiled; say it in JSON Schema draft 07"
                self.problem(here, text)
            here = self.places[at] = (here[0], (*here[1], "schema"))
            return self._walk(node["schema"], here, at, kind, trail)
        if isinstance(node.get("$ref"), str):
            return self._reference(node, here, at, kind, trail)
        if kind == "channel?":
            self.problem(here, "a channel must be named here, not written; say $ref: '#/channels/...'")
        return self._object(node, here, at, kind, trail)

    def _step(self, node: Any, here: Place, at: At, key: str, kind: str, trail: frozenset[Place]) -> Any:
        return self._walk(node, (here[0], (*here[1], key)), (*at, key), kind, trail)

    def _object(self, node: dict[str, Any], here: Place, at: At, kind: str, trail: frozenset[Place]) -> Any:
        if kind == "schema":
            node = self._draft_07(node, here)
        if kind == "operation":  # a choice among the channel's messages, which are one
            node = {key: value for key, value in node.items() if key != "messages"}
        fields, other = FIELDS.get(kind, {}), "value" if kind == "schema" else "any"
        made = {key: self._step(value, here, at, key, fields.get(key, other), trail) for key, value in node.items()}
        if isinstance(made.get("traits"), list) and kind in ("operation", "message"):
            self._apply_traits(made, at)
        return made

    def _draft_07(self, node: dict[str, Any], here: Place) -> dict[str, Any]:
        """The schema without what only told its reader how to read it, and where to find its parts."""
        dialect = node.get("$schema", DRAFT_07)
        if not str(dialect).startswith((DRAFT_07, DRAFT_07.replace("http:", "https:"))):
            self.problem(here, f"$schema is {dialect!r}, and AsyncAPI's schemas are draft 07 ({DRAFT_07}#)")
        return {
            key: value
            for key, value in node.items()
            if key not in ("$schema", "$id", "$comment", "$defs", "definitions")
        }

    # --- references ---------------------------------------------------------------------------------------------------

    def _reference(self, node: dict[str, Any], here: Place, at: At, kind: str, trail: frozenset[Place]) -> Any:
        target = self._follow(node["$ref"], here[0], here)
        if target is None:
            return {}
        if kind == "schema":
            return self._schema(node, here, target)
        if kind == "channel?":
            return self._channel(target)
        if target in trail:
            self.problem(here, f"the reference {node['$ref']} leads back to itself")
            return {}
        self.places[at] = target
        return self._walk(self._at(target), target, at, kind, trail | {target})

    def _follow(self, text: str, home: Path, here: Place | None = None, *, quiet: bool = False) -> Place | None:
        """The place that a reference leads to in the end. None, and a problem, if that is none."""
        here = here or (home, ())
        seen: list[Place] = []
        while True:
            target, why = self._target(text, home)
            if target is not None and target in seen:
                target, why = None, "leads back to itself"
            if target is None:
                if why and not quiet:
                    self.problem(here, f"the reference {text} {why}")
                return None
            node = self._at(target)
            if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
                return target
            seen.append(target)
            text, home = node["$ref"], target[0]

    def _target(self, text: str, home: Path) -> tuple[Place | None, str]:
        file, _, pointer = text.partition("#")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", file) or file.startswith("//"):
            return None, "leads out of this machine; put a copy into spec/ and refer to that"
        path = home
        if file:
            path = next(
                (p for p in (home.parent / file, home.parent / unquote(file)) if p.is_file()), home.parent / file
            )
            path = path.resolve()
            if not path.is_file():
                return None, "leads nowhere: there is no such file"
        if pointer and not pointer.startswith("/"):
            return None, "is no JSON pointer; write `#/` and the way to what is meant"
        found, inside = self.load(path), []
        if path in self._unreadable:
            return None, ""  # that is said of the file
        for part in pointer.strip("/").split("/") if pointer.strip("/") else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, TypeError, ValueError, IndexError):
                return None, f"leads nowhere: there is no {key!r}"
            inside.append(key)
        return (path, tuple(inside)), ""

    def _at(self, place: Place) -> Any:
        found = self.load(place[0])
        for key in place[1]:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    def _channel(self, target: Place) -> dict[str, str]:
        """A channel is named by its key in the document; one that is only in another file gets one."""
        key = self._channels.get(target)
        if key is None:
            taken = set(self._channels.values())
            base = target[1][-1] if target[1] else target[0].name.partition(".")[0]
            key = next(name for n in range(1, 10_000) if (name := base if n == 1 else f"{base}{n}") not in taken)
            self._channels[target] = key
            self.places["channels", key] = target
            at = ("channels", key)
            self._out["channels"][key] = self._walk(self._at(target), target, at, "channel", frozenset({target}))
        return {"$ref": f"#/channels/{key}"}

    def _schema(self, node: dict[str, Any], here: Place, target: Place) -> dict[str, str]:
        """A schema stays a reference, so that it may refer to itself, and gets a name that can be a class's."""
        beside = sorted(set(node) - {"$ref", "title", "description", "examples", "default", "deprecated"})
        if beside:
            self.problem(
                here, f"{', '.join(beside)} beside a $ref: draft 07 ignores it; say it where that leads, or in an allOf"
            )
        name = self._schemas.get(target)
        if name is None:
            name = class_name(target[1][-1] if target[1] else re.sub(r"(\.schema)?\.\w+$", "", target[0].name))
            owner = next((place for place, taken in self._schemas.items() if taken == name), None)
            if owner is not None:
                both = " and ".join(sorted(reference(place, self.root) for place in (owner, target)))
                self.problem(here, f"two schemas are named {name}, {both}; rename one")
            self._schemas[target] = name
            at = ("components", "schemas", name)
            self.places[at] = target
            self._out["components"]["schemas"][name] = self._walk(self._at(target), target, at, "schema", frozenset())
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
            self.places[*at, key] = self._written((*at, "traits", str(last), key))
        whole = _patched(merged, made)
        made.clear()
        made.update(whole)

    def _written(self, at: At) -> Place:
        known = next(at[:length] for length in range(len(at), -1, -1) if at[:length] in self.places)
        file, inside = self.places[known]
        return file, (*inside, *at[len(known) :])

    # --- messages -----------------------------------------------------------------------------------------------------

    def _messages(self, whole: dict[str, Any]) -> None:
        """A message's content type defaults to the document's. One that is sent or received has a model for its
        payload, whose name becomes the message's, and one for its result; both are then found under components."""
        operations = _mapping(whole.get("operations")).values()
        used = {str(_mapping(_mapping(operation).get("channel")).get("$ref")) for operation in operations}
        channels = sorted(_mapping(whole.get("channels")).items(), key=lambda item: f"#/channels/{item[0]}" not in used)
        for key, channel in channels:
            for name, message in _mapping(_mapping(channel).get("messages")).items():
                if not isinstance(message, dict):
                    continue
                if "defaultContentType" in whole:
                    message.setdefault("contentType", whole["defaultContentType"])
                at, new = ("channels", key, "messages", name), f"#/channels/{key}" in used
                model = class_name(str(message.get("name") or name))
                if named := self._model(message, "payload", model, at, new=new):
                    self._model(message, "x-result", f"{named}Result", at, new=new)
                    message["name"] = named

    def _model(self, message: dict[str, Any], key: str, name: str, at: At, *, new: bool) -> str | None:
        """The name of this schema of the message. One that is written in place gets this name, if it is `new`, and
        its reference takes its place, on every channel that has the message."""
        schema, place = message.get(key), self._written((*at, key))
        if not isinstance(schema, dict) or "$ref" in schema:
            return str(schema["$ref"]).rpartition("/")[2] if isinstance(schema, dict) else None
        schemas = self._out["components"]["schemas"]
        if place not in self._schemas:
            if not new:
                return None
            if name in schemas:
                self.problem(place, f"its model would be named {name}, as a schema is; rename one")
            self.places["components", "schemas", name] = place
            self._schemas[place], schemas[name] = name, schema
        message[key] = {"$ref": f"#/components/schemas/{self._schemas[place]}"}
        return self._schemas[place]


def class_name(text: str) -> str:
    """`task.created` -> `TaskCreated`; what can be a class's name stays as it is, but for a capital in front."""
    words = [word for word in re.split(r"\W+", text) if word]
    name = "".join(word[0].upper() + word[1:] for word in words)
    return f"Model{name}" if not name or name[0].isdigit() else name


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


def _mapping(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, dict) else {}
