"""All that waits in a queue, thrown away, and each task of it called off: nobody waits for what never comes."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from workqueue.amqp.frames import Arrival
from workqueue.amqp.held import hold
from workqueue.amqp.look import look
from workqueue.amqp.shared import same_ledger
from workqueue.client.asking import asked
from workqueue.codec import named
from workqueue.contract import Receive
from workqueue.errors import LedgerUnreachable, WorkQueueError
from workqueue.ledger import Ledger
from workqueue.ledger.none import NoLedger
from workqueue.ops.audit import as_text, note, operator
from workqueue.ops.project import Project

TELL_EVERY = 100


@dataclass
class Purged:
    """What was thrown away of `matched` messages, and how many are `left`: those of tasks that run, which go on; those
    that came meanwhile; and, where `ended_by` says what cut it short, the rest. -1: not known."""

    queue: str
    matched: int = 0
    purged: int = 0
    running: int = 0
    left: int = -1
    ended_by: WorkQueueError | None = None


async def waiting(project: Project, ledger: Ledger, receive: Receive, name: str) -> dict[str, int]:
    """How much waits for its next attempt, and for its first one, by queue. Raises BrokerUnreachable, LedgerDiffers."""
    queues = [*(rung.queue.name for rung in receive.rungs), receive.queue.name]
    depths = await look(project.settings, queues, name, *same_ledger(ledger, [receive.queue.name], name))
    return {queue: depth.messages for queue, depth in depths.items()}


async def purge(
    project: Project, ledger: Ledger, done: Purged, name: str, *, why: str, tell: Callable[[int, int], object]
) -> None:
    """Throw away what waits now, and cancel each task of it, so that a copy of it that comes later is not run either.
    What a worker has in hand goes on, and messages of it stay: one may be all there is of it.

    What was done is in `done`, also where it is cut short; asked for again, it goes on. Raises LedgerUnreachable and
    BrokerUnreachable before anything is thrown away.
    """
    receive = project.receives[done.queue]
    there = await waiting(project, ledger, receive, name)
    done.matched = sum(there.values())
    told = f"by {operator()}: purged{f', {as_text(why)}' if why else ''}"
    await note(ledger, "purge begins", why, {"queue": done.queue, "messages": done.matched})
    try:
        for queue, count in there.items():  # the delays first: what they hold comes back to the tasks
            if not count:
                continue
            async with hold(project.settings, queue, name) as held:
                async for arrived in held:
                    if await _runs(ledger, arrived, told):
                        done.running += 1
                        continue
                    await held.done(arrived)
                    done.purged += 1
                    if done.purged % TELL_EVERY == 0:
                        tell(done.purged, done.matched)
        done.left = sum((await waiting(project, ledger, receive, name)).values())
    except WorkQueueError as error:
        done.ended_by = error
    finally:
        with suppress(LedgerUnreachable):
            await note(ledger, "purge ends", why, {"queue": done.queue, "messages": done.purged})


async def _runs(ledger: Ledger, arrived: Arrival, told: str) -> bool:
    """Whether the message is of a task that runs. Any other task is called off, unless another payload has its id; that
    of a body which is not the contract's too, if it says which one it is."""
    if ledger.identity == NoLedger.identity or (task := named(arrived.body, None)) is None:
        return False
    entry = await asked(ledger, partial(ledger.entry, task.id))
    if entry is not None and entry.digest and entry.digest != task.digest:
        return False
    if entry is not None and entry.held:
        return True
    await asked(ledger, partial(ledger.cancel, task.id, told))
    return False
