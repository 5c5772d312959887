"""All that waits in a queue, thrown away, and each task of it called off: nobody waits for what never comes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workqueue.amqp.frames import Arrival
from workqueue.amqp.held import hold
from workqueue.amqp.look import look
from workqueue.codec import ModelCodec, Undecodable
from workqueue.contract import Receive
from workqueue.errors import LedgerUnreachable, WorkQueueError
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.none import NoLedger
from workqueue.ops.audit import as_text, note, operator
from workqueue.ops.project import Project, same_ledger

TELL_EVERY = 100


@dataclass
class Purged:
    """What was thrown away of `matched` messages. `running`: copies of tasks that run, which go on. `ended_by` is what
    cut it short: the rest is there still."""

    queue: str
    matched: int
    purged: int = 0
    running: int = 0
    ended_by: WorkQueueError | None = None


async def waiting(project: Project, ledger: Ledger, receive: Receive, name: str) -> dict[str, int]:
    """How much waits for its first attempt, and for its next one, by queue. Raises BrokerUnreachable, LedgerDiffers."""
    queues = [receive.queue.name, *(rung.queue.name for rung in receive.rungs)]
    depths = await look(project.settings, queues, name, *same_ledger(project, ledger, [receive.queue.name], name))
    return {queue: depth.messages for queue, depth in depths.items()}


async def purge(
    project: Project, ledger: Ledger, receive: Receive, name: str, *, why: str, tell: Callable[[int, int], object]
) -> Purged:
    """Throw away what waits now, and cancel each task of it, so that a copy of it that comes later is not run either.
    What a worker has in hand goes on. What cuts it short is in the answer; asked for again, it goes on.

    Raises LedgerUnreachable and BrokerUnreachable before anything is thrown away.
    """
    there = await waiting(project, ledger, receive, name)
    done, codec = Purged(receive.queue.name, sum(there.values())), project.codec(receive)
    told = f"by {operator()}: purged{f', {as_text(why)}' if why else ''}"
    await note(ledger, "purge begins", why, {"queue": receive.queue.name, "messages": done.matched})
    try:
        for queue, count in there.items():
            if not count:
                continue
            async with hold(project.settings, queue, name) as held:
                async for arrived in held:
                    done.running += await _call_off(ledger, codec, arrived, told)
                    await held.done(arrived)
                    done.purged += 1
                    if done.purged % TELL_EVERY == 0:
                        tell(done.purged, done.matched)
    except LedgerBusy as error:
        done.ended_by = LedgerUnreachable(ledger.place, f"it does not answer: {error}")
    except WorkQueueError as error:
        done.ended_by = error
    await note(ledger, "purge ends", why, {"queue": receive.queue.name, "messages": done.purged})
    return done


async def _call_off(ledger: Ledger, codec: ModelCodec[Any], arrived: Arrival, told: str) -> bool:
    """Whether the task runs, and so is left alone."""
    task = codec.decode(arrived.body)
    if ledger.identity == NoLedger.identity or isinstance(task, Undecodable):
        return False
    entry = await ledger.entry(task.id)
    if entry is not None and entry.held:
        return True
    await ledger.cancel(task.id, told)
    return False
