"""The types of an application's clients, as a module beside the generated ones.

`Client` and `SyncClient` of it are the package's own, for a type checker to hold to the contract: a payload that no
operation sends, or a result that is taken for another, is an error where the application calls them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from workqueue import kinds
from workqueue.codec.results import models_in
from workqueue.compiler.handlers import results_of
from workqueue.contract import Contract, Send

MODULE = "client.py"
START = '''"""What this application sends, and what comes back. Built by `make generate`; never edited."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload
from uuid import UUID

from workqueue import Settings, client
from workqueue.client import blocking
from workqueue.client.blocking import SyncHandle
from workqueue.client.results import Handle

from .application import Application
from .messages import json as models


'''
ALIASES = """{task} = {tasks}
{result} = {results}
"""
CLASS = '''class {name}({base}):
    """`workqueue.{name}`, for this application."""

    if TYPE_CHECKING:

        def __init__(
            self,
            application: type[Application],
            *,
            settings: Settings | None = None,
            wait_s: float = 0.0,
            name: str | None = None,
        ) -> None: ...
{methods}
        {start}def result(  # type: ignore[override]
            self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None
        ) -> {result}: ...
'''
SEND = """        {start}def send({ignored}
            self,
            task: {task},
            *,
            to: {to},
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> {handle}[{result}]: ..."""
SEND_MANY = """        {start}def send_many({ignored}
            self, tasks: Iterable[{task}], *, to: {to}, within_s: float | None = None
        ) -> list[{handle}[{result}]]: ..."""


@dataclass(frozen=True)
class Types:
    """The names of what an operation sends and of what comes back, and what they stand for."""

    name: str
    send: Send
    models: ModuleType

    @property
    def task(self) -> str:
        return f"{self.name}Input"

    @property
    def result(self) -> str:
        return f"{self.name}Result"

    @property
    def tasks(self) -> list[str]:
        """The message, and its payloads where all of them are models."""
        message = self.send.message
        payload = getattr(self.models, message.name).model_fields["payload"].annotation
        names = [f"models.{model.__name__}" for model in models_in(payload)]
        schemas: dict[str, Any] = message.schema["components"]["schemas"]
        stated = kinds.field(message.schema["allOf"][0], "payload", schemas) or {}
        whole = len(names) >= len(list(kinds.alternatives(stated, schemas)))
        return list(dict.fromkeys([f"models.{message.name}", *names])) if whole else ["Any"]

    @property
    def results(self) -> list[str]:
        """Of a result whose model is not known, `ResultReader` gives the plain value."""
        message = self.send.message
        names = ["BaseModel"] if message.result_schema is None else results_of(message, self.models)
        return ["Any"] if "BaseModel" in names else [*names, "None"]

    def shares(self, others: Iterable["Types"]) -> bool:
        """Whether another operation sends something of the same type, so that it must be said which is meant."""
        own = set(self.tasks)
        return any("Any" in own or own & {"Any", *other.tasks} for other in others if other is not self)


def source(loaded: Contract, models: ModuleType) -> str | None:
    """The module's text; None for an application that sends nothing."""
    sends = sorted(loaded.sends.values(), key=lambda send: send.operation)
    if not sends:
        return None
    types = [Types(name, send, models) for name, send in _names(sends).items()]
    aliases = "".join(
        ALIASES.format(task=one.task, tasks=" | ".join(one.tasks), result=one.result, results=" | ".join(one.results))
        for one in types
    )
    clients = (("Client", "client.Client", "async ", "Handle"), ("SyncClient", "blocking.SyncClient", "", "SyncHandle"))
    return "\n\n".join([START + aliases, *(_class(*each, types) for each in clients)])


def _names(sends: list[Send]) -> dict[str, Send]:
    """The operations by names that a class may begin with."""
    named: dict[str, Send] = {}
    for send in sends:
        name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^0-9A-Za-z]+", send.operation))
        name = name if name.isidentifier() else f"Operation{name}"
        while name in named:
            name += "_"
        named[name] = send
    return named


def _class(name: str, base: str, start: str, handle: str, types: list[Types]) -> str:
    methods = []
    for template in (SEND, SEND_MANY):
        for one in types:
            methods += ["        @overload"] * (len(types) > 1)
            to = f"Literal[{one.send.operation!r}]" + ("" if one.shares(types) else " | None = None")
            ignored = "  # type: ignore[override]" if one is types[0] else ""
            methods.append(
                template.format(start=start, task=one.task, to=to, handle=handle, result=one.result, ignored=ignored)
            )
    every = " | ".join(one.result for one in types)
    return CLASS.format(name=name, base=base, start=start, methods="\n".join(methods), result=every)
