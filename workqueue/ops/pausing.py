"""Queues whose workers take nothing: paused, and resumed."""

import asyncio
import time
from dataclasses import dataclass

from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ops.audit import as_text, note, operator
from workqueue.ops.status import workers

OBEY_S = 6.0  # a worker looks every second, and tells of itself every two
LOOK_S = 0.3


@dataclass(frozen=True)
class Paused:
    """A queue, and its workers: `obey` are those that have stopped taking from it, or have begun again; `others` have
    not said so yet. `changed`: it was not so before."""

    queue: str
    paused: bool
    changed: bool
    obey: tuple[str, ...]
    others: tuple[str, ...]


async def pause(ledger: Ledger, queue: str, *, why: str) -> Paused:
    """Let no worker take a task from the queue until `resume`, and wait until those that work say so. Raises
    LedgerUnreachable."""
    return await _set(ledger, queue, why, paused=True)


async def resume(ledger: Ledger, queue: str, *, why: str) -> Paused:
    return await _set(ledger, queue, why, paused=False)


async def _set(ledger: Ledger, queue: str, why: str, *, paused: bool) -> Paused:
    await note(ledger, "pause" if paused else "resume", why, {"queue": queue})
    try:
        if paused:
            changed = await ledger.board.pause(queue, operator(), as_text(why))
        else:
            changed = await ledger.board.resume(queue)
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error
    until_s = time.monotonic() + OBEY_S
    while True:
        here = [one for one in await workers(ledger) if queue in one.queues and one.state in ("working", "waiting")]
        others = tuple(one.name for one in here if one.queues[queue].paused is not paused)
        if not others or time.monotonic() > until_s:
            return Paused(queue, paused, changed, tuple(one.name for one in here if one.name not in others), others)
        await asyncio.sleep(LOOK_S)
