"""The types of an application's handlers, as a module beside the generated ones.

`run_worker` of it is the package's own, for a type checker to hold to the contract: a handler that is missing, or one
too many, or that takes or returns something else, is an error where the script calls it.
"""

import keyword
from types import ModuleType

from workqueue.codec.results import result_models
from workqueue.contract import Contract, Message, Receive

MODULE = "handlers.py"
START = '''"""What the handler of each receive operation takes and returns. Built by `make generate`; never edited."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypedDict, TypeVar, cast, overload

from pydantic import BaseModel
from workqueue import Settings, TaskContext, worker

from .application import Application
from .messages import json as models

R = TypeVar("R")


'''
QUOTED = """# Names that no class can have for its fields. This can't be generic, so the resources of these may be any.
Quoted = TypedDict("Quoted", {{
{fields}
}})


"""
CLASS = "class Handlers({base}, Generic[R]):\n{fields}\n"
END = '''

@overload
def run_worker(
    application: type[Application],
    handlers: Handlers[None],
    *,
    about: str | None = None,
    variables: Collection[str] = (),
) -> int: ...
@overload
def run_worker(
    application: type[Application],
    handlers: Handlers[R],
    *,
    about: str | None = None,
    lifespan: Callable[[Settings], AbstractAsyncContextManager[R]],
    variables: Collection[str] = (),
) -> int: ...
def run_worker(
    application: type[Application],
    handlers: Handlers[Any],
    *,
    about: str | None = None,
    lifespan: Callable[[Settings], AbstractAsyncContextManager[Any]] | None = None,
    variables: Collection[str] = (),
) -> int:
    """`workqueue.run_worker`, for this application."""
    return worker.run_worker(application, cast(Any, handlers), about=about, lifespan=lifespan, variables=variables)
'''


def source(loaded: Contract, models: ModuleType) -> str | None:
    """The module's text; None for an application that receives nothing."""
    receives = sorted(loaded.receives.values(), key=lambda receive: receive.operation)
    if not receives:
        return None
    fields, quoted = [], []
    for receive in receives:
        name = receive.operation
        if name.isidentifier() and not keyword.iskeyword(name):
            fields.append(f"    {name}: {_handler(receive, models, 'R')}")
        else:
            quoted.append(f"    {name!r}: {_handler(receive, models, 'Any')},")
    base = QUOTED.format(fields="\n".join(quoted)) if quoted else ""
    handlers = CLASS.format(base="Quoted" if quoted else "TypedDict", fields="\n".join(fields) or "    pass")
    return START + base + handlers + END


def _handler(receive: Receive, models: ModuleType, resources: str) -> str:
    returned = " | ".join([*results_of(receive.message, models), "None"])
    return f"Callable[[models.{receive.message.name}, TaskContext[{resources}]], Awaitable[{returned}] | {returned}]"


def results_of(message: Message, models: ModuleType) -> list[str]:
    """The models that a result of this message's tasks may be of; `BaseModel` where that is not known of an
    alternative: one without properties, or a list."""
    of_each = result_models(message, models)
    return ["BaseModel"] if [] in of_each else sorted({f"models.{one.__name__}" for made in of_each for one in made})
