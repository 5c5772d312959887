"""No ledger: every claim is granted, nothing is remembered. A task that is delivered twice then runs twice."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from workqueue.ledger import (
    Cancelling,
    Claimed,
    Conflict,
    Entry,
    Finished,
    LedgerBusy,
    Outcome,
    Sent,
    Taken,
    Transaction,
)
from workqueue.ledger.board import NoBoard, Pause, Seen
from workqueue.settings import hide_password

GRANTED = Claimed(fence=0, crashes=None)


class NoLedger:
    """See `Ledger`."""

    identity = 1
    place = "none"
    keeps_requests = False
    board = NoBoard()

    async def check(self) -> None:
        pass

    async def claim(
        self, task_id: UUID, worker: str, lease_s: float, *, kind: str, digest: bytes, alone: bool,
        request: UUID | None = None, adopts: UUID | None = None,
    ) -> Claimed | Taken | Finished | Conflict:  # fmt: skip
        return GRANTED

    async def renew(self, task_id: UUID, fence: int, lease_s: float, *, alone: bool | None = None) -> bool:
        return True

    def renew_blocking(self, task_id: UUID, fence: int, lease_s: float) -> bool:
        return True

    async def complete(self, task_id: UUID, fence: int, attempts: int, result: str | None) -> bool:
        return True

    @asynccontextmanager
    async def completion(
        self, task_id: UUID, fence: int, attempts: int, result: str | None
    ) -> AsyncIterator[Transaction]:
        raise RuntimeError("an effect can be one with its completion only where there is a ledger; set LEDGER_URL")
        yield

    async def bury(self, task_id: UUID, fence: int, attempts: int, error: str, *, failed: str = "") -> bool:
        return True

    async def release(
        self,
        task_id: UUID,
        fence: int,
        *,
        attempts: int | None = None,
        error: str | None = None,
        failed: str = "",
        next_s: float = 0.0,
    ) -> bool:
        return True

    async def revive(self, task_id: UUID, fence: int, *, told: str = "") -> bool:
        return False

    async def tell(self, task_id: UUID, fence: int, said: str, told: str) -> bool:
        return False

    async def save(self, task_id: UUID, fence: int, checkpoint: str) -> bool:
        return True

    async def cancel(self, task_id: UUID, told: str) -> Cancelling:
        raise RuntimeError("nothing is known of a task, and nothing can be kept, without a ledger; set LEDGER_URL")

    async def to_cancel(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        return {}

    async def record(self, sent: Sequence[Sent]) -> None:
        pass

    async def entry(self, task_id: UUID) -> Entry | None:
        return None

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        return []

    async def forget(self, task_id: UUID) -> bool:
        return False

    async def prune(self, older_than_s: float) -> int:
        return 0

    async def close(self) -> None:
        pass


class AbsentLedger(NoLedger):
    """Stands for one that is not there: whoever works has another one."""

    identity = 0

    def __init__(self, url: str) -> None:
        self.place = f"{hide_password(url)}, which is not there: put it back if it was moved"


class SilentLedger(NoLedger):
    """Stands for one that is out of reach, where somebody looks at what else there is: what lies in it is not known."""

    def __init__(self, place: str, cause: str) -> None:
        self.place, self.board, self._cause = place, SilentBoard(cause), cause

    async def check(self) -> None:
        raise LedgerBusy(self._cause)


class SilentBoard(NoBoard):
    def __init__(self, cause: str) -> None:
        self._cause = cause

    async def seen(self, within_s: float) -> list[Seen]:
        raise LedgerBusy(self._cause)

    async def pauses(self) -> list[Pause]:
        raise LedgerBusy(self._cause)
