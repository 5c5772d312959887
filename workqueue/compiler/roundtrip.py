"""Proof that values survive: what the contract allows goes through the generated models and comes back as it was.

For each message and result of a generated package, values are made at the boundaries of its schema, without chance,
and sent through the codec. A value that the schema accepts and its model changes is a problem, in one line.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from workqueue import contract, kinds
from workqueue.codec import ModelCodec, ResultCodec, Undecodable
from workqueue.codec.results import models_of
from workqueue.codec.values import change
from workqueue.compiler.samples import Maker
from workqueue.errors import NotSent

ANY_SIZE = sys.maxsize


def problems(loaded: contract.Contract, models: ModuleType) -> list[str]:
    """A line for each field of an application's models that does not keep what the contract lets it hold."""
    found: list[str] = []
    operations: list[contract.Send | contract.Receive] = [*loaded.sends.values(), *loaded.receives.values()]
    for operation in operations:
        found += _Trial(operation.message).of_message(getattr(models, operation.message.name))
        if isinstance(operation, contract.Receive):
            found += _Trial(operation.message).of_result(operation, models)
    return list(dict.fromkeys(found))


class _Trial:
    """Sends values through a codec, and notes what became of them by the place in the value.

    A change is a problem. That a model refuses a value is one only for a place where it never takes any: the schema
    may say less than the model (a leap second), and such a value is refused in the open when it comes. So is one that
    is too large, which is a problem only if there is no smaller one.
    """

    def __init__(self, message: contract.Message) -> None:
        self._name, self._schemas = message.name, message.schema["components"]["schemas"]
        self._message, self._whole = message, message.schema["allOf"][0]
        self._tag = kinds.payload_tag(kinds.field(self._whole, "payload", self._schemas) or {}, self._schemas)
        self._kept: set[str] = set()
        self._least: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._lines: list[str] = []

    def of_message(self, model: type[BaseModel]) -> list[str]:
        codec = ModelCodec(model, replace(self._message, max_bytes=ANY_SIZE))
        self._lines += [f"{self._name}: {line}" for line in kinds.unreachable_limits(self._whole, self._schemas)]
        for value in Maker(self._schemas).values(self._whole):
            kind = self._kind(value.get("payload") if isinstance(value, dict) else None)
            made = codec.decode(json.dumps(value).encode())
            if isinstance(made, Undecodable):
                self._note(kind, value, made.error)
                continue
            try:
                self._note(kind, value, change(value, from_json(codec.encode(made))))
            except NotSent as error:
                self._note(kind, value, error.reason)
        return self._found(self._message.max_bytes)

    def of_result(self, receive: contract.Receive, models: ModuleType) -> list[str]:
        self._name = "result"
        self._tag = kinds.payload_tag(receive.result_schema["allOf"][0], self._schemas)
        codec = ResultCodec(replace(receive, result_max_bytes=ANY_SIZE))
        for path in kinds.alternatives(receive.result_schema["allOf"][0], self._schemas):
            candidates = models_of(path, models, self._schemas)
            for value in Maker(self._schemas).values({"allOf": list(path)}) if candidates else ():
                # A payload may have the same constant and properties as a result: one of the models is the right one.
                told = [self._of_result(codec, model, value) for model in candidates]
                self._note(self._kind(value), value, None if None in told else told[0])
        return self._found(receive.result_max_bytes)

    def _of_result(self, codec: ResultCodec, model: Any, value: Any) -> object:
        """What is wrong with a value that goes through this model; None for nothing."""
        try:
            made = model.model_validate(value, by_alias=True, by_name=False)
            found = change(value, from_json(codec.encode(made)))
        except ValidationError as error:
            return f"/{'/'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        except ValueError as error:
            return str(error)
        return found

    def _kind(self, payload: Any) -> str:
        tagged = payload.get(self._tag) if isinstance(payload, dict) else None
        return f"{self._name} {tagged}" if tagged is not None else self._name

    def _note(self, kind: str, value: Any, problem: object) -> None:
        places = {f"{kind}: {pointer}" for pointer in _places(value)}
        if problem is None:
            self._kept |= places
            self._least[kind] = min(len(to_json(value)), self._least.get(kind, ANY_SIZE))
        elif " would become " in str(problem):
            self._lines.append(f"{kind}: {problem}; give the field another format, or none")
        else:
            where = f"{kind}: {_without_numbers(str(problem).partition(': ')[0])}"
            self._refused.setdefault(where, f"{kind}: {problem}; its model takes nothing that the schema accepts")

    def _found(self, limit: int) -> list[str]:
        self._lines += [line for where, line in self._refused.items() if where not in self._kept]
        for kind, least in self._least.items():
            if least > limit:
                self._lines.append(f"{kind}: the smallest has {least} bytes, more than x-max-bytes, {limit}; say more")
        return self._lines


def _places(value: Any, here: str = "") -> Iterator[str]:
    yield here or "/"
    for name, below in value.items() if isinstance(value, dict) else ():
        yield from _places(below, f"{here}/{name}")
    for below in value if isinstance(value, list) else ():
        yield from _places(below, f"{here}/*")


def _without_numbers(pointer: str) -> str:
    return re.sub(r"/\d+(?=/|$)", "/*", pointer)
