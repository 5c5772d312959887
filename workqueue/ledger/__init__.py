"""The ledger: who is doing which task, and what became of it. Each task is done once because of it.

| state   | means                                  | who moves it on                                     |
|---------|----------------------------------------|-----------------------------------------------------|
| running | a worker has claimed it                | that worker; the next `claim`, once its lease ended |
| waiting | nobody has: sent, or between attempts  | the next `claim`, once `next_at` has passed         |
| done    | completed, with the result             | nobody; pruned when old                             |
| dead    | given up, with the error               | `revive`; pruned when old                           |
|         | or cancelled: then that is the error   | nobody; pruned when old                             |

A task that was neither recorded when it was sent nor claimed has no row. Each claim has a fence, a number that grows
with every claim on the task; whoever acts on a claim names its fence, and one that is no longer the latest changes
nothing. A claim whose lease ended may still complete as long as nobody else has claimed the task: its work was done,
and by nobody else.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from workqueue.extras import needed
from workqueue.ledger.board import Board
from workqueue.ledger.records import CANCELLED, Cancelling, Entry, Outcome, Sent
from workqueue.ledger.transaction import Rows, Transaction
from workqueue.settings import Settings

__all__ = [
    "CANCELLED", "FIRST", "Cancelling", "ClaimLost", "Claimed", "Conflict", "Crash", "Entry", "Finished", "Ledger",
    "LedgerBusy", "Outcome", "Rows", "Sent", "Taken", "Transaction", "open_ledger",
]  # fmt: skip

SCHEMA_VERSION = (1, 3)
"""Major and minor. A minor one only adds columns and tables, so that workers of the one before go on beside it; a
store of another major version is refused."""


class LedgerBusy(Exception):
    """The store can't answer now (locked, restarting, out of reach). Try again: every method may be repeated.
    `of_task`: it answers others, and somebody has this task's row locked."""

    of_task = False


class ClaimLost(Exception):
    """The claim is not the latest on its task any more: another worker has the task, or it is finished."""


@dataclass(frozen=True)
class Crash:
    """A claim that was never completed, buried or released: its worker died, or lost it. `noticed_at` is RFC 3339.
    `alone`: no other task was in that process, so that it was this one that killed it."""

    worker: str
    noticed_at: str
    alone: bool = False


@dataclass(frozen=True)
class Claimed:
    """The task is this worker's until the lease ends.

    `crashes`, the oldest first; None where nobody counts them. `noticed`: this claim has found the latest of them.
    `attempts`: those that failed, as far as the ledger knows. `checkpoint`: what the last attempt that saved one has
    left for this one, JSON.
    """

    fence: int
    crashes: tuple[Crash, ...] | None
    noticed: bool = False
    attempts: int = 0
    checkpoint: str | None = None

    @classmethod
    def read(cls, fence: int, crash_log: str, attempts: int, checkpoint: str | None = None) -> "Claimed":
        """From a store's columns. The log has a line for each crash: `noticed_at worker`, and after a tab the fence of
        the claim that ended so, and `alone`. The version before this one writes, and expects, just the former."""
        crashes, last_fence = [], ""
        for line in crash_log.splitlines():
            who, _, claim = line.partition("\t")
            noticed_at, _, worker = who.partition(" ")
            last_fence, _, alone = claim.partition(" ")
            crashes.append(Crash(worker, noticed_at, alone == "alone"))
        return cls(fence, tuple(crashes), last_fence == str(fence - 1), attempts, checkpoint)


FIRST = Claimed(fence=1, crashes=())
"""The first claim on a task, which is the answer most often."""


@dataclass(frozen=True)
class Taken:
    """Another claim on the task is alive, or its next attempt is not due, for `left_s` more seconds (unless the claim
    is renewed). `attempts`: those that failed, as far as the ledger knows. `waits`: nobody has it."""

    left_s: float
    attempts: int = 0
    waits: bool = False


@dataclass(frozen=True)
class Finished:
    """The task is done, dead or cancelled already, by the claim with this fence."""

    state: Literal["done", "dead", "cancelled"]
    fence: int


@dataclass(frozen=True)
class Conflict:
    """The id is known with another digest: it names another task."""


