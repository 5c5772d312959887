"""One task's whole way, as far as the ledger knows it, and what operators add to it."""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from workqueue.client.asking import asked
from workqueue.client.status import State, status_of, time_of
from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Claimed, Entry, Ledger, LedgerBusy
from workqueue.ops.letters import Letter
from workqueue.ops.workers import heard_of, in_hand, why_held_up
from workqueue.tasks.copies import now
from workqueue.tasks.story import TEXT_LIMIT


@dataclass(frozen=True)
class Attempt:
    """One that failed. `attempt` is counted from 1, and anew after a dead letter was sent back."""

    attempt: int
    at: str
    worker: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class Return:
    """From the dead letters: by whom and why is known where it was `workqueue dead redrive`."""

    at: str
    by: str
    why: str


@dataclass(frozen=True)
class Removal:
    """Of its dead letter: by whom it was dropped, or edited and `sent_as` another task, and why."""

    at: str
    by: str
    why: str
    sent_as: UUID | None


@dataclass(frozen=True)
class Story:
    """See `client.Status` for the states. `attempts` are those that failed, the oldest first, `returns` its returns
    from the dead letters in between, `removals` what else became of those; `deaths` the workers that died with it, or
    lost it, since the last return.
    `progress`, from 0 to 1, and `text` are what the handler says while it runs. What is None is not known, or has not
    happened."""

    id: UUID
    state: State
    kind: str | None
    sent_at: datetime | None
    attempts: tuple[Attempt, ...]
    returns: tuple[Return, ...]
    deaths: tuple[Attempt, ...]
    worker: str | None
    attempt: int
    since: datetime | None
    next_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    error: str | None
    result: Any
    cancel: str | None = None
    """Of one that runs, and is to stop: by whom, and why."""
    progress: float | None = None
    text: str = ""
    why: str = ""
    """Of one whose handler does not run, while something is amiss with its worker: what."""
    removals: tuple[Removal, ...] = ()

    @property
    def removal(self) -> Removal | None:
        """The last one, unless a letter was sent back after it."""
        last = self.removals[-1] if self.removals else None
        return None if last is None or (self.returns and self.returns[-1].at > last.at) else last


async def tell_removal(ledger: Ledger, letter: Letter, by: str, why: str, sent_as: UUID | None = None) -> None:
    """Have the ledger say of a dead task what becomes of its letter: once, however often that is told. It comes before
    the letter is taken away: who was killed in between, and does it again, finds the letter. Raises LedgerUnreachable,
    LedgerLost."""
    try:
        task_id = UUID(letter.id)
    except ValueError:  # its body says none
        return
    if letter.burial is not None:  # else no task died with it
        new_id = None if sent_as is None else str(sent_as)
        said = "; its letter was dropped" if new_id is None else f"; edited, and sent as {new_id}"
        line = {"removed": now(), "by": by[:TEXT_LIMIT], "why": why[:TEXT_LIMIT], "sent_as": new_id}
        await asked(ledger, partial(ledger.tell, task_id, letter.burial, said, json.dumps(line) + "\n"))


async def story(ledger: Ledger, task_id: UUID) -> Story:
    """The story of a task; of one that the ledger knows nothing of, the state `unknown` and nothing else. Raises
    LedgerUnreachable."""
    held, why = None, ""
    try:
        entry = await ledger.entry(task_id)
        status, told = status_of(task_id, entry), [] if entry is None else _told(entry)
        if status.state == "running":
            heard = await heard_of(ledger, status.worker or "")
            held = in_hand(heard, task_id, status.attempt)
            why = "" if held is not None else why_held_up(heard)
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error
    return Story(
        id=task_id,
        state=status.state,
        kind=status.kind,
        sent_at=None if entry is None else time_of(entry.created_at),
        attempts=tuple(one for one in told if isinstance(one, Attempt)),
        returns=tuple(one for one in told if isinstance(one, Return)),
        deaths=() if entry is None else tuple(_deaths(entry)),
        worker=status.worker,
        attempt=status.attempt,
        since=None if entry is None else time_of(entry.claimed_at),
        next_at=status.next_at,
        finished_at=None if entry is None else time_of(entry.finished_at),
        reason=status.reason,
        error=status.error,
        result=None if entry is None or entry.result is None else from_json(entry.result),
        cancel=None if entry is None or entry.cancel is None else entry.cancel.partition(": ")[2],
        progress=None if held is None else held.progress,
        text="" if held is None else held.text,
        why=why,
        removals=tuple(one for one in told if isinstance(one, Removal)),
    )


def _told(entry: Entry) -> list[Attempt | Return | Removal]:
    found: list[Attempt | Return | Removal] = []
    for line in (entry.story or "").splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # the first line that is kept may be the end of one
            continue
        if "sent_back" in told:
            found.append(Return(told["sent_back"], told["by"], told["why"]))
        elif "removed" in told:
            sent_as = None if told["sent_as"] is None else UUID(told["sent_as"])
            found.append(Removal(told["removed"], told["by"], told["why"], sent_as))
        else:
            found.append(Attempt(told["attempt"], told["at"], told["worker"], told["error"], told.get("trace", "")))
    return found


def _deaths(entry: Entry) -> list[Attempt]:
    crashes = Claimed.read(0, entry.crashes, 0).crashes or ()
    return [
        Attempt(number, crash.noticed_at, crash.worker, "died, or lost its claim")
        for number, crash in enumerate(crashes, 1)
    ]
