"""Whose tasks: the operations of a project that tasks can be sent to, and the payloads of a user for them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from workqueue.codec import Schema
from workqueue.errors import ContractInvalid, InputInvalid
from workqueue.testing.chaos.load import nap, whole
from workqueue.testing.chaos.settings import Payload, RunSettings
from workqueue.testing.scripts import Operation

Line = tuple[str, dict[str, Any]]
"""A payload, and in front of it where it was read."""


def read(name: str) -> list[Line]:
    """The payloads of a file whose lines are payloads or whole tasks, as for the producer. Raises InputInvalid."""
    try:
        lines = enumerate(Path(name).read_text(encoding="utf-8-sig").split("\n"), 1)
    except OSError as error:
        raise InputInvalid(name, str(error.strerror)) from error
    except ValueError as error:
        raise InputInvalid(name, f"is not UTF-8 ({error})") from error
    found = [_payload(f"{name}:{number}", line) for number, line in lines if line.strip()]
    if not found:
        raise InputInvalid(name, "is empty; give a line of JSON for each payload")
    return found


def _payload(where: str, line: str) -> Line:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputInvalid(where, f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputInvalid(where, "is no JSON object")
    return where, value["payload"] if {"id", "payload"} <= value.keys() else value


def addressed(lines: Iterable[Line], operations: Mapping[str, Operation]) -> tuple[Payload, ...]:
    """Each payload, for the first of these operations whose message can have it. Raises InputInvalid for one that fits
    none, and ContractInvalid."""
    schemas = _schemas(operations)

    def fitted(where: str, value: dict[str, Any]) -> Payload:
        problems = {name: schema.problem(whole(str(uuid4()), value)) for name, schema in schemas.items()}
        fits = next((name for name, problem in problems.items() if problem is None), None)
        if fits is None:
            said = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise InputInvalid(where, f"fits the message of no operation ({said})")
        return Payload(fits, value)

    return tuple(fitted(where, value) for where, value in lines)


def operations_of(settings: RunSettings) -> dict[str, Operation]:
    """The operations of the project that there are tasks for. Raises ContractInvalid."""
    operations = settings.scripts.operations(settings.project)
    if settings.payloads:
        wanted = {payload.operation for payload in settings.payloads}
    else:
        task = whole(str(uuid4()), nap(kind=settings.nap))
        wanted = {name for name, schema in _schemas(operations).items() if schema.problem(task) is None}
    return {name: operation for name, operation in operations.items() if name in wanted}


def _schemas(operations: Mapping[str, Operation]) -> dict[str, Schema]:
    """Of the messages that are sent to these operations, by their names."""
    found = {name: Schema(one.send.message.schema) for name, one in operations.items() if one.send is not None}
    if not found:
        raise ContractInvalid(f"nothing sends to {', '.join(operations)}; a send operation on the same queue would")
    return found
