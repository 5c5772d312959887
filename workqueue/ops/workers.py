"""The workers: what each tells of itself, and has in hand."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.board import GONE_S, RECENT_S, Seen
from workqueue.ops.project import Project

STARTING_S = 10.0


@dataclass(frozen=True)
class InHand:
    """A task that a worker runs. `progress`, from 0 to 1, and `text` are what its handler says of it."""

    id: str
    kind: str
    operation: str
    attempt: int
    since: datetime
    progress: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Work:
    """What a worker does for one queue, counted since its start; `rate` is tasks done per second, over the last
    minute. `paused`: it takes nothing from it, as an operator has asked. `waiting`: so many messages wait in it while a
    task runs alone, one that may be what killed workers. `settling`: so many it claims just now, or settles."""

    concurrency: int
    rate: float
    done: int
    failed: int
    dead: int
    handed_back: int
    paused: bool = False
    waiting: int = 0
    settling: int = 0


@dataclass(frozen=True)
class Worker:
    """A worker that was heard of `seen_s` seconds ago. `ahead_s` is its clock's, of this machine's.

    `waiting`: it can take tasks from none of its queues; `why` says what for, and also what keeps one that is `working`
    or `paused` from some tasks. `paused`: an operator has paused all its queues.
    `gone`: it died, or can't reach the ledger, and has in hand what nobody else has taken since. `silent`: it can't
    tell the ledger of itself, and the broker has its consumers; what is known of it is as old as its last word.
    """

    name: str
    host: str
    pid: int
    state: Literal["starting", "working", "waiting", "paused", "stopping", "silent", "gone"]
    seen_s: float
    ahead_s: float
    started_at: datetime
    version: str
    contract: str
    digest: str
    queues: Mapping[str, Work]
    in_hand: tuple[InHand, ...]
    why: str = ""

    def held(self, queue: str, operation: str) -> int:
        """How many messages of the queue, and so of this operation, it has: those that it runs, and all others."""
        work = self.queues[queue]
        return sum(one.operation == operation for one in self.in_hand) + work.waiting + work.settling

    def is_replaced_by(self, other: "Worker") -> bool:
        """By the clock of their host, whichever of them this machine's is."""
        heard_at = time.time() - self.seen_s + self.ahead_s
        is_namesake = other is not self and (self.name, self.host) == (other.name, other.host)
        return is_namesake and other.started_at.timestamp() > heard_at

    @property
    def is_heard(self) -> bool:
        """Whether it has told of itself of late."""
        return self.state not in ("silent", "gone")

    @property
    def amiss(self) -> str:
        """What should not be so with one that is there, in words that follow its host; empty for nothing. A start takes
        a moment."""
        took_s = (datetime.now(UTC) - self.started_at).total_seconds() + self.ahead_s
        if self.state == "waiting" or (self.state == "starting" and took_s > STARTING_S):
            return f" takes no tasks: {self.why}"
        return f": {self.why}" if self.state in ("working", "paused") and self.why else ""

    @property
    def all_held(self) -> int:
        return len(self.in_hand) + sum(work.waiting + work.settling for work in self.queues.values())


async def workers(ledger: Ledger, gone_s: float = GONE_S) -> list[Worker]:
    """Those that were heard of within an hour, by name, but not one since whose last word another of its name has begun
    on its host: that has taken its place. One that is gone has in hand what nobody else has taken. Raises
    LedgerUnreachable."""
    try:
        found = [_worker(seen, gone_s) for seen in await ledger.board.seen(RECENT_S)]
        here = [worker for worker in found if not any(worker.is_replaced_by(other) for other in found)]
        return [await _as_left(ledger, worker) if worker.state == "gone" else worker for worker in here]
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error


def with_silent(found: list[Worker], consumers: Mapping[str, int]) -> list[Worker]:
    """Those that were heard of, where `consumers` are what the broker has on each queue. None that has told of itself
    of late, and as many consumers as they had: they can't tell, and have not died. Those that were heard of last are
    counted first."""
    if any(worker.state != "gone" for worker in found):
        return found
    left, silent = dict(consumers), list[Worker]()
    for worker in sorted(found, key=lambda one: one.seen_s):
        here = {name: work for name, work in worker.queues.items() if name in left and not work.paused}
        if here and all(left[name] >= work.concurrency for name, work in here.items()):
            left |= {name: left[name] - work.concurrency for name, work in here.items()}
            silent.append(worker)
    return [replace(worker, state="silent") if worker in silent else worker for worker in found]


async def heard_of(ledger: Ledger, name: str) -> list[Worker]:
    """The workers of this name that told of themselves within `GONE_S`. Raises LedgerBusy."""
    return [_worker(seen, GONE_S) for seen in await ledger.board.seen(GONE_S) if seen.name == name]


def in_hand(heard: Iterable[Worker], task_id: UUID, attempt: int) -> InHand | None:
    """This attempt at a task, as one of them has told of it."""
    asked = (str(task_id), attempt)
    return next((one for each in heard for one in each.in_hand if (one.id, one.attempt) == asked), None)


def why_held_up(heard: Iterable[Worker]) -> str:
    """What keeps them from tasks; empty where nothing does, or they are not there."""
    return next((one.why for one in heard if one.state in ("waiting", "working", "paused") and one.why), "")


async def _as_left(ledger: Ledger, worker: Worker) -> Worker:
    left = []
    for one in worker.in_hand:
        entry = await ledger.entry(UUID(one.id))
        if entry is None or entry.cancel is not None:
            continue
        if entry.state == "running" and entry.worker == worker.name:
            left.append(one)
    return replace(worker, in_hand=tuple(left))


def _worker(seen: Seen, gone_s: float) -> Worker:
    told: dict[str, Any] = json.loads(seen.told)
    gone = seen.seen_s > gone_s
    return Worker(
        name=seen.name,
        host=told["host"],
        pid=told["pid"],
        state="gone" if gone else told["state"],
        seen_s=round(seen.seen_s, 1),
        ahead_s=round(told["at"] - (time.time() - seen.seen_s), 1),
        started_at=datetime.fromtimestamp(told["started_at"], UTC),
        version=told["version"],
        contract=told["contract"]["version"],
        digest=told["contract"]["digest"],
        queues={name: Work(**_known(work)) for name, work in told["queues"].items()},
        in_hand=tuple(
            InHand(
                one["id"], one["kind"], one["operation"], one["attempt"], datetime.fromtimestamp(one["since"], UTC),
                one.get("progress"), one.get("text", ""),
            )
            for one in told["in_hand"]
        ),
        why=told.get("why", "its broker, or a queue, is not there" if told["state"] == "waiting" else ""),
    )  # fmt: skip


def _known(work: Mapping[str, Any]) -> dict[str, Any]:
    """A later version may tell more, and an earlier one less."""
    return {name: work[name] for name in Work.__dataclass_fields__ if name in work}


def contract_differs(project: Project, worker: Worker) -> str | None:
    """That a worker which is there works by another contract than the project's folder has, in words."""
    for name in worker.queues:
        ours = project.digests.get(name, worker.digest)
        if ours != worker.digest and worker.state != "gone":
            theirs = f"{worker.contract}, {worker.digest}"
            return f"{worker.name} works by another contract ({theirs}) than this folder has ({ours})"
    return None
