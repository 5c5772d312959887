"""Whether a value is still the one it was: JSON against JSON, and a model against what was read back of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, NamedTuple
from uuid import UUID

from jsonschema_rs import canonical
from pydantic import BaseModel, RootModel
from pydantic.fields import FieldInfo
from pydantic_core import from_json

from workqueue.codec.schema import Path, place, printable

DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|z|[+-]\d\d:\d\d)"  # RFC 3339
)
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
NOTHING: Any = object()
QUOTED_LIMIT = 200  # characters of a value that an error quotes


@dataclass(frozen=True)
class Change:
    """A place where a value is no longer what it was."""

    path: Path
    before: Any
    after: Any

    def below(self, step: str | int) -> "Change":
        return Change((step, *self.path), self.before, self.after)

    def __str__(self) -> str:
        return printable(f"{place(self.path)}: {_quoted(self.before)} would become {_quoted(self.after)}")


def _quoted(value: Any) -> str:
    return "nothing" if value is NOTHING else repr(value)[:QUOTED_LIMIT]


def change(before: Any, after: Any) -> Change | None:
    """The first place where two JSON values differ in meaning.

    1 and 1.0 are one number. A time may be spelled with fewer zeros or another sign for UTC, and a UUID in either case,
    because that is how their models write them.
    """
    if before is after:
        return None
    kind, other = type(before), type(after)
    if kind is str and other is str:
        return None if before == after or _spelling(before) == _spelling(after) else Change((), before, after)
    if kind is dict and other is dict:
        for name, value in before.items():
            found = change(value, after.get(name, NOTHING))
            if found is not None:
                return found.below(name)
        added = next((name for name in after if name not in before), None)
        return None if added is None else Change((added,), NOTHING, after[added])
    if kind is list and other is list and len(before) == len(after):
        for number, value in enumerate(before):
            found = change(value, after[number])
            if found is not None:
                return found.below(number)
        return None
    return None if before == after and (kind is bool) is (other is bool) else Change((), before, after)


def _spelling(text: str) -> str:
    if (parts := DATE_TIME.fullmatch(text)) is not None:
        day, hour, fraction, zone = parts.groups()
        zone = "+00:00" if zone in ("Z", "z", "-00:00") else zone
        return f"{day}T{hour}.{(fraction or '').rstrip('0')}{zone}"
    return text.lower() if UUID_TEXT.fullmatch(text) is not None else text


def mark_filled(given: Any, read_back: Any) -> bool:
    """Count every default that was filled in place (a list appended to) as set, so that it is sent; whether there were
    any. What was filled may hold others: those show once that is written.

    `read_back` was made of `given` without what is not set: where the two differ, something was filled.
    """
    marked = False
    if isinstance(given, BaseModel) and isinstance(read_back, BaseModel):
        for name in type(given).model_fields:
            mine, theirs = getattr(given, name, None), getattr(read_back, name, None)
            if name not in given.model_fields_set and mine != theirs:
                given.model_fields_set.add(name)
                marked = True
            marked |= mark_filled(mine, theirs)
    elif isinstance(given, Mapping) and isinstance(read_back, Mapping):
        for name in given.keys() & read_back.keys():
            marked |= mark_filled(given[name], read_back[name])
    elif isinstance(given, list | tuple) and isinstance(read_back, list | tuple):
        for mine, theirs in zip(given, read_back, strict=False):
            marked |= mark_filled(mine, theirs)
    return marked


def leave_out(given: Any, path: Path) -> bool:
    """Count the optional field at this place of a model as not set; whether there is one. Its value is None."""
    for step in path[:-1]:
        given = _below(given, step)
    given = _unwrapped(given)
    for name, field in type(given).model_fields.items() if isinstance(given, BaseModel) else ():
        # A default other than None is what a receiver would get instead.
        is_none = field.default is None and getattr(given, name, NOTHING) is None  # and not NaN, which is null in JSON
        if _key(name, field) == path[-1] and is_none and name in given.model_fields_set:
            given.model_fields_set.discard(name)
            return True
    return False


def _below(given: Any, step: str | int) -> Any:
    given = _unwrapped(given)
    if isinstance(given, BaseModel):
        return _by_key(given).get(str(step))
    if isinstance(given, Mapping):
        return given.get(step)
    return given[step] if isinstance(given, list | tuple) and isinstance(step, int) else None


def _unwrapped(given: Any) -> Any:
    while isinstance(given, RootModel):
        given = given.root
    return given


def difference(given: Any, written: Any, read_back: Any) -> Change | None:
    """The first place where the JSON that a model was written to does not say what the model was given.

    A value is kept if it reads back as an equal one, or if it is itself what the JSON holds.
    """
    if given == read_back and isinstance(given, bool) is isinstance(read_back, bool):
        return None
    if isinstance(given, RootModel):
        return difference(given.root, written, getattr(read_back, "root", read_back))
    if isinstance(given, BaseModel) and isinstance(read_back, BaseModel):
        return _first(_by_key(given), written, _by_key(read_back))
    if isinstance(given, Mapping) and isinstance(written, dict) and given.keys() == written.keys():
        return _first(given, written, read_back if isinstance(read_back, Mapping) else written)
    if isinstance(given, list | tuple) and isinstance(written, list) and len(given) == len(written):
        kept = read_back if isinstance(read_back, list | tuple) and len(read_back) == len(written) else written
        return _first(*(dict(enumerate(items)) for items in (given, written, kept)))
    return change(_as_text(given) if isinstance(written, str) else given, written)


def _first(given: Mapping[Any, Any], written: Mapping[Any, Any], read_back: Mapping[Any, Any]) -> Change | None:
    for step in given:
        found = difference(given[step], written.get(step, NOTHING), read_back.get(step, NOTHING))
        if found is not None:
            return found.below(step)
    return None


def _by_key(model: BaseModel) -> dict[str, Any]:
    """The values of a model by the names they have in JSON."""
    fields = type(model).model_fields.items()
    return {_key(name, field): getattr(model, name, NOTHING) for name, field in fields} | (model.model_extra or {})


def told(model: BaseModel) -> dict[str, Any]:
    """As `_by_key`, without a None that nobody has set."""
    fields, was_set = type(model).model_fields, model.model_fields_set
    unset = {_key(name, field) for name, field in fields.items() if name not in was_set}
    found = _by_key(model)
    return {key: found[key] for key in found if not (key in unset and (found[key] is None or found[key] is NOTHING))}


def _key(name: str, field: FieldInfo) -> str:
    return field.serialization_alias or field.alias or name


def _as_text(given: Any) -> Any:
    """What a value that was assigned to a text field says, for types that have just one text."""
    if isinstance(given, date | time):
        return given.isoformat().replace("+00:00", "Z")
    return str(given) if isinstance(given, UUID | PurePath) else given


class Named(NamedTuple):
    """What names a task, by its body's own word. The kind is empty where that says none."""

    id: UUID
    digest: bytes
    kind: str


def named(body: bytes, tag: str | None) -> Named | None:
    """Of a body that may not be the contract's: None where it tells no id, or has no payload. `tag` is the property of
    the payload that tells its kind."""
    try:
        value = from_json(body)
        payload = value["payload"]
        told = payload.get(tag) if tag is not None and isinstance(payload, dict) else None
        return Named(UUID(value["id"]), _digest(payload), told if isinstance(told, str) else "")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None


def digest(body: bytes) -> bytes:
    """8 bytes that name the payload of a task that was decoded: the same for every order of keys, every spacing and
    every way to write a number; the task's id and time play no part."""
    return _digest(from_json(body)["payload"])


def _digest(payload: Any) -> bytes:
    return blake2b(canonical.json.to_string(payload).encode(), digest_size=8).digest()
