"""The types of an application's handlers, as a module beside the generated ones.

`run_worker` of it is the package's own, for a type checker to hold to the contract: a handler that is missing, or one
too many, or that takes or returns something else, is an error where the script calls it.
"""

import keyword
from types import ModuleType

from workqueue.codec.results import result_models
from workqueue.contract import Contract, Message

MODULE = "handlers.py"
START = '''"""What the handler of each receive operation takes and returns. Built by `make generate`; never edited."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypedDict, TypeVar, cast

from pydantic import BaseModel
from workqueue import Settings, TaskContext, worker

from .application import Application
from .messages import json as models

R = TypeVar("R")


'''
GENERIC = "class Handlers(TypedDict, Generic[R]):\n{fields}\n"
PLAIN = 'Handlers = TypedDict("Handlers", {{\n{fields}\n}})\n'
END = '''

def run_worker(
    application: type[Application],
    handlers: {handlers},
    *,
    about: str | None = None,
    lifespan: Callable[[Settings], AbstractAsyncContextManager[{resources}]] | None = None,
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
    named = all(receive.operation.isidentifier() and not keyword.iskeyword(receive.operation) for receive in receives)
    resources, fields = "R" if named else "Any", []
    for receive in receives:
        returned = " | ".join([*results_of(receive.message, models), "None"])
        task = f"models.{receive.message.name}"
        handler = f"Callable[[{task}, TaskContext[{resources}]], Awaitable[{returned}] | {returned}]"
        fields.append(f"    {receive.operation}: {handler}" if named else f"    {receive.operation!r}: {handler},")
    made = (GENERIC if named else PLAIN).format(fields="\n".join(fields))
    end = END.format(handlers="Handlers[R]" if named else "Handlers", resources=resources)
    return START + made + end


def results_of(message: Message, models: ModuleType) -> list[str]:
    """The models that a result of this message's tasks may be of; `BaseModel` where that is not known of an
    alternative: one without properties, or a list."""
    of_each = result_models(message, models)
    return ["BaseModel"] if [] in of_each else sorted({f"models.{one.__name__}" for made in of_each for one in made})
