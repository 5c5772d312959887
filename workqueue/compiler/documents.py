"""Reads one document of the contract, YAML or JSON, so that it says what its author sees.

YAML as AsyncAPI has it: JSON's types and no others (YAML 1.2's core schema, with anchors and `<<`). PyYAML reads YAML
1.1, in which `on` is a boolean, `2026-11-25` a date, `1e5` a text and `12:30:00` the number 45000, and of a key that is
written twice it keeps the last one without a word.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

COPIED = 100_000  # values that a document's anchors may stand for; all of the example's contract is a thousand

SHOWN = 60  # characters of a number that an error quotes
TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.MappingNode: ("map",),
    yaml.SequenceNode: ("seq",),
    yaml.ScalarNode: ("str", "int", "float", "bool", "null", "merge"),
}


class Unreadable(Exception):
    """The document can't be read; the message says where in it and why."""


class _Loader(yaml.CSafeLoader):
    """PyYAML's loader, as fast as libyaml, with the types of JSON."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # overrides the 1.1 table that is shared by all loaders

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            _check(root)
        return root


def _check(root: yaml.Node) -> None:
    """Before anything is made of the nodes: an anchor's is one node, however often it is named, until its values are
    written out. Raises Unreadable."""
    todo, sizes = (
        [root],
        dict[int, int](),
    )  # of each node with all below it, written out; 0 as long as that is not known
    while todo:
        node = todo[-1]
        if isinstance(node, yaml.MappingNode):
            below = [value for _, value in node.value]
        else:
            below = node.value if isinstance(node, yaml.SequenceNode) else []
        if id(node) not in sizes:
            _check_tag(node)
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
            sizes[id(node)] = 0
            if any(sizes.get(id(one)) == 0 for one in below):
                raise Unreadable("contains itself (an anchor within what it names); say it with a $ref")
            todo += [one for one in below if id(one) not in sizes]
        else:
            todo.pop()
            sizes[id(node)] = sizes[id(node)] or 1 + sum(sizes[id(one)] for one in below)
    copied = sizes[id(root)] - len(sizes)
    if copied > COPIED:
        raise Unreadable(f"its anchors stand for {copied:,} values, and may for {COPIED:,}; say it with $refs")


def _check_tag(node: yaml.Node) -> None:
    """A type that the author states is one of JSON's, and one that the node can have."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in TAGS[type(node)]:
        raise Unreadable(f"line {node.start_mark.line + 1}: {kind} is no type of JSON; leave the tag out")


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = int(key.start_mark.line) + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise Unreadable(f"line {line}: the key {key.value!r} is no text; put it in quotes")
        if key.value in seen:
            raise Unreadable(f"line {line}: the key {key.value!r} is there twice; keep one")
        seen.add(key.value)


for tag, pattern, first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9]+)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _number(int, node.value, node))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _number(float, node.value, node))
_Loader.add_constructor("tag:yaml.org,2002:bool", lambda loader, node: _number(_truth, node.value, node))


def read(path: Path) -> Any:
    """What the document says. Raises Unreadable."""
    try:
        text = path.read_text(encoding="utf-8")
        return _json(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except OSError as error:
        raise Unreadable(f"can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise Unreadable("is not UTF-8; save it as that") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "no YAML"
        if mark and text[mark.index : mark.index + 1] == "\t":
            problem = "a tab, which YAML does not indent with; use spaces"
        raise Unreadable(f"line {mark.line + 1}: {problem}" if mark else problem) from error
    except yaml.YAMLError as error:
        raise Unreadable(" ".join(str(error).split())) from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise Unreadable("is nested too deeply") from error


def _number(make: Callable[[str], Any], text: str, node: yaml.Node | None = None) -> Any:
    try:
        value = make(text)
        if math.isfinite(value):
            return value
    except (KeyError, ValueError, OverflowError):  # an integer of thousands of digits, for one
        pass
    line = f"line {node.start_mark.line + 1}: " if node else ""
    said = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    raise Unreadable(f"{line}{said} is no value of JSON, or too large for one")


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def mapping(node: Any) -> Mapping[str, Any]:
    """What is in a node of a document: nothing if it is no object, which is for its rule to say."""
    return node if isinstance(node, dict) else {}


_NUMBERS: dict[str, Any] = {
    "parse_int": partial(_number, int),
    **dict.fromkeys(("parse_float", "parse_constant"), partial(_number, float)),
}


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise Unreadable(f"the key {twice!r} is there twice in one object; keep one")
        return dict(pairs)

    found = json.loads(text, object_pairs_hook=once, **_NUMBERS)
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end].encode("unicode_escape").decode()
        raise Unreadable(f"{half} is half a character; write both halves, or the character itself") from error
    return found
