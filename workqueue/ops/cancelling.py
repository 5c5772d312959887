"""Tasks that are called off, whether they wait or run."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import UUID

from workqueue.client.asking import asked
from workqueue.client.status import status_of
from workqueue.ledger import Cancelling, Ledger
from workqueue.ops.audit import as_text, note, operator

LOOK_S = 0.2  # between two looks at what is asked to stop
IDS = 20  # that an audit's row names


@dataclass(frozen=True)
class Cancelled:
    """What became of a task that was called off.

    `cancelled`: no attempt at it begins any more. `asked`: `worker` runs it still, and has been told to stop it.
    `done`, `dead`: it was before, or is by now. Not `known`: the ledger had nothing of it.
    """

    id: UUID
    state: Literal["cancelled", "asked", "done", "dead"]
    known: bool
    kind: str | None
    worker: str | None


async def cancel(
    ledger: Ledger, ids: Sequence[UUID], found: dict[UUID, Cancelled], *, why: str, within_s: float
) -> None:
    """Call these tasks off, and wait so long for those that run to be stopped. What becomes of each is in `found`, also
    where it is cut short. Raises LedgerUnreachable."""
    why = as_text(why)
    told = f"by {operator()}{f': {why}' if why else ''}"
    named = " ".join(map(str, ids)) if len(ids) <= IDS else "many"
    await note(ledger, "cancel", why, {"tasks": len(ids), "ids": named})
    for task_id in ids:
        answer = await asked(ledger, partial(ledger.cancel, task_id, told))
        found[task_id] = await _look(ledger, task_id, answer)
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s and (left := [one.id for one in found.values() if one.state == "asked"]):
        await asyncio.sleep(LOOK_S)
        for task_id in left:
            found[task_id] = await _look(ledger, task_id, "asked")


async def _look(ledger: Ledger, task_id: UUID, answer: Cancelling) -> Cancelled:
    entry = await asked(ledger, partial(ledger.entry, task_id))
    now = status_of(task_id, entry)
    state = now.state if now.state in ("done", "dead", "cancelled") else answer
    known = entry is not None and entry.kind is not None
    return Cancelled(task_id, state, known, now.kind, now.worker)
