"""A task in hand: what it is, the message that brought it, the claim on it; and what all tasks of a worker share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from workqueue.contract import Contract
from workqueue.delivery import Delivery, Publisher
from workqueue.ledger import Claimed, Ledger
from workqueue.settings import Settings
from workqueue.tasks.events import Listener
from workqueue.tasks.progress import Progress
from workqueue.tasks.room import Room


class TaskLike(Protocol):
    """What the guard needs of a task: the identity that the contract gives it, and what to do."""

    id: UUID
    payload: Any


T = TypeVar("T", bound=TaskLike)


@dataclass(frozen=True)
class Runtime:
    """What the guards of one worker share.

    `tell` gets an event about each message. `fatal` gets an error that is not a handler's: the worker can't go on.
    `resources` are the lifespan's, for the handlers. `single`: no other task ever runs in this process; where one may,
    `room` says who.
    """

    worker: str
    contract: Contract
    ledger: Ledger
    publisher: Publisher
    settings: Settings
    tell: Listener
    fatal: Callable[[BaseException], None]
    resources: Any = None
    single: bool = True
    room: Room = field(default_factory=Room)


@dataclass(slots=True)
class Received(Generic[T]):
    """A task and the message that brought it. `id` and `name`, its id as text, are those that it came with: a handler
    may set its own."""

    task: T
    id: UUID
    arrived: Delivery
    kind: str
    name: str

    @property
    def told(self) -> str:
        """The task as lines of the log have it."""
        return f"{self.kind}  {self.name}"


@dataclass(slots=True)
class Attempt(Generic[T]):
    """A task that is claimed and may be tried. `failed`: the attempts that its message tells of."""

    received: Received[T]
    claim: Claimed
    failed: list[dict[str, str]]
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(self.claim.checkpoint)

    @property
    def number(self) -> int:
        """Counted from 1. The ledger knows of attempts that another copy of the message has in its headers."""
        return max(len(self.failed), self.claim.attempts) + 1

    async def save(self, ledger: Ledger) -> None:
        """Save its latest checkpoint, before the claim is given back. Raises LedgerBusy."""
        await self.progress.save(ledger, self.received.id, self.claim.fence)

    async def give_back(self, ledger: Ledger) -> None:
        """Raises LedgerBusy."""
        await self.save(ledger)
        await ledger.release(self.received.id, self.claim.fence)
