"""Handlers that stand in for a project's own, so that tests of its queue need none of what its handlers need.

Contract, queues, delays and limits are the project's; what a task is told, a file beside the record says.
"""

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from workqueue import contract, kinds
from workqueue.application import package_of
from workqueue.codec import ResultCodec
from workqueue.codec.results import models_of
from workqueue.compiler.samples import Maker
from workqueue.tasks.context import TaskContext

SPARE_S = 2.0  # of a kind's time limit, beyond what a task is told to take


class StandIn:
    """For one receive operation. `folder` holds a file for each task that is told something."""

    def __init__(self, folder: Path, receive: contract.Receive) -> None:
        self.folder, self._receive = folder, receive

    def tasks(self, count: int, seconds: float, failures: int) -> list[dict[str, Any]]:
        """Whole tasks of the kinds that may take so long, in turn. Skips the test where no kind may."""
        self.folder.mkdir(exist_ok=True)
        made = []
        for body in islice(cycle(self._bodies(seconds)), count):
            made.append(body | {"id": str(uuid4())})
            if seconds or failures:
                (self.folder / made[-1]["id"]).write_text(json.dumps({"seconds": seconds, "failures": failures}))
        return made

    @cached_property
    def _samples(self) -> tuple[dict[str, Any] | None, list[tuple[str | None, Any]]]:
        """A body that the contract allows, None if none can be made up; and of each kind, by its tag, a payload."""
        message = self._receive.message.schema
        schemas, whole = message["components"]["schemas"], message["allOf"][0]
        payload = kinds.field(whole, "payload", schemas) or {}
        maker, tag = Maker(schemas), kinds.payload_tag(payload, schemas)
        of_each = [maker.values({"allOf": [payload, *path]})[:1] for path in kinds.alternatives(payload, schemas)]
        payloads = [(None if tag is None else kinds.text(made[tag]), made) for (made,) in filter(None, of_each)]
        return next(iter(maker.values(whole)), None), payloads

    def _bodies(self, seconds: float) -> list[dict[str, Any]]:
        body, payloads = self._samples
        limit_s, message = self._receive.time_limit_s, self._receive.message.name
        if body is None or not payloads:
            skip(f"no value of {message} can be made up from its schema; give that examples")
        found = [body | {"payload": one} for kind, one in payloads if (limit_s(kind) or math.inf) >= seconds + SPARE_S]
        if not found:
            skip(f"no kind of {message} may take {seconds:g} s, with {SPARE_S:g} s to spare for a busy machine")
        return found


def skip(reason: str) -> NoReturn:
    """The test that asked can't be run on this contract."""
    import pytest

    pytest.skip(reason)


def handlers(application: type[Any], names: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A handler for each of these operations."""
    package = package_of(application)
    receives = {receive.operation: receive for receive in contract.load(package).receives.values()}
    models = import_module(f"{package}.messages.json")
    return {name: partial(_handle, folder, result(receives[name], models)) for name in names if name in receives}


async def _handle(folder: Path, made: Any, task: Any, context: TaskContext[Any]) -> Any:
    try:
        told = json.loads((folder / str(task.id)).read_bytes())
    except FileNotFoundError:
        return made
    await asyncio.sleep(told["seconds"])
    if context.attempt <= told["failures"]:
        raise RuntimeError(f"told to fail {told['failures']} times")
    return made


def result(receive: contract.Receive, models: Any) -> Any:
    """A result that the contract allows, of the generated models; None, which every handler may return, where none can
    be made up."""
    schemas = receive.message.schema["components"]["schemas"]
    codec = ResultCodec(receive)
    for made in _results(receive.result_schema["allOf"][0], models, schemas):
        try:
            codec.encode(made)
        except ValueError:
            continue
        return made
    return None


def _results(schema: Mapping[str, Any], models: Any, schemas: Mapping[str, Any]) -> Iterator[Any]:
    for path in kinds.alternatives(schema, schemas):
        for model in models_of(path, models, schemas):
            for value in Maker(schemas).values({"allOf": list(path)}):
                try:
                    yield model.model_validate(value, by_alias=True, by_name=False)
                except ValueError:
                    continue
