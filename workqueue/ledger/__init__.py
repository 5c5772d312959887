"""The ledger: who is doing which task, and what became of it. Each task is done once because of it.

| state   | means                            | who moves it on                                     |
|---------|----------------------------------|-----------------------------------------------------|
| running | a worker has claimed it          | that worker; the next `claim`, once its lease ended |
| waiting | nobody has: between two attempts | the next `claim`                                    |
| done    | completed, with the result       | nobody; pruned when old                             |
| dead    | given up, with the error         | nobody; pruned when old                             |

A task that was never claimed has no row. Each claim has a fence, a number that grows with every claim on the task;
whoever acts on a claim names its fence, and one that is no longer the latest changes nothing. A claim whose lease
ended may still complete as long as nobody else has claimed the task: its work was done, and by nobody else.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import UUID

from workqueue.settings import Settings


class LedgerBusy(Exception):
    """The store can't answer now (locked, restarting). Nothing was changed; try again."""


class ClaimLost(Exception):
    """The claim is not the latest on its task any more: another worker has the task, or it is finished."""


@dataclass(frozen=True)
class Claimed:
    """The task is this worker's until the lease ends. `crashes` are the claims on it that ended without a word, the
    oldest first; None where nobody counts them."""

    fence: int
    crashes: tuple["Crash", ...] | None


@dataclass(frozen=True)
class Crash:
    """A claim whose worker died, or lost it: who had it, and when that was noticed (RFC 3339)."""

    worker: str
    noticed_at: str

    @staticmethod
    def read(log: str) -> tuple["Crash", ...]:
        """From a store's column: a line for each, `noticed_at worker`."""
        return tuple(Crash(worker, at) for at, worker in (line.split(" ", 1) for line in log.splitlines()))


@dataclass(frozen=True)
class Taken:
    """Another claim on the task is alive for `left_s` more seconds, unless it is renewed."""

    left_s: float


@dataclass(frozen=True)
class Finished:
    """The task is done or dead already."""

    state: Literal["done", "dead"]


@dataclass(frozen=True)
class Outcome:
    """What became of a task. `result` is JSON by the contract's result schema; `finished_at` Unix time."""

    id: UUID
    state: Literal["done", "dead"]
    worker: str
    attempts: int
    result: str | None
    error: str | None
    finished_at: float


class Ledger(Protocol):
    """Every method is atomic and durable when it returns, and raises LedgerBusy when the store can't answer now."""

    async def claim(self, task_id: UUID, worker: str, lease_s: float) -> Claimed | Taken | Finished:
        """Claim the task, if nobody has a claim that is alive and it is not finished."""

    async def renew(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        """Let the lease end `lease_s` from now. False: the claim is not the latest any more."""

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        """`renew` for any thread, on a connection of its own, while the event loop is blocked."""

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        """The task is done, by its `attempts`th attempt. False: the claim was lost, and nothing was changed."""

    def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AbstractAsyncContextManager[Any]:
        """A transaction in which the task is completed, and with it whatever the block writes: both, or neither when
        it raises. Gives the store's connection (sqlite3.Connection, psycopg.AsyncConnection). Raises ClaimLost before
        the block when the claim was lost, and the store's own error when the commit fails.
        """

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str) -> bool:
        """The task is dead. False: the claim was lost, and nothing was changed."""

    async def release(self, task_id: UUID, fence: int) -> bool:
        """Give the claim back; the task waits for the next one. False: it was lost already."""

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        """Those of these tasks that are finished, in no order."""

    async def prune(self, older_than_s: float) -> int:
        """Forget tasks that finished, or were last claimed, longer ago than this. The number forgotten."""

    async def close(self) -> None: ...


async def open_ledger(settings: Settings) -> Ledger:
    """The ledger of LEDGER_URL. Raises LedgerUnreachable."""
    # A store is loaded only by those who use it.
    if settings.ledger_url == "none":
        from workqueue.ledger.none import NoLedger

        return NoLedger()
    if settings.ledger_url.startswith("postgresql:"):
        from workqueue.ledger.postgres import PostgresLedger

        return await PostgresLedger(settings.ledger_url).set_up()
    from workqueue.ledger.sqlite import SqliteLedger

    return SqliteLedger(settings.ledger_url.removeprefix("sqlite:"))
