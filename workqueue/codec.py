"""Bytes to generated model and back, exactly as the contract says.

The contract's own JSON Schema decides, not the models: those accept unknown fields and convert what they can, and
can't express every schema. A model is made only from a value that the schema accepts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

import jsonschema_rs
from asyncapi_python.contrib.codec import CodecRegistry
from asyncapi_python.kernel.codec import Codec, CodecFactory
from asyncapi_python.kernel.document import Message as KernelMessage
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from workqueue import contract
from workqueue.errors import NotSent

M = TypeVar("M", bound=BaseModel)

ERROR_LIMIT = 1000  # characters: an error goes into a header and a log line, and may quote the value it is about


@dataclass(frozen=True)
class Undecodable:
    """A body that is not the contract's, in place of a model: `decode` never raises."""

    reason: Literal["undecodable", "invalid"]
    error: str


class Body(bytes):
    """An encoded message together with the id it is published under."""

    message_id: str


class Schema:
    """A compiled JSON Schema. `problem(value)` is None, or one line that says where and what."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = jsonschema_rs.Draft7Validator(dict(schema), validate_formats=True)

    def problem(self, value: Any) -> str | None:
        try:
            if self._validator.is_valid(value):
                return None
        except ValueError as error:  # a value that JSON does not have, such as a date in an AMQP header
            return printable(str(error))
        return printable("; ".join(dict.fromkeys(_explain(self._validator.iter_errors(value)))))


def printable(text: str) -> str:
    """One line that any terminal, header and database takes: what is not printable is escaped, the rest cut off."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[:ERROR_LIMIT]


def _explain(errors: Iterator[jsonschema_rs.ValidationError]) -> Iterator[str]:
    """The errors as lines; for a union the errors of the alternative that the value's tag chose."""
    for error in errors:
        alternatives = getattr(error.kind, "context", None)
        chosen = [branch for branch in alternatives or [] if not any(e.kind.name == "const" for e in branch)]
        if len(chosen) == 1:
            yield from _explain(iter(chosen[0]))
        elif len(chosen) > 1 and (common := _common(chosen)):
            yield f"{_place(error)}: {', '.join(common)}"  # there is no tag: what all alternatives say of it
        elif alternatives and not chosen:
            tags = [e.message for branch in alternatives for e in branch if e.kind.name == "const"]
            yield f"{_place(error)}: no such kind ({', '.join(tags)})"
        else:
            yield f"{_place(error)}: {error.message}"


def _common(branches: list[Any]) -> list[str]:
    first, *others = ([e.message for e in branch] for branch in branches)
    return [message for message in first if all(message in other for other in others)]


def _place(error: jsonschema_rs.ValidationError) -> str:
    return "/" + "/".join(map(str, error.instance_path))


class ModelCodec(Codec[Any, bytes], Generic[M]):
    """The codec of one message: a generated model, its schema and its size limit."""

    def __init__(self, model: type[M], message: contract.Message) -> None:
        self._model = model
        self._schema = Schema(message.schema)
        self.max_bytes = message.max_bytes

    def decode(self, payload: bytes) -> M | Undecodable:
        """The model, or Undecodable: too large or not JSON ("undecodable"), not the contract's ("invalid")."""
        if len(payload) > self.max_bytes:
            return Undecodable("undecodable", f"{len(payload)} bytes, the limit is {self.max_bytes}")
        try:
            value = from_json(payload, allow_inf_nan=False)
        except ValueError as error:
            return Undecodable("undecodable", printable(f"not JSON: {error}"))
        return self.from_value(value)

    def from_value(self, value: Any) -> M | Undecodable:
        """The model of a parsed JSON value, or Undecodable("invalid")."""
        problem = self._schema.problem(value)
        if problem is not None:
            return Undecodable("invalid", problem)
        try:
            return self._model.model_validate(value)
        except ValidationError as error:  # the schema allows what the model's type can't hold, such as February 30
            first = error.errors()[0]
            return Undecodable("invalid", printable(f"/{'/'.join(map(str, first['loc']))}: {first['msg']}"))

    def encode(self, payload: M) -> Body:
        """The contract's bytes: its field names, nothing for what is unset. Raises NotSent if they would break it."""
        message_id = str(getattr(payload, "id", ""))
        try:
            body = Body(_dump(payload))
        except ValueError as error:  # such as a file name that is not Unicode
            raise NotSent(message_id, printable(str(error))) from error
        body.message_id = message_id
        read_back = self.decode(body)
        if isinstance(read_back, Undecodable):
            raise NotSent(message_id, read_back.error)
        return body

    def extract_field(self, payload: M, location: str) -> str:
        raise ValueError(f"{location}: the address of a work queue has no parameters")


class ResultCodec:
    """What a handler returned, to JSON by the contract's result schema."""

    def __init__(self, receive: contract.Receive) -> None:
        self._schema, self._max_bytes = Schema(receive.result_schema), receive.result_max_bytes

    def encode(self, result: BaseModel) -> str:
        """Raises ValueError, one line, if the result breaks the contract."""
        encoded = _dump(result)
        if len(encoded) > self._max_bytes:
            raise ValueError(f"a result of {len(encoded)} bytes, the limit is {self._max_bytes}")
        problem = self._schema.problem(from_json(encoded))
        if problem is not None:
            raise ValueError(f"the result breaks the contract: {problem}")
        return encoded.decode()


def _dump(model: BaseModel) -> bytes:
    # A value of a wrong type is refused by the schema, in one line; pydantic would say it on standard error too.
    return model.model_dump_json(by_alias=True, exclude_unset=True, warnings=False).encode()


class ContractCodecs(CodecFactory[Any, bytes]):
    """Makes the codecs of a generated package from its models and its contract.json."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module)
        loaded = contract.load(module.__name__)
        operations: list[contract.Send | contract.Receive] = [*loaded.sends.values(), *loaded.receives.values()]
        self._messages = {operation.message.name: operation.message for operation in operations}

    def create(self, message: KernelMessage) -> ModelCodec[Any]:
        name = str(message.name)
        return ModelCodec(getattr(self._module.messages.json, name), self._messages[name])


def for_model(model: type[M]) -> ModelCodec[M]:
    """The codec of a message that a generated package sends, by its model. Raises ContractInvalid."""
    sends = contract.load(model.__module__.removesuffix(".messages.json")).sends.values()
    (message,) = (send.message for send in sends if send.message.name == model.__name__)
    return ModelCodec(model, message)


def install() -> None:
    """Make the generated applications use these codecs for the contract's content type."""
    CodecRegistry.register("application/json", ContractCodecs)


def digest(body: bytes) -> bytes:
    """16 bytes that name the payload of a task that was decoded: the same for every order of keys and every spacing;
    the task's id and time play no part."""
    payload = json.dumps(from_json(body)["payload"], sort_keys=True, separators=(",", ":"))
    return blake2b(payload.encode(), digest_size=16).digest()
