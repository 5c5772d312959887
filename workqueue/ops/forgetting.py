"""Tasks that are erased on request: what the ledger keeps of them, and their dead letters."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import UUID

from workqueue.client.asking import asked
from workqueue.client.status import status_of
from workqueue.errors import WorkQueueError
from workqueue.ledger import Ledger
from workqueue.ops.audit import note, operator
from workqueue.ops.desk import Desk
from workqueue.ops.letters import Filter, Letter
from workqueue.ops.moving import Moved

State = Literal["waiting", "running", "done", "dead", "cancelled", "unknown"]


EVER_S = 1e9  # longer than anything is kept


class LettersStay(WorkQueueError):
    """Dead letters were not, or may not have been, taken from their queue."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} dead letters may be there still, and the ledger was not asked: ask again")
        self.count = count


@dataclass
class Forgotten:
    """A task, as it was found in the ledger. `row`: what the ledger had of it was removed; `letters`: so many of its
    dead letters were. One that waits or runs is left alone."""

    id: UUID
    state: State
    letters: int = 0
    row: bool = False

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "running")


async def look(ledger: Ledger, desk: Desk, ids: Iterable[UUID]) -> list[Forgotten]:
    """What there is of these tasks. Raises LedgerUnreachable, and as `Desk.letters`."""
    found = {task_id: Forgotten(task_id, await _state(ledger, task_id)) for task_id in ids}
    _count(found, await desk.letters(_of(found)))
    return list(found.values())


async def forget(ledger: Ledger, desk: Desk, ids: Iterable[UUID], *, why: str) -> list[Forgotten]:
    """Erase these tasks. Cut short, and asked for again, it goes on.

    The letters go first: until the ledger forgets the task too, one that somebody sends back meanwhile is that task,
    and no new one. Raises LedgerUnreachable, LettersStay, and as `Desk.letters`.
    """
    found = {task_id: Forgotten(task_id, await _state(ledger, task_id)) for task_id in ids}
    wanted = {task_id: one for task_id, one in found.items() if not one.is_open}
    if not wanted:
        return list(found.values())
    selection = await desk.select("drop", _of(wanted), force=False)
    if selection.letters:
        moved = Moved("drop", operator(), why)
        await desk.move(selection, moved)
        if moved.ended_by is not None:
            raise moved.ended_by
        if stay := len(moved.left) + moved.unsure:
            raise LettersStay(stay)
    _count(wanted, selection.letters)
    for one in wanted.values():
        if one.state == "cancelled":
            await asked(ledger, partial(ledger.cancel, one.id, why))  # see `_state`
        one.row = await asked(ledger, partial(ledger.forget, one.id))
        if not one.row and one.state != "unknown":
            one.state = await _state(ledger, one.id)  # it was sent back in between
    await _untell(ledger, {str(one.id) for one in wanted.values() if one.row or one.state == "unknown"})
    # No ids: one that is made of a key says whose task it was, and the audit is kept for good.
    rows = sum(one.row for one in wanted.values())
    await note(ledger, "forget", why, {"tasks": len(wanted), "rows": rows, "letters": len(selection.letters)})
    return list(found.values())


async def _untell(ledger: Ledger, ids: Collection[str]) -> None:
    """Remove what workers told while they had one of these in hand. A worker that lives tells anew within seconds, of
    what it has in hand by then; the row of one that was killed would stay."""
    for seen in await asked(ledger, partial(ledger.board.seen, EVER_S)):
        if any(held["id"] in ids for held in json.loads(seen.told).get("in_hand", ())):
            await asked(ledger, partial(ledger.board.remove, seen.id))


def _count(found: Mapping[UUID, Forgotten], letters: Iterable[Letter]) -> None:
    for letter in letters:
        found[UUID(letter.id)].letters += 1


def _of(ids: Iterable[UUID]) -> Filter:
    return Filter(ids=frozenset(map(str, ids)))


async def _state(ledger: Ledger, task_id: UUID) -> State:
    entry = await asked(ledger, partial(ledger.entry, task_id))
    if entry is None:
        return "unknown"
    # Also where its worker died while it was called off, and nothing comes to end it.
    return "cancelled" if status_of(task_id, entry).state == "cancelled" else entry.state
