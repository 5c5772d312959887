"""What a ledger knows of a task, for those who don't work on it: who sends it, asks for it, or calls it off."""

from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

CANCELLED = "cancelled"
"""With which the error of a task that was cancelled begins."""
Cancelling = Literal["cancelled", "asked", "done", "dead"]
"""What a cancellation comes to: it will not run any more; it runs, and its worker is asked to stop it; it was done, or
dead, before."""


class Sent(NamedTuple):
    """A task that was sent. `digest` names its payload, see `codec.digest`."""

    id: UUID
    kind: str
    digest: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a task. `result` is JSON by the contract's result schema; `finished_at` Unix time. `last_error` is
    that of the last attempt that failed and was followed by another. `digest` names the payload, see `codec.digest`;
    None if it was finished by a version that kept none."""

    id: UUID
    state: Literal["done", "dead", "cancelled"]
    worker: str
    attempts: int
    result: str | None
    error: str | None
    finished_at: float
    kind: str | None = None
    last_error: str | None = None
    digest: bytes | None = None


@dataclass(frozen=True)
class Entry:
    """All that is known of one task. Times are Unix times by the store's clock; what is None has not happened.

    `worker` and `claimed_at` are those of the latest claim; `held`: it is alive. `attempts`: those that failed, and
    with one that is done the last, too. `next_at`: no claim is granted before.
    """

    id: UUID
    state: Literal["waiting", "running", "done", "dead", "cancelled"]
    kind: str | None
    digest: bytes | None
    worker: str
    held: bool
    attempts: int
    created_at: float | None
    claimed_at: float | None
    next_at: float | None
    finished_at: float | None
    result: str | None
    error: str | None
    last_error: str | None
    story: str | None = None
    """Its attempts that failed, its returns from the dead and what else became of its dead letters, the oldest first, a
    line for each, as it was told."""
    crashes: str = ""
    """A line for each claim of this burial that ended with its worker, as `Claimed.read` has it."""
    cancel: str | None = None
    """That it is to be cancelled, by whom and why: `cancelled: ...`. No claim on it is granted any more."""
