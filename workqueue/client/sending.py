"""From what an application wants done to a message that the broker has: which operation sends it, under which id."""

import json
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, get_args
from uuid import UUID, uuid5

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python
from uuid_utils.compat import uuid7

from workqueue import codec, kinds
from workqueue.amqp.wire import Producer, Wire
from workqueue.codec import Body, ModelCodec, Undecodable, printable
from workqueue.codec.models import as_json
from workqueue.codec.results import ResultReader, models_in
from workqueue.contract import Contract, Send
from workqueue.errors import TaskInvalid
from workqueue.observe import tracing
from workqueue.observe.tracing import Tracer, takes_context

KEYS = UUID("6f1d4a52-8a3e-5c0b-9d57-3a9f1f0c7e21")
"""The namespace of ids that are made from keys (RFC 9562, section 5.5). Never changed: the same key must stay the same
task."""


def envelope() -> dict[str, Any]:
    """What makes a payload a task: an id, and the time.

    The id begins with the time (RFC 9562, section 5.7), so that tasks which are done at about the same time are
    neighbours in the ledger's tree, however large that is.
    """
    return {"id": uuid7(), "created_at": datetime.now(UTC)}


@dataclass(slots=True)
class Outgoing:
    """A task that is about to be sent: its bytes are those of the contract."""

    id: UUID
    kind: str
    body: Body
    operation: str
    is_new: bool
    """No task can have had its id before."""
    _digest: bytes = field(default=b"", init=False, repr=False)

    @property
    def digest(self) -> bytes:
        """Names the payload, see `codec.digest`. Made when it is first asked for."""
        if not self._digest:
            self._digest = codec.digest(self.body)
        return self._digest


class Operation:
    """One send operation: its models, its codec and its connection."""

    def __init__(self, send: Send, models: types.ModuleType, producer: Producer) -> None:
        self.send, self.producer, self.name = send, producer, send.operation
        self.model: type[BaseModel] = getattr(models, send.message.name)
        self.takes_context = takes_context(send.message)
        self.payloads = frozenset(models_in(self.model.model_fields["payload"].annotation))
        self.kinds = [kind for model in self.payloads for kind in _constants(model, send.tag)]
        self._codec: ModelCodec[BaseModel] = ModelCodec(self.model, send.message)
        self.results = ResultReader(send, models)

    def task(self, payload: object, task_id: UUID | None) -> BaseModel:
        """The payload, a model or its JSON value, as a task, with an id of its own unless one is given.

        Raises TaskInvalid if it breaks the contract.
        """
        made = envelope() if task_id is None else {**envelope(), "id": task_id}
        name = str(made["id"])
        if isinstance(payload, BaseModel):
            try:
                return self.model(**made, payload=payload)
            except ValidationError as error:
                raise TaskInvalid(name, f"{type(payload).__name__}: {self.name} sends {self.payload_names}") from error
        try:
            value, changed = as_json(payload)
        except (ValueError, RecursionError) as error:  # of a type, a text or a depth that JSON has not
            raise TaskInvalid(name, printable(f"the payload has no JSON: {error}")) from error
        if changed is not None:
            raise TaskInvalid(name, str(changed.below("payload")))
        task = self._codec.from_value(to_jsonable_python(made) | {"payload": value})
        if isinstance(task, Undecodable):
            raise TaskInvalid(name, task.error)
        return task

    @property
    def payload_names(self) -> str:
        return ", ".join(sorted(model.__name__ for model in self.payloads)) or self.model.__name__

    def outgoing(self, task: Any, *, is_new: bool) -> Outgoing:
        """Raises TaskInvalid if the task breaks the contract, or would not arrive as what was given."""
        body = self._codec.encode(task)
        task_id = task.id if type(task.id) is UUID else UUID(body.message_id)
        return Outgoing(task_id, self.send.kind_of(task.payload) or kinds.UNTOLD, body, self.name, is_new)


