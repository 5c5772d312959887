"""What this application sends, and what comes back. Built by `make generate`; never edited."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload
from uuid import UUID

from workqueue import Settings, client
from workqueue.client import blocking
from workqueue.client.blocking import SyncHandle
from workqueue.client.results import Handle

from .application import Application
from .messages import json as models


SubmitTaskInput = models.Task | models.Checksum | models.Simulate
SubmitTaskResult = models.ChecksumResult | models.SimulateResult | None


class Client(client.Client):
    """`workqueue.Client`, for this application."""

    if TYPE_CHECKING:

        def __init__(
            self,
            application: type[Application],
            *,
            settings: Settings | None = None,
            wait_s: float = 0.0,
            name: str | None = None,
        ) -> None: ...
        async def send(  # type: ignore[override]
            self,
            task: SubmitTaskInput,
            *,
            to: Literal['submit_task'] | None = None,
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> Handle[SubmitTaskResult]: ...
        async def send_many(  # type: ignore[override]
            self, tasks: Iterable[SubmitTaskInput], *, to: Literal['submit_task'] | None = None, within_s: float | None = None
        ) -> list[Handle[SubmitTaskResult]]: ...
        async def result(  # type: ignore[override]
            self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None
        ) -> SubmitTaskResult: ...


class SyncClient(blocking.SyncClient):
    """`workqueue.SyncClient`, for this application."""

    if TYPE_CHECKING:

        def __init__(
            self,
            application: type[Application],
            *,
            settings: Settings | None = None,
            wait_s: float = 0.0,
            name: str | None = None,
        ) -> None: ...
        def send(  # type: ignore[override]
            self,
            task: SubmitTaskInput,
            *,
            to: Literal['submit_task'] | None = None,
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> SyncHandle[SubmitTaskResult]: ...
        def send_many(  # type: ignore[override]
            self, tasks: Iterable[SubmitTaskInput], *, to: Literal['submit_task'] | None = None, within_s: float | None = None
        ) -> list[SyncHandle[SubmitTaskResult]]: ...
        def result(  # type: ignore[override]
            self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None
        ) -> SubmitTaskResult: ...
