"""The dead-letter desk: letters read, and sent back to their tasks or thrown away."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from workqueue.amqp.compare import compare
from workqueue.amqp.held import for_itself, hold
from workqueue.amqp.shared import same_ledger
from workqueue.contract import Receive
from workqueue.errors import LedgerUnreachable, WorkQueueError
from workqueue.ledger import Ledger
from workqueue.ops.audit import note
from workqueue.ops.letters import Filter, Letter, Opened, Reader
from workqueue.ops.moving import LEAVE_S, Action, Moved, Moving
from workqueue.ops.project import Project

TELL_EVERY = 100
MOST_RETURNS = 10  # of one letter: who has died so often dies again
NEVER = datetime.min.replace(tzinfo=UTC)

Progress = Callable[[int, int], object]
"""Gets how many letters are through, of how many."""


@dataclass(frozen=True)
class Selection:
    """The letters that an action is for, frozen: those of `letters`, and none that comes later.

    `matched` is how many the filter took; `refused` has those of them that are not moved, with why. `absent` are ids
    that the filter names and no letter that it took has.
    """

    action: Action
    matched: int
    letters: tuple[Letter, ...]
    refused: tuple[tuple[Letter, str], ...]
    absent: tuple[str, ...] = ()


class Desk:
    """For the dead letters of a project. `name` is this process in the broker's lists. `missed` counts the letters that
    were there, as the broker said, and did not come to be read."""

    def __init__(self, project: Project, ledger: Ledger, name: str, progress: Progress = lambda done, of: None) -> None:
        self._project, self.ledger, self._name, self._progress = project, ledger, name, progress
        self.missed = 0

    async def letters(self, wanted: Filter) -> list[Letter]:
        """Those that are meant, the oldest first. Raises QueueMissing, QueueHeld, BrokerUnreachable, LedgerDiffers."""
        found = []
        for queue, reader in self._readers(wanted):
            async with self.for_itself(queue), hold(self._project.settings, queue, self._name) as held:
                async for arrived in held:
                    letter = reader.letter(arrived)
                    if wanted.takes(letter):
                        found.append(letter)
                    self._tell(held.read, held.ready)
                self.missed += held.ready - held.read
        return sorted(found, key=lambda letter: letter.died_at or NEVER)

    async def open(self, wanted: Filter) -> list[Opened]:
        """As `letters`, with all of each."""
        found = []
        for queue, reader in self._readers(wanted):
            async with self.for_itself(queue), hold(self._project.settings, queue, self._name) as held:
                async for arrived in held:
                    if wanted.takes(reader.letter(arrived)):
                        found.append(reader.opened(arrived))
                    self._tell(held.read, held.ready)
        return found

    async def select(self, action: Action, wanted: Filter, *, most: int | None = None, force: bool) -> Selection:
        """What an action is for. Not sent back, unless by `force`, is what today's contract refuses, since it would
        be a dead letter again at once, and what was sent back many times."""
        chosen, refused = list[Letter](), list[tuple[Letter, str]]()
        matched = await self.letters(wanted)
        for letter in matched:
            why = None if force or action == "drop" else _objection(letter)
            if why is not None:
                refused.append((letter, why))
            elif most is None or len(chosen) < most:
                chosen.append(letter)
        absent = wanted.ids - {letter.id for letter in matched}
        return Selection(action, len(matched), tuple(chosen), tuple(refused), tuple(sorted(absent)))

    async def move(self, selection: Selection, moved: Moved, *, per_s: float | None = None) -> None:
        """Carry it out, and keep it in the ledger's audit. What becomes of it is in `moved`, as what cuts it short is;
        so it is where it is cancelled. Raises LedgerUnreachable before anything is moved."""
        why, letters = moved.why, dict[str, list[Letter]]()
        for letter in selection.letters:
            letters.setdefault(letter.key, []).append(letter)
        count, through = len(selection.letters), False
        moving = Moving(self._project, self.ledger, self._name, moved, partial(self._tell, of=count))
        await self.note(f"dead {selection.action} begins", why, {"letters": count})
        try:
            for queue, reader in self._readers(Filter(queues=frozenset(letter.queue for letter in selection.letters))):
                await self._all_of(moving, queue, reader, letters, per_s)
            through = True
        except WorkQueueError as error:
            moved.ended_by = error
        finally:
            found = moved.moved + moved.unsure + len(moved.left)
            moved.gone = count - found if through else 0
            told = {"moved": moved.moved, "unsure": moved.unsure, "left": count - found - moved.gone + len(moved.left)}
            with suppress(LedgerUnreachable):
                await self.note(f"dead {selection.action} ends", why, told | {"gone": moved.gone})

    async def _all_of(
        self, moving: Moving, queue: str, reader: Reader, letters: dict[str, list[Letter]], per_s: float | None
    ) -> None:
        """A queue that may be held again and again, each time a delivery, is left to others in between."""
        again = leaves = per_s is not None and await self._is_as_stated(queue)
        while True:
            async with self.for_itself(queue):
                leave_s = await moving.some_of(queue, reader, letters, per_s, leaves=leaves)
            if leave_s is not None:
                again = True
            elif again and any(letters.values()):  # a count that is asked for too soon may read 0
                leave_s, again = LEAVE_S, False
            else:
                return
            await asyncio.sleep(leave_s)

    async def _is_as_stated(self, queue: str) -> bool:
        """Whether the dead letters' queue has the contract's delivery limit, as far as can be seen."""
        dead = [receive.dead for receive in self._project.receives.values() if receive.dead.name == queue][:1]
        _, (found,) = await compare(self._project.settings, dead, self._name)
        return found.exists is True and not found.differences and found.unseen is None

    async def note(self, what: str, why: str, told: Mapping[str, object]) -> None:
        """Keep in the ledger that somebody did this. Raises LedgerUnreachable."""
        await note(self.ledger, what, why, told)

    def _readers(self, wanted: Filter) -> list[tuple[str, Reader]]:
        """One for each dead-letter queue."""
        by_queue: dict[str, list[Receive]] = {}
        for receive in self._project.receives.values():
            by_queue.setdefault(receive.dead.name, []).append(receive)
        return [
            (queue, Reader((receive, self._project.codec(receive)) for receive in receives))
            for queue, receives in by_queue.items()
            if not wanted.queues or any(receive.queue.name in wanted.queues for receive in receives)
        ]

    def for_itself(self, queue: str) -> AbstractAsyncContextManager[None]:
        """Have a dead-letter queue for this process alone, for the length of the block. Raises as `letters`."""
        tasks = [receive.queue.name for receive in self._project.receives.values() if receive.dead.name == queue]
        checks = same_ledger(self.ledger, tasks, self._name)
        return for_itself(self._project.settings, queue, self._name, *checks)

    def _tell(self, done: int, of: int) -> None:
        if done % TELL_EVERY == 0 or done == of:
            self._progress(done, of)


def _objection(letter: Letter) -> str | None:
    if letter.problem is not None:
        return f"today's contract refuses it: {letter.problem}"
    if letter.returns >= MOST_RETURNS:
        return f"it was sent back {letter.returns} times"
    return None
