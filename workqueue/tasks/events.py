"""What happens in a worker, as values. Its log is one rendering of them; metrics and tests are others.

| what becomes of a message                                        | event      |
|------------------------------------------------------------------|------------|
| an attempt begins (told if WORKQUEUE_LOG is debug, or for spans) | Started    |
| its handler has run for a while, and goes on                     | Running    |
| the task is done                                                 | Done       |
| the attempt failed, and another one follows                      | Retrying   |
| it is a dead letter                                              | Dead       |
| it was called off while it ran                                   | Cancelled  |
| it was done, dead or cancelled before                            | Skipped    |
| it comes later, and no attempt was counted                       | Delayed    |
| the claim ran out while the handler ran                          | LostClaim  |
| it is a task again at once: the worker ends, or can't claim      | HandedBack |

Each but the first two says that the message was settled: it was acked, after what it says was confirmed or recorded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from workqueue.tasks.policy import Because, Reason

Trace = tuple[str, ...]
"""The lines of a traceback."""


@dataclass(frozen=True, slots=True)
class Started:
    attempt: int


@dataclass(frozen=True, slots=True)
class Running:
    """For `took_s` by now."""


@dataclass(frozen=True, slots=True)
class Done:
    attempt: int


@dataclass(frozen=True, slots=True)
class Retrying:
    """The `attempt`th attempt failed with `error`; the next one is `again_s` from now. `cause` as in `Dead`."""

    attempt: int
    again_s: float
    error: str
    trace: Trace = ()
    cause: Exception | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Dead:
    """It lies in `queue`. `cause` is what the last attempt failed with, for those who listen in Python; None where the
    handler did not run."""

    reason: Reason
    error: str
    queue: str
    trace: Trace = ()
    cause: Exception | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """`told`: by whom, and why."""

    told: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """`buried`: it was made a dead letter again, since this may be the last copy of it."""

    state: Literal["done", "dead", "cancelled"]
    buried: bool = False


@dataclass(frozen=True, slots=True)
class Delayed:
    """`count` is of what `why` speaks: deaths of workers, deliveries, returns from the dead letters."""

    why: Because
    again_s: float
    count: int = 0


@dataclass(frozen=True, slots=True)
class LostClaim:
    again_s: float


@dataclass(frozen=True, slots=True)
class HandedBack:
    pass


What = Started | Running | Done | Retrying | Dead | Cancelled | Skipped | Delayed | LostClaim | HandedBack


def is_run(what: What) -> bool:
    """Whether it is what a run of a handler came to. One that is handed back may have run, or not."""
    return isinstance(what, Done | Retrying | Cancelled | LostClaim) or (
        isinstance(what, Dead) and what.reason in ("failed", "gave-up")
    )


class Event(NamedTuple):
    """What became of a message. `kind` and `id` are the task's; of what is no task, `message` and the sender's id of
    the message, if it has one. `took_s` is since it was delivered. `span` has the ids of its trace and span, in hex,
    where it is traced."""

    worker: str
    operation: str
    kind: str
    id: str
    took_s: float
    what: What
    span: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """It takes tasks: so many at a time from each of these queues."""

    worker: str
    queues: Mapping[str, int]
    ledger: str


@dataclass(frozen=True, slots=True)
class Paused:
    """It takes no more tasks from this queue, by an operator's order."""

    worker: str
    queue: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """It takes tasks from this queue again."""

    worker: str
    queue: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """It takes no more tasks, and finishes those in hand."""

    worker: str
    in_hand: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """How many messages it has settled, and how many of them went back undone."""

    worker: str
    finished: int
    handed_back: int


OfWorker = Ready | Paused | Resumed | Stopping | Stopped
Told = Event | OfWorker
Listener = Callable[[Told], object]
