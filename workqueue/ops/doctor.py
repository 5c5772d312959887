"""What is wrong with an installation, each with the way out. It looks, and tries the broker in queues of its own."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from workqueue import kinds
from workqueue.amqp.probe import Probe, probe
from workqueue.amqp.topology import BROKERS_LIMIT, LIMIT
from workqueue.errors import LedgerDiffers, LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.board import Lock, Overdue
from workqueue.ledger.none import AbsentLedger
from workqueue.ops.plan import Plan, QueuePlan, plan
from workqueue.ops.project import Project
from workqueue.ops.spans import span
from workqueue.ops.status import Status, paused, status
from workqueue.ops.workers import contract_differs
from workqueue.settings import hide_password
from workqueue.tasks.processor import DELIVERIES

CONSUMER_TIMEOUT_S = 1800.0  # RabbitMQ's default, https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
CLOCK_S = 5.0
LOG = "look into the broker's log"
LOCKED_S = 2.0  # a completion of a handler's takes less
OVERDUE_S = 300.0  # a message is on its way for less, or waits in a queue
STRANDED = (
    "rabbitmqctl list_queues name messages messages_ready: a delay that has more messages than are ready is stuck "
    "(rabbitmq-server #16652), restart the node of its leader; what is gone, send again under its id, or cancel it"
)
ROOM = "free or enlarge that disk; workers go on by themselves"
MEND = "start it, or see its log; a role needs all rights on the workqueue_ tables"
SEE = (
    "rabbitmqctl list_policies, and list_queues name messages_unacknowledged members; where a queue has fewer members "
    "than there should be: rabbitmq-queues grow"
)
LAST = (3, 10)
"""The oldest RabbitMQ that this is tested with."""

State = Literal["ok", "warning", "fault", "unseen"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A `fault` keeps the project from working as promised; a `warning` may be meant so.
    `unseen`: it can't be told from here."""

    about: str
    state: State
    said: str
    way_out: str = ""


async def doctor(project: Project, ledger: Ledger, name: str) -> list[Finding]:
    """Look at everything. Raises BrokerUnreachable: with nothing to look at there is one fault."""
    compared = await plan(project, name)
    tried = await probe(project.settings, name)
    try:
        now = await status(project, ledger, name)
    except LedgerDiffers as error:
        fault = Finding("ledger", "fault", str(error), "name the workers' ledger in LEDGER_URL")
        return [*_broker(compared, tried), *_queues(compared), fault]
    return [
        *_broker(compared, tried),
        *_queues(compared),
        _ledger(project, ledger, now),
        *_at_work(project, now),
        *_crowded(project, compared, now),
        *_gone(project, now, await _overdue(ledger)),
        *_locked(ledger, await _locks(ledger)),
        *_limits(project),
        Finding("not seen", "unseen", compared.unseen, SEE),
    ]


def _product(compared: Plan) -> tuple[str, tuple[int, ...]]:
    """What the broker is, and the first numbers of its version, as far as it tells them."""
    product, _, version = compared.version.rpartition(" ")
    return product, tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _broker(compared: Plan, tried: Probe) -> Iterator[Finding]:
    product, numbers = _product(compared)
    where = f"{compared.version} at {compared.broker}"
    if product != "RabbitMQ" or numbers < LAST:
        yield Finding("broker", "warning", f"{where}: not tested", "use RabbitMQ 3.10 or later")
    else:
        yield Finding("broker", "ok", where)
    if tried.refused in ("write", "read"):
        said = "publish: no retry and no dead letter moves" if tried.refused == "write" else "read from a queue"
        way_out = "rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
        yield Finding("permissions", "fault", f"this user may not {said}: {tried.problem}", way_out)
    elif not tried.made:
        way_out = "rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*', or have somebody else declare the queues"
        yield Finding("permissions", "warning", f"this user may not declare a queue: {tried.problem}", way_out)
    elif tried.blocked is not None:
        way_out = "free memory or disk there (rabbitmq-diagnostics alarms); until then nothing is sent"
        yield Finding("alarm", "fault", f"the broker takes no messages: {tried.blocked}", way_out)
    elif not tried.confirmed:
        yield Finding(
            "confirms", "fault", f"a message was not confirmed: {tried.problem}", "look into the broker's log"
        )
    elif not tried.dead_lettered:
        yield Finding("dead-lettering", "fault", str(tried.problem), LOG)
    else:
        yield Finding("confirms", "ok", "a message was routed, confirmed, expired and dead-lettered")


