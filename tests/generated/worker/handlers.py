"""What the handler of each receive operation takes and returns. Built by `make generate`; never edited."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypedDict, TypeVar, cast, overload

from pydantic import BaseModel
from workqueue import Settings, TaskContext, worker

from .application import Application
from .messages import json as models

R = TypeVar("R")


class Handlers(TypedDict, Generic[R]):
    do_chore: Callable[[models.Task, TaskContext[R]], Awaitable[models.DigestResult | models.NapResult | models.OddResult | models.ParcelResult | None] | models.DigestResult | models.NapResult | models.OddResult | models.ParcelResult | None]
    do_errand: Callable[[models.Task, TaskContext[R]], Awaitable[models.DigestResult | models.NapResult | models.OddResult | models.ParcelResult | None] | models.DigestResult | models.NapResult | models.OddResult | models.ParcelResult | None]


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
