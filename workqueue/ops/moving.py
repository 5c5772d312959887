"""Letters on their way out of a dead-letter queue. Each is in exactly one place.

A letter is held, unacked; it is published, and confirmed, before it is acked. Killed in between, it is in both places,
and the ledger knows it by its burial: whichever copy comes second is no task any more. So what was cut off is asked for
again, and doubles nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from workqueue.amqp.connection import Link
from workqueue.amqp.frames import Arrival
from workqueue.amqp.held import Held, hold
from workqueue.amqp.publisher import Publisher
from workqueue.contract import Receive
from workqueue.delivery import NO_PROPERTIES
from workqueue.errors import BrokerUnreachable, LedgerLost, NotSent, SendUnknown, WorkQueueError
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ops.letters import Letter, Reader, key_of
from workqueue.ops.project import Project
from workqueue.tasks.story import without_brokers

AT_ONCE = 100  # letters that are sent back and not confirmed
CONFIRM_S = 30.0

Action = Literal["redrive", "drop"]


@dataclass
class Moved:
    """What became of the letters that an action was for. `left` has those that stay, with why.

    `sent` are those that were sent back and may be among the dead letters still: asked for again, the same action
    doubles nothing. `gone`: somebody else had moved them before. `ended_by` is what cut the action short.
    """

    action: Action
    moved: int = 0
    sent: int = 0
    gone: int = 0
    left: list[tuple[Letter, str]] = field(default_factory=list)
    ended_by: WorkQueueError | None = None


class Moving:
    """Carries out an action, and counts in `moved`. `tell` gets how many letters are through."""

    def __init__(
        self, project: Project, ledger: Ledger, name: str, moved: Moved, tell: Callable[[int], object]
    ) -> None:
        self._project, self._ledger, self._name, self._moved, self._tell = project, ledger, name, moved, tell

    async def all_of(self, queue: str, reader: Reader, letters: dict[str, list[Letter]], per_s: float | None) -> None:
        """Move those of the letters that lie in the queue, which is this process's own meanwhile, and take them from
        `letters`, where each key has as many as there are of the same. Raises QueueMissing, BrokerUnreachable."""
        link = Link(self._project.settings, f"{self._name} publishes")
        self._publisher, self._free = Publisher(link, self._name), asyncio.Semaphore(AT_ONCE)
        try:
            async with hold(self._project.settings, queue, self._name) as held:
                await self._pass(held, reader, letters, per_s)
        finally:
            await link.end()

    async def _pass(self, held: Held, reader: Reader, letters: dict[str, list[Letter]], per_s: float | None) -> None:
        moving: set[asyncio.Task[None]] = set()
        try:
            async for arrived in held:
                same = letters.get(key_of_arrived(arrived))
                if not same:
                    continue
                letter = same.pop()
                await self._free.acquire()
                task = asyncio.ensure_future(self._move(held, reader.receive_of(arrived), arrived, letter))
                moving.add(task)
                task.add_done_callback(moving.discard)
                if per_s is not None:
                    await asyncio.sleep(1 / per_s)
        finally:
            if moving:
                await asyncio.wait(moving)

    async def _move(self, held: Held, receive: Receive, arrived: Arrival, letter: Letter) -> None:
        moved, was_sent = self._moved, False
        try:
            if not held.is_open:
                raise BrokerUnreachable(letter.queue, "the connection was lost before it was sent")
            if moved.action == "redrive":
                await self._send_back(receive, arrived, letter)
                was_sent = True
            await held.done(arrived)
            moved.moved += 1
        except SendUnknown:
            moved.sent += 1
        except (NotSent, BrokerUnreachable) as error:
            if was_sent:
                moved.sent += 1
            else:
                moved.left.append((letter, str(error)))
        finally:
            self._free.release()
            self._tell(moved.moved + moved.sent + len(moved.left))

    async def _send_back(self, receive: Receive, arrived: Arrival, letter: Letter) -> None:
        """It is a task again, with its story, of which the worker that gets it makes history."""
        properties = arrived.properties or NO_PROPERTIES
        await self._publisher.send(
            receive.queue,
            arrived.body,
            message_id=properties.message_id,
            message_type=receive.message.type,
            content_type=properties.content_type,
            headers=without_brokers(properties.headers),
            deadline_s=CONFIRM_S,
            original=properties,
        )
        if letter.burial is not None and letter.problem is None:
            with suppress(
                LedgerBusy, LedgerLost
            ):  # from now on its status is true; else the worker that gets it does this
                await self._ledger.revive(UUID(letter.id), letter.burial)


def key_of_arrived(arrived: Arrival) -> str:
    """As `Letter.key`."""
    properties = arrived.properties or NO_PROPERTIES
    return key_of(properties.message_id, properties.headers, arrived.body)
