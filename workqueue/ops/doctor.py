"""What is wrong with an installation, each with the way out. It looks, and tries the broker in queues of its own."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from workqueue.amqp.connection import Link
from workqueue.amqp.marker import Marker
from workqueue.amqp.probe import Probe, probe
from workqueue.errors import BrokerRefused, LedgerDiffers
from workqueue.ledger import Ledger
from workqueue.ledger.none import NoLedger
from workqueue.ops.plan import Plan, QueuePlan, plan
from workqueue.ops.project import Project
from workqueue.ops.status import Status, status

CONSUMER_TIMEOUT_S = 1800.0  # RabbitMQ's default, https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
CLOCK_S = 5.0
LOG = "look into the broker's log"
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
    """Look at everything. Raises BrokerUnreachable, LedgerUnreachable: with nothing to look at there is one fault."""
    compared, now, tried = await asyncio.gather(
        plan(project, f"{name}.1"), status(project, ledger), probe(project.settings, f"{name}.2")
    )
    return [
        *_broker(compared, tried),
        *(found for queue in compared.queues if (found := _queue(queue, compared)) is not None),
        *_at_work(now),
        *await _ledger(project, ledger, now, name),
        *_limits(project),
        Finding("not seen", "unseen", compared.unseen),
    ]


def _broker(compared: Plan, tried: Probe) -> Iterator[Finding]:
    product, _, version = compared.version.rpartition(" ")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    where = f"{compared.version} at {compared.broker}"
    if product != "RabbitMQ" or numbers < LAST:
        yield Finding("broker", "warning", f"{where}: not tested", "use RabbitMQ 3.10 or later")
    else:
        yield Finding("broker", "ok", where)
    if not tried.made:
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


def _queue(queue: QueuePlan, compared: Plan) -> Finding | None:
    about = f"queue {queue.queue}"
    differs = ", ".join(f"{one.name} is {one.broker}, not {one.contract}" for one in queue.differences)
    match queue.state:
        case "missing":
            anything = any(one.state != "missing" for one in compared.queues)
            return Finding(about, "fault" if anything else "warning", "it does not exist", queue.steps[0])
        case "policy":
            return Finding(about, "warning", f"{differs}, unless a policy says otherwise", queue.steps[0])
        case "new queue":
            return Finding(about, "fault", f"{differs}: no worker starts", "workqueue plan has the steps")
        case "unseen":
            return Finding(
                about, "unseen", f"it can't be compared: {queue.why}", "ask as a user who may declare queues"
            )
    return None


def _at_work(now: Status) -> Iterator[Finding]:
    for queue in now.queues:
        if queue.ready and not queue.consumers:
            yield Finding(
                f"queue {queue.queue}", "fault", f"{queue.ready} tasks wait and nobody takes them", "start a worker"
            )
        if queue.dead:
            way_out = f"workqueue dead groups --queue {queue.queue}"
            yield Finding(f"queue {queue.dead_queue}", "warning", f"{queue.dead} dead letters", way_out)
    for worker in now.workers:
        about = f"worker {worker.name}"
        if worker.state == "gone":
            held = f", with {len(worker.in_hand)} tasks in hand, which others do" if worker.in_hand else ""
            said = f"on {worker.host}, not heard of for {worker.seen_s:.0f} s{held}"
            yield Finding(about, "warning", said, "start it anew; it is forgotten after an hour")
        elif abs(worker.ahead_s) > CLOCK_S:
            word = "ahead of" if worker.ahead_s > 0 else "behind"
            said = f"its clock is {abs(worker.ahead_s):.0f} s {word} this machine's"
            yield Finding(about, "fault", said, "set both by NTP; times in stories and letters are wrong meanwhile")
    for note in now.notes:
        if "contract" in note:
            yield Finding("contract", "warning", note, "make generate, and restart the workers that are older")


async def _ledger(project: Project, ledger: Ledger, now: Status, name: str) -> list[Finding]:
    if not project.has_ledger:
        way_out = "LEDGER_URL=sqlite:PATH for one machine, postgresql:// for several"
        return [Finding("ledger", "warning", "none: a task that is delivered twice may be done twice", way_out)]
    if ledger.identity == NoLedger.identity:
        return [Finding("ledger", "warning", f"there is none yet at {project.settings.ledger_url}", "start a worker")]
    markers = [Marker(queue, ledger, name, hold=False).check for queue in project.receives]
    link = Link(project.settings, name, *markers)
    try:
        await link.open()
    except LedgerDiffers as error:
        return [Finding("ledger", "fault", str(error), "name the workers' ledger in LEDGER_URL")]
    except BrokerRefused as error:
        return [Finding("ledger", "unseen", str(error))]
    finally:
        await link.end()
    told = f"{ledger.place}, and {len(now.workers)} workers have told it of themselves"
    return [Finding("ledger", "ok", told)]


def _limits(project: Project) -> Iterable[Finding]:
    if project.has_ledger:
        return  # a task that runs for longer is delivered again, and its claim keeps it from being run again
    for receive in project.receives.values():
        for kind, limit_s in receive.time_limits_s.items():
            if limit_s > CONSUMER_TIMEOUT_S:
                said = (
                    f"{kind or 'a task'} may take {limit_s:g} s; RabbitMQ delivers again what is not acked in 1,800 s"
                )
                yield Finding("time limit", "warning", said, "use a ledger, or raise the broker's consumer_timeout")
