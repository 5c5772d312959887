"""The runtime of the work queue: it makes the words of the contract true. These are its public names.

A worker: `run_worker`, `TaskContext`, `in_thread`; a handler may raise `GiveUp` and `RetryAfter`. A producer:
`run_producer`, `lines`, `envelope`. An application that sends: `Client` and its `Handle`, `SyncClient` and its
`SyncHandle`, `Status`. Failures are `WorkQueueError`, see `errors`. Each is loaded when it is first used.

Imports inside point one way: docs/reading.md has the rooms, the import contract in pyproject.toml holds it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workqueue.client import Client
    from workqueue.client.blocking import SyncClient, SyncHandle
    from workqueue.client.results import Handle
    from workqueue.client.sending import envelope
    from workqueue.client.status import Status
    from workqueue.errors import (
        BrokerUnreachable,
        IdInvalid,
        LedgerUnreachable,
        NoBroker,
        NotAllSent,
        NotSent,
        ResultInvalid,
        SendUnknown,
        TaskCancelled,
        TaskDead,
        TaskInvalid,
        TaskUnfinished,
        ThreadsMissing,
        WorkQueueError,
    )
    from workqueue.producer import run_producer
    from workqueue.producer.source import lines
    from workqueue.settings import Settings
    from workqueue.tasks.context import TaskContext
    from workqueue.tasks.threads import Interrupted, in_thread
    from workqueue.verdicts import GiveUp, RetryAfter
    from workqueue.worker import run_worker

HOMES = {
    "BrokerUnreachable": "errors",
    "Client": "client",
    "GiveUp": "verdicts",
    "Handle": "client.results",
    "IdInvalid": "errors",
    "Interrupted": "tasks.threads",
    "LedgerUnreachable": "errors",
    "NoBroker": "errors",
    "NotAllSent": "errors",
    "NotSent": "errors",
    "ResultInvalid": "errors",
    "RetryAfter": "verdicts",
    "SendUnknown": "errors",
    "Settings": "settings",
    "Status": "client.status",
    "SyncClient": "client.blocking",
    "SyncHandle": "client.blocking",
    "TaskContext": "tasks.context",
    "TaskCancelled": "errors",
    "TaskDead": "errors",
    "TaskInvalid": "errors",
    "TaskUnfinished": "errors",
    "ThreadsMissing": "errors",
    "WorkQueueError": "errors",
    "envelope": "client.sending",
    "in_thread": "tasks.threads",
    "lines": "producer.source",
    "run_producer": "producer",
    "run_worker": "worker",
}

__all__ = [
    "BrokerUnreachable",
    "Client",
    "GiveUp",
    "Handle",
    "IdInvalid",
    "Interrupted",
    "LedgerUnreachable",
    "NoBroker",
    "NotAllSent",
    "NotSent",
    "ResultInvalid",
    "RetryAfter",
    "SendUnknown",
    "Settings",
    "Status",
    "SyncClient",
    "SyncHandle",
    "TaskCancelled",
    "TaskContext",
    "TaskDead",
    "TaskInvalid",
    "TaskUnfinished",
    "ThreadsMissing",
    "WorkQueueError",
    "envelope",
    "in_thread",
    "lines",
    "run_producer",
    "run_worker",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
