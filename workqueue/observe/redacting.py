"""Errors in words that may leave the installation: without what a task holds, and without passwords."""

import json
import re
from collections.abc import Iterator
from typing import Any

from workqueue.errors import escaped
from workqueue.settings import SECRET, hide_password

RUN = 8  # characters in a row that an error has from a task: an error may quote the end of a text, or its middle
SHORTEST = 3  # of a task's values, that are looked for as a whole
HELD = 200_000  # characters of a task that are compared; of a larger one nothing is quoted
LIMIT = 500  # characters of an error
NAMES_DEPTH = 2  # of the objects, a task and its payload, in which the contract says the names of all fields
HIDDEN = "***"
URL = re.compile(r"[A-Za-z][\w+.-]*://\S+")
# From the beginning of a word, or a long one without an end would be looked through from each of its letters.
NAMED = re.compile(
    rf"(?i)(?<!\w)(?=\w*(?:{'|'.join(SECRET)}))(\w+(?<!Error)[\"']?\s*[=:]\s*)(?:\"[^\"]*\"?|'[^']*'?|\S+)"
)


def redacted(text: str, body: bytes) -> str:
    """One line, `LIMIT` characters at most. What stands in the body is masked, in whole or in part; so is what is, or
    could be, a password."""
    text = NAMED.sub(rf"\1{HIDDEN}", URL.sub(lambda found: hide_password(found[0]), text[: 4 * LIMIT]))
    masked = bytearray(len(text))
    values = list(_values(body))
    if sum(map(len, values)) > HELD:
        return HIDDEN
    for value in values:
        for start in _places(text, value):
            masked[start : start + len(value)] = b"x" * len(value)
    runs = {value[at : at + RUN] for value in values for at in range(len(value) - RUN + 1)}
    for at in range(len(text) - RUN + 1):
        if text[at : at + RUN] in runs:
            masked[at : at + RUN] = b"x" * RUN
    shown = "".join("\0" if mask else one for one, mask in zip(text, masked, strict=True))
    return escaped(" ".join(re.sub("\0+", HIDDEN, shown).split()))[:LIMIT]


def _places(text: str, value: str) -> Iterator[int]:
    at = text.find(value)
    while at >= 0:
        yield at
        at = text.find(value, at + 1)


def _values(body: bytes) -> Iterator[str]:
    """The texts and numbers in a body, each in the forms that an error may have it in; all of what is no JSON."""
    try:
        found = set(_leaves(json.loads(body)))
    except (ValueError, RecursionError):
        found = {body.decode("utf-8", "backslashreplace")}
    for value in found:
        for form in {value, " ".join(value.split()), escaped(value), repr(value)[1:-1], json.dumps(value)[1:-1]}:
            if len(form) >= SHORTEST:
                yield form


def _leaves(value: Any, depth: int = 0) -> Iterator[str]:
    """Not the names of a task's fields, nor its kind, which are the contract's."""
    if isinstance(value, dict):
        for name, one in value.items():
            if depth >= NAMES_DEPTH:
                yield name
            if depth >= NAMES_DEPTH or name != "kind":
                yield from _leaves(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, depth + 1)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
