"""Queues whose workers take nothing: paused, and resumed."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from workqueue.amqp.look import look
from workqueue.client.asking import asked
from workqueue.errors import BrokerUnreachable
from workqueue.ledger import Ledger
from workqueue.ops.audit import as_text, note, operator
from workqueue.ops.project import Project
from workqueue.ops.workers import Worker, workers

OBEY_S = 6.0  # a worker looks every second, and tells of itself every two
LOOK_S = 0.3


@dataclass(frozen=True)
class Paused:
    """A queue, and its workers: `obey` are those that have stopped taking from it, or have begun again; `others` have
    not said so yet; nothing is heard of those that are `gone`. `changed`: it was not so before.

    `consumers` still take from it, by what the broker knows, beside those that finish what they have in hand; None: it
    does not answer.
    """

    queue: str
    paused: bool
    changed: bool
    obey: tuple[str, ...]
    others: tuple[str, ...]
    gone: tuple[str, ...]
    consumers: int | None

    @property
    def is_so(self) -> bool:
        """Whether all obey. Of one that was resumed, the broker is not asked."""
        return not self.others and (not self.paused or self.consumers == 0)


async def pause(project: Project, ledger: Ledger, queue: str, name: str, *, why: str) -> Paused:
    """Let no worker take a task from the queue until `resume`, and wait some seconds until none does. `name` is this
    process in the broker's lists. Raises LedgerUnreachable."""
    await note(ledger, "pause", why, {"queue": queue})
    changed = await asked(ledger, lambda: ledger.board.pause(queue, operator(), as_text(why)))
    until_s = time.monotonic() + OBEY_S
    while True:
        obey, others, gone = await _workers(ledger, queue, paused=True)
        in_hand = sum(one.held(queue, project.receives[queue].operation) for one in obey)
        consumers = None
        with suppress(BrokerUnreachable, KeyError):
            found = (await look(project.settings, [queue], name))[queue]
            consumers = max(0, found.consumers - in_hand)  # one that was cancelled counts until its message is acked
        told = Paused(queue, True, changed, _names(obey), _names(others), _names(gone), consumers)
        if told.is_so or time.monotonic() > until_s:
            return told
        await asyncio.sleep(LOOK_S)


async def resume(ledger: Ledger, queue: str, *, why: str) -> Paused:
    """Let workers take tasks from the queue again, and wait some seconds until they say so. Raises
    LedgerUnreachable."""
    await note(ledger, "resume", why, {"queue": queue})
    changed = await asked(ledger, lambda: ledger.board.resume(queue))
    until_s = time.monotonic() + OBEY_S
    while True:
        obey, others, gone = await _workers(ledger, queue, paused=False)
        if not others or time.monotonic() > until_s:
            return Paused(queue, False, changed, _names(obey), _names(others), _names(gone), None)
        await asyncio.sleep(LOOK_S)


async def _workers(ledger: Ledger, queue: str, *, paused: bool) -> tuple[list[Worker], list[Worker], list[Worker]]:
    """Those that say it is so with them, the others, and those of which nothing is heard."""
    found = [one for one in await workers(ledger) if queue in one.queues and one.state != "stopping"]
    gone = [one for one in found if one.state == "gone"]
    here = [one for one in found if one.state != "gone"]
    obey = [one for one in here if one.queues[queue].paused is paused]
    return obey, [one for one in here if one not in obey], gone


def _names(workers: list[Worker]) -> tuple[str, ...]:
    return tuple(one.name for one in workers)
