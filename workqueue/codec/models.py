"""Bytes to generated model and back, exactly as the contract says.

The contract's own JSON Schema decides, not the models: those accept unknown fields and convert what they can, and
can't express every schema. A model is made only from a value that the schema accepts, and counts only if it writes
that value again: what a model would change is refused, never passed on. A None that was given for an optional
property whose schema has no null means that it is absent, and is not written.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar

from asyncapi_python.kernel.codec import Codec
from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import from_json, to_json, to_jsonable_python

from workqueue import contract
from workqueue.codec.keeping import may_change
from workqueue.codec.schema import Path, Schema, place, printable
from workqueue.codec.values import Change, change, difference, leave_out, mark_filled, told
from workqueue.errors import TaskInvalid

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Undecodable:
    """A body that is not the contract's, in place of a model: `decode` never raises."""

    reason: Literal["undecodable", "invalid"]
    error: str


class Body(bytes):
    """An encoded message together with the id it is published under."""

    message_id: str


class ModelCodec(Codec[Any, bytes], Generic[M]):
    """The codec of one message: a generated model, its schema and its size limit."""

    def __init__(self, model: type[M], message: contract.Message) -> None:
        self._model = model
        self._schema, self._compares = Schema(message.schema), may_change(message.schema)
        self.max_bytes = message.max_bytes

    def decode(self, payload: bytes) -> M | Undecodable:
        """The model, or Undecodable: too large or not JSON ("undecodable"), not the contract's, or not to be held by
        its model as it is ("invalid"). So is a body that a fault of ours keeps from being judged: it would end each
        worker that it comes to."""
        try:
            return self._decoded(payload)
        except Exception as error:
            log.error("a body could not be judged", exc_info=error)
            return Undecodable("invalid", printable(f"could not be judged: {error!r}"))

    def _decoded(self, payload: bytes) -> M | Undecodable:
        value = self._parse(payload)
        if isinstance(value, Undecodable):
            return value
        model = self._valid(value)
        if isinstance(model, Undecodable) or not self._compares:
            return model
        written = dump(model)
        if written == payload or written == to_json(value):
            return model
        changed = change(value, from_json(written))
        return model if changed is None else Undecodable("invalid", str(changed))

    def from_value(self, value: Any) -> M | Undecodable:
        """The model of a parsed JSON value, or Undecodable("invalid")."""
        model = self._valid(value)
        if isinstance(model, Undecodable):
            return model
        changed = change(value, from_json(dump(model)))
        return model if changed is None else Undecodable("invalid", str(changed))

    def encode(self, payload: M) -> Body:
        """The contract's bytes: its field names, nothing for a default that is neither set nor filled in place.

        Raises TaskInvalid if they would break the contract, or would not arrive as what was given.
        """
        body, value, read_back = self._write(payload)
        if read_back != payload:
            while mark_filled(payload, read_back):
                body, value, read_back = self._write(payload)
            changed = _change(payload, value, read_back)
            if changed is not None:
                raise self._invalid(payload, str(changed))
        body.message_id = str(value.get("id", "")) if isinstance(value, dict) else ""
        return body

    def extract_field(self, payload: M, location: str) -> str:
        raise ValueError(f"{location}: the address of a work queue has no parameters")

    def _write(self, payload: M) -> tuple[Body, Any, M]:
        """The bytes, their JSON value, and what a receiver would make of it."""
        body, value, read_back = self._written(payload)
        if isinstance(read_back, Undecodable) and _leave_out_nulls(payload, value, self._schema):
            body, value, read_back = self._written(payload)
        if isinstance(read_back, Undecodable):
            raise self._invalid(payload, read_back.error)
        return body, value, read_back

    def _written(self, payload: M) -> tuple[Body, Any, M | Undecodable]:
        try:
            body = Body(dump(payload))
        except ValueError as error:  # such as a file name that is not Unicode
            raise self._invalid(payload, printable(str(error))) from error
        value = self._parse(body)
        return body, value, value if isinstance(value, Undecodable) else self._valid(value)

    @staticmethod
    def _invalid(payload: M, problem: str) -> TaskInvalid:
        return TaskInvalid(str(getattr(payload, "id", "")), problem)

    def _parse(self, payload: bytes) -> Any:
        if len(payload) > self.max_bytes:
            return Undecodable("undecodable", f"{len(payload)} bytes, the limit is {self.max_bytes}")
        try:
            return from_json(payload, allow_inf_nan=False)
        except ValueError as error:
            return Undecodable("undecodable", printable(f"not JSON: {error}"))

    def _valid(self, value: Any) -> M | Undecodable:
        problem = self._schema.problem(value)
        if problem is not None:
            return Undecodable("invalid", problem)
        try:
            return read(self._model, value)
        except ValidationError as error:  # the schema allows what the model's type can't hold, such as second 60
            return Undecodable("invalid", _refusal(value, error))


