"""What waits, and who works on it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from workqueue.amqp.lane import Depth
from workqueue.amqp.look import look
from workqueue.amqp.probe import blocked
from workqueue.amqp.shared import same_ledger
from workqueue.client.asking import patiently
from workqueue.contract import Receive, Send
from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.none import AbsentLedger
from workqueue.ops.deaths import Deaths, by_reason
from workqueue.ops.project import Project
from workqueue.ops.spans import span
from workqueue.ops.workers import Worker, contract_differs, with_silent, workers
from workqueue.settings import hide_password

PATIENCE_S = 1.0  # with a ledger that is busy


@dataclass(frozen=True)
class Pause:
    """Nobody takes tasks from a queue, by whose order and why."""

    since: datetime
    by: str
    why: str


@dataclass(frozen=True)
class Queue:
    """A queue of tasks. A number that is None is not known: the queue does not exist, or there is no ledger where its
    workers would tell.

    `ready` is what waits for a worker; `delayed` what waits for its next attempt, by delay in seconds; `dead` what lies
    in `dead_queue`; `consumers` what the broker sees, `in_hand` and `rate` (tasks per second) what `workers` tell.
    `backlog_s`: when all that is ready will be done, at this rate.
    """

    queue: str
    ready: int | None
    in_hand: int | None
    delayed: Mapping[str, int | None]
    dead_queue: str
    dead: int | None
    consumers: int | None
    workers: int | None
    rate: float | None
    backlog_s: float | None
    paused: Pause | None = None


@dataclass(frozen=True)
class Status:
    """How it stands. `notes` are what should not be so, in words; `deaths` are by reason and kind, the
    most first; none where no dead letters lie.
    `ledger_answers`: where it does not, what it would tell is not all known: deaths, pauses, workers. `refusal`: why no
    task could be claimed from here, and nothing told; empty if it could."""

    at: datetime
    broker: str
    ledger: str
    queues: tuple[Queue, ...]
    workers: tuple[Worker, ...]
    notes: tuple[str, ...]
    deaths: tuple[Deaths, ...] = ()
    ledger_answers: bool = True
    refusal: str = ""


async def status(project: Project, ledger: Ledger, name: str) -> Status:
    """Look at all queues of the project, passively, and at what its workers say. `name` is this process in the broker's
    lists.

    Raises BrokerUnreachable, and LedgerDiffers where the workers have another ledger.
    """
    settings, more = project.settings, list[str]()
    depths = await look(settings, _names(project), name, *same_ledger(ledger, project.receives, name))
    alarm = await blocked(settings, name)
    try:
        consumers = {queue: depth.consumers for queue, depth in depths.items()}
        seen, pauses = with_silent(await workers(ledger), consumers), await _pauses(ledger)
    except LedgerUnreachable as error:
        seen, pauses = [], {}
        more.append(str(error))
    refusal = "" if more else await _refusal(ledger)
    tell = None if more or isinstance(ledger, AbsentLedger) or not project.has_ledger else seen
    queues = [_receiving(receive, depths, tell, pauses) for receive in project.receives.values()]
    only_sent = [send for name, send in project.sends.items() if name not in project.receives]
    queues += [_sending(send, depths) for send in only_sent]
    deaths: tuple[Deaths, ...] = ()
    if any(queue.dead for queue in queues) and not more:  # a million tasks are read in a second
        try:
            deaths = tuple(by_reason(await ledger.board.deaths()))
        except LedgerBusy as error:
            more.append(f"what tasks died of can't be read: {ledger.place} does not answer: {error}")
    broker = ", ".join(map(hide_password, settings.amqp_uri))
    notes = (*_alarmed(alarm), *more, *_unheard(refusal, seen), *_notes(project, ledger, queues, seen))
    answers = not more and (not refusal or any(worker.is_heard for worker in seen))
    return Status(datetime.now(UTC), broker, ledger.place, tuple(queues), tuple(seen), notes, deaths, answers, refusal)


async def _refusal(ledger: Ledger) -> str:
    """Why no task could be claimed; empty if one could. A lock that somebody has for a moment is no reason."""
    try:
        await patiently(ledger.check, PATIENCE_S)
    except LedgerBusy as error:
        return str(error)
    return ""


def _alarmed(alarm: str | None) -> Iterable[str]:
    if alarm is not None:
        yield f"the broker takes no messages: {alarm}; free memory or disk there (rabbitmq-diagnostics alarms)"


def _unheard(refusal: str, seen: Sequence[Worker]) -> Iterable[str]:
    """Of a ledger to which nobody can write, or none of those who should. One line, whatever follows from it."""
    last = span(min((worker.seen_s for worker in seen), default=0.0))
    if refusal:
        here = " from here" if any(worker.is_heard for worker in seen) else ""
        since = f"; what is said of workers is as of {last} ago" if seen else ""
        yield f"nothing can be claimed or told{here}: {refusal}{since}"
    elif any(worker.state == "silent" for worker in seen):
        yield f"no worker could tell the ledger anything for {last}, and the broker has their consumers: see their logs"


async def _pauses(ledger: Ledger) -> dict[str, Pause]:
    try:
        return {
            one.queue: Pause(datetime.fromtimestamp(one.at, UTC), one.who, one.why)
            for one in await ledger.board.pauses()
        }
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error


def _receiving(
    receive: Receive, depths: Mapping[str, Depth], seen: Iterable[Worker] | None, pauses: Mapping[str, Pause]
) -> Queue:
    name = receive.queue.name
    here = [worker for worker in seen or () if name in worker.queues and worker.state != "gone"]
    depth, dead = depths.get(name), depths.get(receive.dead.name)
    delayed = {rung.queue.name: depths.get(rung.queue.name) for rung in receive.rungs}
    rate = round(sum(worker.queues[name].rate for worker in here if worker.is_heard), 2)
    ready = None if depth is None else depth.messages
    return Queue(
        queue=name,
        ready=ready,
        in_hand=None if seen is None else sum(worker.held(name, receive.operation) for worker in here),
        delayed={queue: None if found is None else found.messages for queue, found in delayed.items()},
        dead_queue=receive.dead.name,
        dead=None if dead is None else dead.messages,
        consumers=None if depth is None else depth.consumers,
        workers=None if seen is None else len(here),
        rate=None if seen is None else rate,
        backlog_s=_backlog_s(depth, rate) if name not in pauses else None,
        paused=pauses.get(name),
    )


def _backlog_s(depth: Depth | None, rate: float) -> float | None:
    """A rate is that of the last minute: those who had it may be gone."""
    if depth is not None and not depth.messages:
        return 0.0
    return round(depth.messages / rate, 1) if depth is not None and depth.consumers and rate else None


def _sending(send: Send, depths: Mapping[str, Depth]) -> Queue:
    """A queue of which this project knows only that it sends to it."""
    depth = depths.get(send.queue.name)
    ready, consumers = (None, None) if depth is None else (depth.messages, depth.consumers)
    return Queue(send.queue.name, ready, None, {}, "", None, consumers, None, None, None)


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
    elif isinstance(ledger, AbsentLedger):
        there = "the workers have another one" if any(queue.consumers for queue in queues) else "a worker makes it"
        yield f"there is no ledger at {hide_password(project.settings.ledger_url)} now: {there}"
    for worker in seen:
        if worker.amiss:
            yield f"{worker.name} on {worker.host}{worker.amiss}"
        for name, work in worker.queues.items():
            if work.waiting and worker.state != "gone":
                alone = "while one that may be what killed workers runs alone, or waits to"
                yield f"{work.waiting} tasks of {name} wait in {worker.name} on {worker.host} {alone}"
        if worker.state == "gone":
            held = f", with {len(worker.in_hand)} in hand" if worker.in_hand else ""
            yield f"{worker.name} on {worker.host} was last heard of {span(worker.seen_s)} ago{held}"
        if (differs := contract_differs(project, worker)) is not None:
            yield differs


def paused(pause: Pause) -> str:
    """Since when, by whom and why, in words."""
    return f"since {pause.since:%Y-%m-%d %H:%M:%S} UTC by {pause.by}{f': {pause.why}' if pause.why else ''}"


def _names(project: Project) -> list[str]:
    names = dict.fromkeys(project.sends)
    for receive in project.receives.values():
        queues = (receive.queue, receive.dead, *(rung.queue for rung in receive.rungs))
        names |= dict.fromkeys(queue.name for queue in queues)
    return list(names)