def _queues(compared: Plan) -> list[Finding]:
    return [found for queue in compared.queues if (found := _queue(queue, compared)) is not None]


def _queue(queue: QueuePlan, compared: Plan) -> Finding | None:
    about = f"queue {queue.queue}"
    differs = ", ".join(f"{one.name} is {one.broker}, not {one.contract}" for one in queue.differences)
    match queue.state:
        case "missing":
            anything = any(one.state != "missing" for one in compared.queues)
            return Finding(about, "fault" if anything else "warning", "it does not exist", queue.steps[0])
        case "policy":
            return Finding(about, "warning", f"{differs}, unless a policy says otherwise", queue.steps[0])
        case "low limit":
            return Finding(about, "warning", f"{differs}, which no policy raises", "workqueue plan has the steps")
        case "new queue":
            return Finding(about, "fault", f"{differs}: no worker starts", "workqueue plan has the steps")
        case "unseen":
            return Finding(
                about, "unseen", f"it can't be compared: {queue.why}", "ask as a user who may declare queues"
            )
    return None


def _at_work(project: Project, now: Status) -> Iterator[Finding]:
    for queue in now.queues:
        if queue.paused is not None:
            said = f"paused {paused(queue.paused)}; {queue.ready or 0} tasks wait"
            yield Finding(f"queue {queue.queue}", "warning", said, f"workqueue resume {queue.queue}")
        elif queue.ready and not queue.consumers:
            yield Finding(
                f"queue {queue.queue}", "fault", f"{queue.ready} tasks wait and nobody takes them", "start a worker"
            )
        if queue.dead:
            way_out = f"workqueue dead groups --queue {queue.queue}"
            yield Finding(f"queue {queue.dead_queue}", "warning", f"{queue.dead} dead letters", way_out)
    for worker in now.workers:
        about = f"worker {worker.name}"
        if worker.amiss:
            yield Finding(about, "fault", f"on {worker.host}{worker.amiss}", "see its log")
        elif worker.state == "gone":
            others = "" if now.refusal else ", which others do once their leases end"
            held = f", with {len(worker.in_hand)} tasks in hand{others}" if worker.in_hand else ""
            said = f"on {worker.host}, not heard of for {span(worker.seen_s)}{held}"
            yield Finding(about, "warning", said, "start it anew; if it runs, see its log. Forgotten after an hour")
        elif abs(worker.ahead_s) > CLOCK_S:
            word = "ahead of" if worker.ahead_s > 0 else "behind"
            said = f"its clock is {abs(worker.ahead_s):.0f} s {word} this machine's"
            yield Finding(about, "fault", said, "set both by NTP; times in stories and letters are wrong meanwhile")
        if (differs := contract_differs(project, worker)) is not None:
            yield Finding("contract", "warning", differs, "make generate, and restart the workers that are older")


async def _overdue(ledger: Ledger) -> list[Overdue]:
    with suppress(LedgerBusy):  # which is a finding of its own
        return await ledger.board.overdue(OVERDUE_S)
    return []


async def _locks(ledger: Ledger) -> list[Lock]:
    """Those that are there for LOCKED_S: each statement of a worker's has one for a moment."""
    with suppress(LedgerBusy):
        before = {lock.transaction for lock in await ledger.board.locks()}
        if before:
            await asyncio.sleep(LOCKED_S)
            return [lock for lock in await ledger.board.locks() if lock.transaction in before]
    return []


def _locked(ledger: Ledger, found: Iterable[Lock]) -> Iterator[Finding]:
    for lock in found:
        said = f"{ledger.place}: {lock.words} has tasks locked, which can't be claimed or completed until it ends"
        end = f"SELECT pg_terminate_backend({lock.pid})" if lock.pid else f"ROLLBACK PREPARED '{lock.name}'"
        yield Finding("ledger", "warning", said, f"end it there, or: {end}")


