"""What waits, who works, and what each has in hand."""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from workqueue.amqp.lane import Depth
from workqueue.amqp.look import look
from workqueue.contract import Receive, Send
from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.board import GONE_S, RECENT_S, Seen
from workqueue.ledger.none import NoLedger
from workqueue.ops.deaths import Deaths, by_reason
from workqueue.ops.project import Project, same_ledger
from workqueue.settings import hide_password


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
    minute. `paused`: it takes nothing from it, as an operator has asked."""

    concurrency: int
    rate: float
    done: int
    failed: int
    dead: int
    handed_back: int
    paused: bool = False


@dataclass(frozen=True)
class Worker:
    """A worker that was heard of `seen_s` seconds ago. `ahead_s` is its clock's, of this machine's.

    `waiting`: for its broker, or for a queue. `paused`: an operator has paused all its queues. `gone`: it died, or
    can't reach the ledger, and has in hand what nobody else has taken since.
    """

    name: str
    host: str
    pid: int
    state: Literal["working", "waiting", "paused", "stopping", "gone"]
    seen_s: float
    ahead_s: float
    started_at: datetime
    version: str
    contract: str
    digest: str
    queues: Mapping[str, Work]
    in_hand: tuple[InHand, ...]


@dataclass(frozen=True)
class Pause:
    """Nobody takes tasks from a queue, by whose order and why."""

    since: datetime
    by: str
    why: str


@dataclass(frozen=True)
class Queue:
    """A queue of tasks. A number that is None is not known: the queue does not exist, or nobody tells.

    `ready` is what waits for a worker; `delayed` what waits for its next attempt, by delay in seconds; `dead` what lies
    in `dead_queue`; `consumers` what the broker sees, `in_hand` and `rate` (tasks per second) what `workers` tell.
    `backlog_s`: when all that is ready will be done, at this rate.
    """

    queue: str
    ready: int | None
    in_hand: int
    delayed: Mapping[str, int | None]
    dead_queue: str
    dead: int | None
    consumers: int | None
    workers: int
    rate: float
    backlog_s: float | None
    paused: Pause | None = None


@dataclass(frozen=True)
class Status:
    """How it stands. `notes` are what should not be so, in words; `deaths` are by reason and kind, the
    most first; none where no dead letters lie.
    `ledger_answers`: where it does not, workers, pauses and deaths are not known."""

    at: datetime
    broker: str
    ledger: str
    queues: tuple[Queue, ...]
    workers: tuple[Worker, ...]
    notes: tuple[str, ...]
    deaths: tuple[Deaths, ...] = ()
    ledger_answers: bool = True


async def status(project: Project, ledger: Ledger, name: str) -> Status:
    """Look at all queues of the project, passively, and at what its workers say. `name` is this process in the broker's
    lists.

    Raises BrokerUnreachable, and LedgerDiffers where the workers have another ledger.
    """
    settings, more = project.settings, list[str]()
    depths = await look(settings, _names(project), name, *same_ledger(project, ledger, project.receives, name))
    try:
        seen, pauses = await workers(ledger), await _pauses(ledger)
    except LedgerUnreachable as error:
        seen, pauses = [], {}
        more.append(str(error))
    queues = [_receiving(receive, depths, seen, pauses) for receive in project.receives.values()]
    only_sent = [send for name, send in project.sends.items() if name not in project.receives]
    queues += [_sending(send, depths) for send in only_sent]
    deaths: tuple[Deaths, ...] = ()
    if any(queue.dead for queue in queues) and not more:  # a million tasks are read in a second
        deaths = await _deaths(ledger)
    broker = ", ".join(map(hide_password, settings.amqp_uri))
    notes = (*more, *_notes(project, ledger, queues, seen))
    return Status(datetime.now(UTC), broker, ledger.place, tuple(queues), tuple(seen), notes, deaths, not more)


async def workers(ledger: Ledger, gone_s: float = GONE_S) -> list[Worker]:
    """Those that were heard of within an hour, by name. One that is gone has in hand what nobody else has taken, and
    is not told where another of its name has begun on its host since. Raises LedgerUnreachable."""
    try:
        found = [_worker(seen, gone_s) for seen in await ledger.board.seen(RECENT_S)]
        back = {(worker.name, worker.host) for worker in found if worker.state != "gone"}
        here = [worker for worker in found if worker.state != "gone" or (worker.name, worker.host) not in back]
        return [await _as_left(ledger, worker) if worker.state == "gone" else worker for worker in here]
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error


async def _pauses(ledger: Ledger) -> dict[str, Pause]:
    try:
        return {one.queue: Pause(_time(one.at), one.who, one.why) for one in await ledger.board.pauses()}
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error


async def _deaths(ledger: Ledger) -> tuple[Deaths, ...]:
    """None where the ledger is too busy to tell."""
    with suppress(LedgerBusy):
        return tuple(by_reason(await ledger.board.deaths()))
    return ()


async def in_hand(ledger: Ledger, task_id: UUID, worker: str, attempt: int) -> InHand | None:
    """This attempt at a task, as the worker of this name has told of it within `GONE_S`. Raises LedgerBusy."""
    seen = [_worker(seen, GONE_S) for seen in await ledger.board.seen(GONE_S) if seen.name == worker]
    asked = (str(task_id), attempt)
    return next((one for each in seen for one in each.in_hand if (one.id, one.attempt) == asked), None)


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
        started_at=_time(told["started_at"]),
        version=told["version"],
        contract=told["contract"]["version"],
        digest=told["contract"]["digest"],
        queues={name: Work(**_known(work)) for name, work in told["queues"].items()},
        in_hand=tuple(
            InHand(
                one["id"], one["kind"], one["operation"], one["attempt"], _time(one["since"]),
                one.get("progress"), one.get("text", ""),
            )
            for one in told["in_hand"]
        ),
    )  # fmt: skip


def _known(work: Mapping[str, Any]) -> dict[str, Any]:
    """A later version may tell more, and an earlier one less."""
    return {name: work[name] for name in Work.__dataclass_fields__ if name in work}


def _receiving(
    receive: Receive, depths: Mapping[str, Depth], seen: Iterable[Worker], pauses: Mapping[str, Pause]
) -> Queue:
    name = receive.queue.name
    here = [worker for worker in seen if name in worker.queues and worker.state != "gone"]
    depth, dead = depths.get(name), depths.get(receive.dead.name)
    delayed = {rung.queue.name: depths.get(rung.queue.name) for rung in receive.rungs}
    rate = round(sum(worker.queues[name].rate for worker in here), 2)
    ready = None if depth is None else depth.messages
    return Queue(
        queue=name,
        ready=ready,
        in_hand=sum(one.operation == receive.operation for worker in here for one in worker.in_hand),
        delayed={queue: None if found is None else found.messages for queue, found in delayed.items()},
        dead_queue=receive.dead.name,
        dead=None if dead is None else dead.messages,
        consumers=None if depth is None else depth.consumers,
        workers=len(here),
        rate=rate,
        backlog_s=None
        if ready is None or (ready and not rate) or name in pauses
        else round(ready / rate if ready else 0.0, 1),
        paused=pauses.get(name),
    )


def _sending(send: Send, depths: Mapping[str, Depth]) -> Queue:
    """A queue of which this project knows only that it sends to it."""
    depth = depths.get(send.queue.name)
    ready, consumers = (None, None) if depth is None else (depth.messages, depth.consumers)
    return Queue(send.queue.name, ready, 0, {}, "", None, consumers, 0, 0.0, None)


def _notes(project: Project, ledger: Ledger, queues: Iterable[Queue], seen: Iterable[Worker]) -> Iterable[str]:
    for queue in queues:
        if queue.ready is None:
            yield f"there is no queue {queue.queue}: no worker has been here yet, or it is another connection's own"
        elif queue.paused is not None:
            yield f"{queue.queue} is paused, {paused(queue.paused)}; workqueue resume {queue.queue}"
        elif queue.ready and not queue.consumers:
            yield f"nobody takes tasks from {queue.queue}"
    if not project.has_ledger:
        yield "LEDGER_URL=none: nobody tells who works, and no task's story is known"
    elif ledger.place == NoLedger.place:
        there = "the workers have another one" if any(queue.consumers for queue in queues) else "no worker has made it"
        yield f"there is no ledger at {project.settings.ledger_url}: {there}"
    for worker in seen:
        if worker.state == "waiting":
            yield f"{worker.name} on {worker.host} waits for its broker, or for a queue"
        if worker.state == "gone":
            held = f", with {len(worker.in_hand)} in hand" if worker.in_hand else ""
            yield f"{worker.name} on {worker.host} was last heard of {worker.seen_s:.0f} s ago{held}"
        if (differs := contract_differs(project, worker)) is not None:
            yield differs


def paused(pause: Pause) -> str:
    """Since when, by whom and why, in words."""
    return f"since {pause.since:%Y-%m-%d %H:%M:%S} UTC by {pause.by}{f': {pause.why}' if pause.why else ''}"


def contract_differs(project: Project, worker: Worker) -> str | None:
    """That a worker which is there works by another contract than the project's folder has, in words."""
    for name in worker.queues:
        ours = project.digests.get(name, worker.digest)
        if ours != worker.digest and worker.state != "gone":
            theirs = f"{worker.contract}, {worker.digest}"
            return f"{worker.name} works by another contract ({theirs}) than this folder has ({ours})"
    return None


def _names(project: Project) -> list[str]:
    names = dict.fromkeys(project.sends)
    for receive in project.receives.values():
        queues = (receive.queue, receive.dead, *(rung.queue for rung in receive.rungs))
        names |= dict.fromkeys(queue.name for queue in queues)
    return list(names)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
