"""Tasks that are called off, whether they wait or run."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from workqueue.client.status import status_of
from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Cancelling, Ledger, LedgerBusy
from workqueue.ops.audit import as_text, note, operator

LOOK_S = 0.2  # between two looks at what is asked to stop
IDS = 20  # that an audit's row names


@dataclass(frozen=True)
class Cancelled:
    """What became of a task that was called off.

    `cancelled`: no attempt at it begins any more. `asked`: `worker` runs it still, and has been told to stop it.
    `done`, `dead`: it was before, or is by now.
    """

    id: UUID
    state: Literal["cancelled", "asked", "done", "dead"]
    kind: str | None
    worker: str | None


async def cancel(ledger: Ledger, ids: Iterable[UUID], *, why: str, within_s: float) -> list[Cancelled]:
    """Call these tasks off, and wait so long for those that run to be stopped. Raises LedgerUnreachable."""
    wanted, why = list(dict.fromkeys(ids)), as_text(why)
    told = f"by {operator()}{f': {why}' if why else ''}"
    named = " ".join(map(str, wanted)) if len(wanted) <= IDS else "many"
    await note(ledger, "cancel", why, {"tasks": len(wanted), "ids": named})
    try:
        found = {task_id: await _look(ledger, task_id, await ledger.cancel(task_id, told)) for task_id in wanted}
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s and (left := [one.id for one in found.values() if one.state == "asked"]):
            await asyncio.sleep(LOOK_S)
            found |= {task_id: await _look(ledger, task_id, "asked") for task_id in left}
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error
    return list(found.values())


async def _look(ledger: Ledger, task_id: UUID, answer: Cancelling) -> Cancelled:
    entry = await ledger.entry(task_id)
    now = status_of(task_id, entry)
    state = now.state if now.state in ("done", "dead", "cancelled") else answer
    return Cancelled(task_id, state, now.kind, now.worker)