class Ledger(Protocol):
    """Every method is atomic and durable when it returns. It raises LedgerBusy when the store can't answer now, and
    LedgerLost when the store is no longer the one that was opened. `keeps_requests`: it knows claims by them."""

    keeps_requests: bool

    @property
    def identity(self) -> int:
        """A random number of 31 bits, at least 2, made with the store: two ledgers differ in it. 1 for none."""

    @property
    def place(self) -> str:
        """Where it is, for people: an absolute path, or a URL without its password."""

    @property
    def board(self) -> Board:
        """What lies in it beside the tasks."""

    async def check(self) -> None:
        """Whether a claim could be written: it is tried by what changes no task."""

    async def claim(
        self, task_id: UUID, worker: str, lease_s: float, *, kind: str, digest: bytes, alone: bool,
        request: UUID | None = None, adopts: UUID | None = None,
    ) -> Claimed | Taken | Finished | Conflict:  # fmt: skip
        """Claim the task, if nobody has a claim that is alive, its next attempt is due, and it is not finished.

        `digest` is that of the payload, kept from the first claim on; empty where it is not known. `alone` says that
        no other task is in this process, see `Crash`. `request` is the number of the wish: who repeats it after
        LedgerBusy gives the same, so that a claim that was made, and whose answer got lost, is found to be its own.
        A claim that was made for the wish `adopts`, whose answer somebody else did not get, becomes this wish's."""

    async def renew(self, task_id: UUID, fence: int, lease_s: float, *, alone: bool | None = None) -> bool:
        """Let the lease end `lease_s` from now; say anew whether the task is alone, unless None. False: the claim is
        not the latest any more."""

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        """`renew` for any thread, on a connection of its own, while the event loop is blocked."""

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        """The task is done, by its `attempts`th attempt, or was already, by this claim. False: the claim was lost, and
        nothing was changed."""

    def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AbstractAsyncContextManager[Transaction]:
        """A transaction in which the task is completed, and with it whatever the block writes: both, or neither when
        it raises. Raises ClaimLost before the block when the claim was lost, LedgerBusy when the store could not be
        had for a minute, or was lost in the middle, and the store's own error when the commit fails."""

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str, *, failed: str = "") -> bool:
        """The task is dead. `failed` as in `release`. False: the claim was lost, and nothing was changed."""

    async def release(
        self, task_id: UUID, fence: int, *, attempts: int | None = None, error: str | None = None, failed: str = "",
        next_s: float = 0.0,
    ) -> bool:  # fmt: skip
        """Give the claim back; the task waits for the next one, which is granted after `next_s` at the earliest.
        `attempts` and `error` say what failed, unless None; `failed` tells that attempt, and is added to the task's
        `story`. False: the claim was lost already."""

    async def revive(self, task_id: UUID, fence: int, *, told: str = "") -> bool:
        """A task that was buried by the claim with this fence waits again, its attempts and crashes counted anew;
        `told` is added to its story. False: it is not dead, or by another claim. So it happens once for each burial."""

    async def tell(self, task_id: UUID, fence: int, said: str, told: str) -> bool:
        """What becomes of its letter: `said` is added to the first line of the error of a task that was buried by the
        claim with this fence, `told` to its story. False: as `revive`, or that was said already."""

    async def save(self, task_id: UUID, fence: int, checkpoint: str) -> bool:
        """Keep this for the next attempt. False: the claim was lost."""

    async def cancel(self, task_id: UUID, told: str) -> Cancelling:
        """Let the task not be run any more, nor once its present attempt has failed. `told`: by whom, and why; what was
        told first stays. A task of which nothing is known is cancelled, too, should it come."""

    async def to_cancel(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Those of these tasks that run and are to be cancelled, with the error to bury them with."""

    async def record(self, sent: Sequence[Sent]) -> None:
        """The tasks were sent: they wait. What is known of one already stays as it is."""

    async def entry(self, task_id: UUID) -> Entry | None:
        """What is known of this task; None: nothing."""

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        """Those of these tasks that are finished, in no order."""

    async def forget(self, task_id: UUID) -> bool:
        """Forget a task that is finished. False: it is not, or nothing is known of it."""

    async def prune(self, older_than_s: float) -> int:
        """Forget tasks that finished, or were last claimed, longer ago than this. The number forgotten."""

    async def close(self) -> None: ...


async def open_ledger(settings: Settings) -> Ledger:
    """The ledger of LEDGER_URL. Raises LedgerUnreachable, LedgerClosed, ExtraMissing."""
    # A store is loaded only by those who use it.
    if settings.ledger_url == "none":
        from workqueue.ledger.none import NoLedger

        return NoLedger()
    if settings.ledger_url.startswith("postgresql:"):
        with needed("LEDGER_URL=postgresql:"):
            from workqueue.ledger.postgres import PostgresLedger

        return await PostgresLedger(settings.ledger_url).set_up()
    from workqueue.ledger.sqlite import SqliteLedger

    return SqliteLedger(settings.ledger_url.removeprefix("sqlite:"))
