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


SendChoreInput = models.Task | models.Nap | models.Digest | models.Parcel | models.Odd | models.Deadly
SendChoreResult = models.DigestResult | models.NapResult | models.OddResult | models.ParcelResult | None
SendErrandInput = models.Task | models.Nap | models.Digest | models.Parcel | models.Odd | models.Deadly
SendErrandResult = models.DigestResult | models.NapResult | models.OddResult | models.ParcelResult | None


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
        @overload
        async def send(  # type: ignore[override]
            self,
            task: SendChoreInput,
            *,
            to: Literal['send_chore'],
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> Handle[SendChoreResult]: ...
        @overload
        async def send(
            self,
            task: SendErrandInput,
            *,
            to: Literal['send_errand'],
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> Handle[SendErrandResult]: ...
        @overload
        async def send_many(  # type: ignore[override]
            self, tasks: Iterable[SendChoreInput], *, to: Literal['send_chore'], within_s: float | None = None
        ) -> list[Handle[SendChoreResult]]: ...
        @overload
        async def send_many(
            self, tasks: Iterable[SendErrandInput], *, to: Literal['send_errand'], within_s: float | None = None
        ) -> list[Handle[SendErrandResult]]: ...
        async def result(  # type: ignore[override]
            self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None
        ) -> SendChoreResult | SendErrandResult: ...


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
        @overload
        def send(  # type: ignore[override]
            self,
            task: SendChoreInput,
            *,
            to: Literal['send_chore'],
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> SyncHandle[SendChoreResult]: ...
        @overload
        def send(
            self,
            task: SendErrandInput,
            *,
            to: Literal['send_errand'],
            id: UUID | str | None = None,
            key: str | None = None,
            within_s: float | None = None,
            record: bool = True,
        ) -> SyncHandle[SendErrandResult]: ...
        @overload
        def send_many(  # type: ignore[override]
            self, tasks: Iterable[SendChoreInput], *, to: Literal['send_chore'], within_s: float | None = None
        ) -> list[SyncHandle[SendChoreResult]]: ...
        @overload
        def send_many(
            self, tasks: Iterable[SendErrandInput], *, to: Literal['send_errand'], within_s: float | None = None
        ) -> list[SyncHandle[SendErrandResult]]: ...
        def result(  # type: ignore[override]
            self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None
        ) -> SendChoreResult | SendErrandResult: ...