def _crowded(project: Project, compared: Plan, now: Status) -> Iterator[Finding]:
    """Queues with so many consumers that a task may be lost by one after the other, as their node dies, and reach the
    broker's limit on the way."""
    unstated = BROKERS_LIMIT if _product(compared)[1] >= (4,) else None
    quorum = {
        each.queue.name: each.queue.arguments.get(LIMIT, unstated)
        for each in project.receives.values()
        if each.queue.arguments.get("x-queue-type") == "quorum"
    }
    there = {
        queue.queue: unstated if one.broker is None else one.broker
        for queue in compared.queues
        for one in queue.differences
        if one.name == LIMIT
    }
    for queue in now.queues:
        limit, consumers = there.get(queue.queue, quorum.get(queue.queue)), queue.consumers or 0
        if queue.queue in quorum and consumers and limit is not None and 0 <= limit <= consumers + DELIVERIES:
            said = f"{consumers} consumers, and {LIMIT} {limit}: a node that dies may make dead letters of good tasks"
            yield Finding(f"queue {queue.queue}", "warning", said, "state 1000000 in the contract, then workqueue plan")


def _gone(project: Project, now: Status, found: Iterable[Overdue]) -> Iterator[Finding]:
    """Tasks that the ledger has waiting while none of the queues that their kind comes from has a message ready."""
    ready = {queue.queue: queue.ready for queue in now.queues}
    for one in found:
        queues = [receive.queue.name for receive in project.receives.values() if one.kind in receive.kinds]
        if not queues or any(ready.get(queue) != 0 for queue in queues):
            continue  # of another project that shares the ledger, or just behind others
        hours = (now.at.timestamp() - one.since) / 3600
        of = f" of kind {one.kind}" if one.kind else ""
        said = (
            f"tasks{of} wait in the ledger, for up to {hours:.1f} h, such as {one.example} ({one.tasks} in all), and "
            "no message waits for a worker: theirs were thrown away, or lie in a delay that the broker forwards no more"
        )
        which = f"workqueue tasks --kind {quote(one.kind)} --older-than {OVERDUE_S:.0f} lists them; "
        yield Finding(f"queue {', '.join(queues)}", "warning", said, which + STRANDED)


def _ledger(project: Project, ledger: Ledger, now: Status) -> Finding:
    """`status` has found that the workers have it."""
    if not project.has_ledger:
        way_out = "LEDGER_URL=sqlite:PATH for one machine, postgresql:// for several"
        return Finding("ledger", "warning", "none: a task that is delivered twice may be done twice", way_out)
    if isinstance(ledger, AbsentLedger):
        where = f"there is none at {hide_password(project.settings.ledger_url)}"
        if any(queue.consumers for queue in now.queues):
            return Finding("ledger", "fault", f"{where}: the workers have another", "name theirs in LEDGER_URL")
        return Finding("ledger", "warning", f"{where} now", "start a worker")
    for note in now.notes:
        if ledger.place in note:
            return Finding("ledger", "fault", note, _mend(note))
    if now.refusal:
        said = f"{ledger.place}: no task could be claimed: {now.refusal}"
        return Finding("ledger", "fault", said, _mend(now.refusal))
    silent = [worker for worker in now.workers if worker.state == "silent"]
    if silent:
        since, names = span(min(worker.seen_s for worker in silent)), ", ".join(worker.name for worker in silent)
        said = f"{ledger.place}: a task could be claimed from here, and {names} could tell it nothing for {since}"
        return Finding("ledger", "fault", f"{said}, while the broker has their consumers", "see their logs")
    return Finding("ledger", "ok", f"{ledger.place}; workers that told it of themselves: {len(now.workers)}")


def _mend(said: str) -> str:
    return ROOM if LedgerUnreachable.DISK_FULL in said else MEND


def _limits(project: Project) -> Iterable[Finding]:
    if project.has_ledger:
        return  # a task that runs for longer is delivered again, and its claim keeps it from being run again
    for receive in project.receives.values():
        for kind in sorted(receive.kinds):
            limit_s = receive.time_limit_s(kind)
            if limit_s is None or limit_s > CONSUMER_TIMEOUT_S:
                may = "run for ever" if limit_s is None else f"take {limit_s:g} s"
                said = f"a task of kind {kind} may {may}; RabbitMQ delivers again what is not acked in 1,800 s"
                way_out = f"use a ledger, or state a shorter {kinds.LIMIT}, or raise the broker's consumer_timeout"
                yield Finding("time limit", "warning", said, way_out)