class ResultCodec:
    """What a handler returned, to JSON by the contract's result schema."""

    def __init__(self, receive: contract.Receive) -> None:
        self._schema, self._max_bytes = Schema(receive.result_schema), receive.result_max_bytes

    def encode(self, result: BaseModel) -> str:
        """Raises ValueError, one line, if the result is no model, breaks the contract, or would be kept otherwise than
        it was returned."""
        if not isinstance(result, BaseModel):
            raise ValueError(
                f"the handler returned {type(result).__name__}, which is no model; "
                "return one of the generated result models, or None"
            )
        encoded, value = self._write(result)
        if result.__dict__ == value:  # all of it is set, and is what JSON has: the most results, and told at once
            return encoded.decode()
        read_back = self._read_back(result, value)
        if read_back != result:
            while mark_filled(result, read_back):
                encoded, value = self._write(result)
                read_back = self._read_back(result, value)
            changed = _change(result, value, read_back)
            if changed is not None:
                raise ValueError(f"the result can't be kept: {changed}")
        return encoded.decode()

    def _write(self, result: BaseModel) -> tuple[bytes, Any]:
        encoded, value, problem = self._written(result)
        if problem is not None and _leave_out_nulls(result, value, self._schema):
            encoded, value, problem = self._written(result)
        if problem is not None:
            raise ValueError(f"the result breaks the contract: {problem}")
        return encoded, value

    @staticmethod
    def _read_back(result: BaseModel, value: Any) -> BaseModel:
        try:
            return read(type(result), value)
        except ValidationError as error:
            raise ValueError(f"the result breaks the contract: {_refusal(value, error)}") from error

    def _written(self, result: BaseModel) -> tuple[bytes, Any, str | None]:
        encoded = dump(result)
        if len(encoded) > self._max_bytes:
            raise ValueError(f"a result of {len(encoded)} bytes, the limit is {self._max_bytes}")
        value = from_json(encoded)
        return encoded, value, self._schema.problem(value)


# What `model_dump_json` and `model_validate` call: without them each is 1 us faster, and every message takes both.


def dump(model: BaseModel) -> bytes:
    # A value of a wrong type is refused by the schema, in one line; pydantic would say it on standard error too.
    return type(model).__pydantic_serializer__.to_json(model, by_alias=True, exclude_unset=True, warnings=False)


def read(model: type[M], value: Any) -> M:
    # By alias only: a field's Python name is not the contract's, and may be that of another property.
    made: M = model.__pydantic_validator__.validate_python(value, by_alias=True, by_name=False)
    return made


def as_json(given: Any) -> tuple[Any, Change | None]:
    """The JSON of a value that may have models in it, and the first thing that it does not hold as it is: a set, a key
    that is no text. Raises ValueError for what has none, RecursionError."""
    value = to_jsonable_python(given)
    if value == given:
        return value, None
    given = _without_models(given)
    value = to_jsonable_python(given)
    return value, difference(given, value, value)


def _without_models(given: Any) -> Any:
    match given:
        case RootModel():
            return _without_models(given.root)
        case BaseModel():
            return {name: _without_models(value) for name, value in told(given).items()}
        case Enum():
            return given.value
        case Mapping():
            return {name: _without_models(value) for name, value in given.items()}
        case list() | tuple():
            return [_without_models(value) for value in given]
        case _:
            return given


def _leave_out_nulls(model: BaseModel, value: Any, schema: Schema) -> bool:
    """Leave out the fields that were given as None where the JSON may have no null; whether there were any."""
    if isinstance(value, Undecodable):
        return False
    left_out = [leave_out(model, path) for path in schema.refused_nulls(value)]
    return any(left_out)


def _change(given: BaseModel, value: Any, read_back: BaseModel) -> Change | None:
    """What of a model is lost: on the way to the JSON value, or when a receiver makes a model of that."""
    return difference(given, value, read_back) or change(value, from_json(dump(read_back)))


def _refusal(value: Any, error: ValidationError) -> str:
    """What the model says against a value that its schema accepts.

    In a union each alternative complains; those whose constant is another one were not meant.
    """
    errors = error.errors(include_url=False, include_input=False)
    others = [found["loc"][:-1] for found in errors if found["type"] == "literal_error"]
    meant = [e for e in errors if not any(e["loc"][: len(other)] == other for other in others)]
    first = (meant or errors)[0]
    return printable(f"{place(_steps(value, first['loc']))}: {first['msg']}")


def _steps(value: Any, location: Path) -> Iterator[str | int]:
    """The steps of a pydantic location that are steps of the value; the others are names of types."""
    for step in location:
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict) and step in value:
            value = value[step]
            yield step