class Sender:
    """Sends by the operation whose message, or payload, a model is of; by `to` where that may be several.

    `send` guarantees what `Publisher.send` does.
    """

    def __init__(self, loaded: Contract, package: str, wire: Wire, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        models = import_module(f"{package}.messages.json")
        self.operations = {
            send.operation: Operation(send, models, wire.producer(send)) for send in loaded.sends.values()
        }
        self._by_model: dict[type[Any], list[Operation]] = {}
        for operation in self.operations.values():
            for model in {operation.model, *operation.payloads}:
                self._by_model.setdefault(model, []).append(operation)

    async def open(self) -> None:
        """Connect, and declare the queues. Raises as `Link.open`."""
        for operation in self.operations.values():
            await operation.producer.start()

    def prepare(self, given: object, *, to: str | None = None, task_id: UUID | None = None) -> Outgoing:
        """What is to be sent: a task of a message's model as it is, anything else as the payload of a new one.

        Raises TaskInvalid for what breaks the contract, or belongs to no operation, or to several.
        """
        operation = self._operation(given, to, task_id)
        if type(given) is not operation.model:
            return operation.outgoing(operation.task(given, task_id), is_new=task_id is None)
        if task_id is not None:
            raise TypeError(_has_its_id(operation))
        return operation.outgoing(given, is_new=False)

    def keyed(self, given: object, key: str, *, to: str | None = None) -> UUID:
        """The id that a payload has by this key: the same for the same queue, kind and key, always and everywhere."""
        operation = self._operation(given, to, None)
        if type(given) is operation.model:
            raise TypeError(_has_its_id(operation))
        if not key:
            raise TaskInvalid("", "its key is empty, by which all such tasks would be one; give a text, or None")
        kind = operation.send.kind_of(given) or ""
        try:
            return uuid5(KEYS, json.dumps([operation.send.queue.name, kind, key], ensure_ascii=False))
        except UnicodeEncodeError as error:
            raise TaskInvalid("", f"its key {key!a} is no text that could be written as UTF-8") from error

    async def send(self, outgoing: Outgoing, *, within_s: float | None = None) -> None:
        """Return once the broker has the task. Raises as `Publisher.send`."""
        operation = self.operations[outgoing.operation]
        if self._tracer is None:
            return await operation.producer.send(outgoing.body, within_s=within_s)
        told = tracing.Outgoing(
            operation.send.queue.name, operation.name, outgoing.kind, str(outgoing.id), len(outgoing.body)
        )
        with self._tracer.publishing("send", told) as context:
            headers = context if operation.takes_context else None
            await operation.producer.send(outgoing.body, within_s=within_s, headers=headers)

    def _operation(self, given: object, to: str | None, task_id: UUID | None) -> Operation:
        task = str(task_id or getattr(given, "id", None) or "")
        check_to(to, self.operations, task)
        if to is not None:
            return self.operations[to]
        found = self._by_model.get(type(given), [])
        if not found and isinstance(given, Mapping):
            found = [one for one in self.operations.values() if given.get(one.send.tag) in one.kinds]
        if not found and len(self.operations) == 1 and not isinstance(given, BaseModel):
            found = list(self.operations.values())  # a payload that is no object, or one that is not a model yet
        if len(found) == 1:
            return found[0]
        names = ", ".join(operation.name for operation in found)
        sent = "; ".join(f"{operation.name} sends {operation.payload_names}" for operation in self.operations.values())
        way_out = f"it may be any of {names}: say which, with to=" if found else f"{sent}; or say which, with to="
        name = type(given).__name__
        if not found and any(name == model.__name__ for model in self._by_model):  # that of another generated package
            name = f"{name} of {type(given).__module__}"
            way_out += f"; those of {next(iter(self._by_model)).__module__}"
        raise TaskInvalid(task, f"{name}: {way_out}")


def check_to(to: str | None, operations: Collection[str], task: str) -> None:
    """Raises TaskInvalid where `to` is none of the send operations, and where there are none."""
    if not operations:
        raise TaskInvalid(task, "this application sends nothing: its contract has no send operation")
    if to is not None and to not in operations:
        raise TaskInvalid(task, f"to={to!r}: no such send operation; the contract has {', '.join(operations)}")


def _constants(model: type[BaseModel], tag: str | None) -> tuple[Any, ...]:
    """The values that the model's field of this name may have."""
    fields = model.model_fields.items()
    return next((get_args(field.annotation) for name, field in fields if (field.alias or name) == tag), ())


def _has_its_id(operation: Operation) -> str:
    return f"a {operation.model.__name__} has its id; give its payload to send it under another"
