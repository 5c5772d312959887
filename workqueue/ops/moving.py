"""Letters on their way out of a dead-letter queue. Each is in exactly one place.

A letter is held, unacked; it is published, and confirmed, before it is acked. Killed in between, it is in both places,
and the ledger knows it by its burial: whichever copy comes second is no task any more. Of one that is dropped the
ledger is told before the ack. So what was cut off is asked for again, and doubles nothing.
"""

import asyncio
import json
import math
import time
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
from workqueue.errors import BrokerUnreachable, LedgerLost, LedgerUnreachable, NotSent, SendUnknown, WorkQueueError
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.observe.tracing import open_tracing, redriving
from workqueue.ops.letters import Letter, Reader, key_of, properties_of
from workqueue.ops.project import Project
from workqueue.ops.story import tell_removal
from workqueue.tasks.copies import now
from workqueue.tasks.story import SENT_BACK, sent_back, without_brokers

AT_ONCE = 100  # letters that are sent back and not confirmed
CONFIRM_S = 30.0
HOLD_S = 3.0  # for which a queue is held at most, from the first letter on, where they are to go slowly
LEAVE_S = 1.0  # and then left to others, who would see nothing in it

Action = Literal["redrive", "drop"]


@dataclass
class Moved:
    """What became of the letters that an action was for. `left` has those that stay, with why.

    `unsure` are those that were sent back, or acked, and may be among the dead letters still: asked for again, the same
    action doubles nothing. `gone`: somebody else had moved them before. `ended_by` is what cut the action short.
    """

    action: Action
    by: str
    why: str
    moved: int = 0
    unsure: int = 0
    gone: int = 0
    left: list[tuple[Letter, str]] = field(default_factory=list)
    ended_by: WorkQueueError | None = None


class Moving:
    """Carries out an action, and counts in `moved`. `tell` gets how many letters are through."""

    def __init__(
        self, project: Project, ledger: Ledger, name: str, moved: Moved, tell: Callable[[int], object]
    ) -> None:
        self._project, self._ledger, self._name, self._moved, self._tell = project, ledger, name, moved, tell
        self._tracer = open_tracing(project.settings, name)

    async def some_of(
        self, queue: str, reader: Reader, letters: dict[str, list[Letter]], per_s: float | None, *, leaves: bool
    ) -> float | None:
        """Move those of the letters that lie in the queue, which is this process's own meanwhile, and take them from
        `letters`, where each key has as many as there are of the same.

        With `per_s`, so many a second. If it `leaves` the queue to others, this takes some seconds, and the answer is
        for how many more it is left. None: all that lie in it are through. Raises QueueMissing, BrokerUnreachable.
        """
        link = Link(self._project.settings, f"{self._name} publishes")
        self._publisher, self._free = Publisher(link, self._name), asyncio.Semaphore(AT_ONCE)
        try:
            async with hold(self._project.settings, queue, self._name) as held:
                try:
                    leave_s = await self._pass(held, reader, letters, per_s, HOLD_S if leaves else math.inf)
                    await held.end()
                finally:  # of the last acks nobody knows
                    self._moved.moved -= held.untaken
                    self._moved.unsure += held.untaken
            return leave_s
        finally:
            await link.end()

    async def _pass(
        self, held: Held, reader: Reader, letters: dict[str, list[Letter]], per_s: float | None, hold_s: float
    ) -> float | None:
        moving: set[asyncio.Task[None]] = set()
        pause_s, until_s = 1 / per_s if per_s else 0.0, math.inf
        try:
            async for arrived in held:
                same = letters.get(key_of(arrived))
                if not same:
                    continue
                letter = same.pop()
                await self._free.acquire()
                if self._moved.ended_by is not None:
                    raise self._moved.ended_by
                task = asyncio.ensure_future(self._move(held, reader.receive_of(arrived), arrived, letter))
                moving.add(task)
                task.add_done_callback(moving.discard)
                if pause_s:
                    now_s = time.monotonic()
                    until_s = min(until_s, now_s + hold_s)
                    if now_s + pause_s > until_s:
                        return max(pause_s, LEAVE_S)
                    await asyncio.sleep(pause_s)
            return None
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
            else:
                await tell_removal(self._ledger, letter, moved.by, moved.why)
            await held.done(arrived)
            moved.moved += 1
        except SendUnknown:
            moved.unsure += 1
        except (NotSent, BrokerUnreachable) as error:
            if was_sent:
                moved.unsure += 1
            else:
                moved.left.append((letter, str(error)))
        except (LedgerUnreachable, LedgerLost) as error:  # nor would the ledger be told of the others
            moved.left.append((letter, str(error)))
            moved.ended_by = error
        finally:
            self._free.release()
            self._tell(moved.moved + moved.unsure + len(moved.left))

    async def _send_back(self, receive: Receive, arrived: Arrival, letter: Letter) -> None:
        """It is a task again, with its story, of which the worker that gets it makes history."""
        properties = properties_of(arrived)
        told = sent_back({SENT_BACK: {"by": self._moved.by, "why": self._moved.why}})
        headers = properties.headers
        with redriving(self._tracer, receive, letter.kind, letter.id, arrived.size, headers) as context:
            await self._publisher.send(
                receive.queue,
                arrived.body,
                message_id=properties.message_id,
                message_type=receive.message.type,
                content_type=properties.content_type,
                headers={**without_brokers(headers), **context, SENT_BACK: told},
                deadline_s=CONFIRM_S,
                original=properties,
            )
        if letter.burial is not None and letter.problem is None:
            # Its status is true from now on; where this fails, the worker that gets the task does it.
            with suppress(LedgerBusy, LedgerLost):
                line = json.dumps({"sent_back": now()} | told) + "\n"
                await self._ledger.revive(UUID(letter.id), letter.burial, told=line)
