"""The tasks of a ledger, listed by their state."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from workqueue.client.asking import asked
from workqueue.client.status import reason_of, time_of
from workqueue.ledger import Ledger, board


class State(StrEnum):
    """In which a task is. One that waits for its next attempt waits, too."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Task:
    """See `ledger.board.Task` for the times and for `worker`. `attempts`: those that failed, and with one that is done
    the last, too. `reason` and `error` are those of one that is dead; of one that was cancelled, `error` has by whom
    and why. What is None is not known, or has not happened."""

    id: UUID
    kind: str | None
    state: State
    attempts: int
    since: datetime | None
    worker: str | None
    next_at: datetime | None
    reason: str | None
    error: str | None


async def tasks(
    ledger: Ledger, state: State, at_most: int, *, kind: str | None = None, older_than_s: float | None = None
) -> list[Task]:
    """Those in this state, of this kind and for longer than this, unless None; the oldest first. Raises
    LedgerUnreachable."""
    found = await asked(ledger, lambda: ledger.board.tasks(state.value, at_most, kind=kind, older_than_s=older_than_s))
    return [_task(one, state) for one in found]


def _task(one: board.Task, state: State) -> Task:
    reason, error = None, None
    if state is State.DEAD:
        reason, error = reason_of(one.error)
    elif state is State.CANCELLED:
        error = (one.error or "").partition(": ")[2]
    return Task(
        one.id, one.kind, state, one.attempts, time_of(one.since), one.worker or None, time_of(one.next_at), reason,
        error,
    )  # fmt: skip
