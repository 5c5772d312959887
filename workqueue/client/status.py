"""Where a task is, as the ledger knows it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from workqueue.ledger import Entry
from workqueue.tasks.policy import CONFLICT
from workqueue.tasks.story import REASONS

State = Literal["waiting", "running", "retrying", "done", "dead", "cancelled", "unknown"]


@dataclass(frozen=True)
class Status:
    """A task's state, and what belongs to it; what is None is not known, or has not happened.

    | state     | means                                                                                           |
    |-----------|-------------------------------------------------------------------------------------------------|
    | waiting   | the broker has it, and no worker: it is new, or was given back                                  |
    | running   | `worker` has had it since `since`, for its `attempt`th attempt                                  |
    | retrying  | an attempt failed, with `error`; the next one is not before `next_at`                           |
    | done      | `worker` did it by its `attempt`th attempt, at `since`                                          |
    | dead      | it is a dead letter since `since`, for `reason`, with `error`                                   |
    | cancelled | it was called off, as `error` says: no attempt at it begins any more                            |
    | unknown   | the ledger knows nothing of it: it was never sent, or not recorded, or is forgotten since       |

    `unknown` is no word for waiting: a task that is sent without being recorded is unknown until a worker takes it. The
    error of one that is dead ends with what became of its letter, once that was edited or dropped.
    """

    id: UUID
    state: State
    kind: str | None = None
    worker: str | None = None
    attempt: int = 0
    since: datetime | None = None
    next_at: datetime | None = None
    reason: str | None = None
    error: str | None = None


def status_of(task_id: UUID, entry: Entry | None, digest: bytes | None = None) -> Status:
    """The status by what the ledger knows. With the `digest` of a payload, another payload under the same id is told as
    what becomes of this one: a dead letter."""
    if entry is None:
        return Status(task_id, "unknown")
    if digest and entry.digest and digest != entry.digest:
        return Status(task_id, "dead", entry.kind, reason=CONFLICT.reason, error=CONFLICT.error)
    kind, worker = entry.kind, entry.worker or None
    if entry.state == "done":
        return Status(task_id, "done", kind, worker, entry.attempts, time_of(entry.finished_at))
    if entry.state == "dead":
        reason, error = reason_of(entry.error)
        return Status(
            task_id, "dead", kind, worker, entry.attempts, time_of(entry.finished_at), reason=reason, error=error
        )
    if entry.state == "cancelled" or (entry.cancel is not None and not entry.held):
        _, _, said = (entry.cancel or "").partition(": ")
        return Status(task_id, "cancelled", kind, worker, entry.attempts, time_of(entry.finished_at), error=said)
    if entry.held:
        return Status(
            task_id, "running", kind, worker, entry.attempts + 1, time_of(entry.claimed_at), error=entry.last_error
        )
    if entry.attempts:
        return Status(
            task_id, "retrying", kind, worker, entry.attempts, next_at=time_of(entry.next_at), error=entry.last_error
        )
    return Status(task_id, "waiting", kind, since=time_of(entry.created_at), error=entry.last_error)


def reason_of(error: str | None) -> tuple[str, str]:
    """The class of a dead task's reason, and the error in words, without the traceback below it."""
    word, _, said = (error or "").partition("\n")[0].partition(": ")
    return (word, said) if word in REASONS else ("failed", (error or "").partition("\n")[0])


def time_of(at: float | None) -> datetime | None:
    """A Unix time, as the ledger has it."""
    return None if at is None else datetime.fromtimestamp(at, UTC)
