"""A dead letter whose payload is mended: sent as a new task, and then taken from the dead letters."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from pydantic_core import from_json

from workqueue import codec, kinds
from workqueue.amqp.connection import Link
from workqueue.amqp.held import hold
from workqueue.amqp.publisher import Publisher
from workqueue.client.asking import asked
from workqueue.codec import Undecodable
from workqueue.errors import TaskInvalid, WorkQueueError
from workqueue.ledger import Sent
from workqueue.observe.tracing import open_tracing, redriving
from workqueue.ops.audit import operator
from workqueue.ops.desk import Desk
from workqueue.ops.letters import Opened, key_of
from workqueue.ops.moving import CONFIRM_S
from workqueue.ops.project import Project
from workqueue.ops.story import tell_removal
from workqueue.tasks.copies import now

EDITS = UUID("0d1b9b1e-7c55-5b0e-8f0a-4b8f0b6b2d35")
"""The namespace of the ids of mended tasks. Never changed: an edit that is repeated must be the same task."""


class LetterGone(WorkQueueError):
    """The letter is not there any more: somebody else has moved it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"letter {key} is not there any more: somebody else has moved it")
        self.key = key


@dataclass(frozen=True)
class Edit:
    """What is to be sent in the place of a letter: `id` is made of the old one and the new payload, so that the same
    edit is the same task however often it is asked for."""

    letter: Opened
    id: UUID
    kind: str
    payload: Any
    body: bytes


def edit(project: Project, letter: Opened, changes: dict[str, Any]) -> Edit:
    """The letter's task with these fields of its payload changed; one that is None is left out.

    Raises TaskInvalid if the body is no task to begin with, or today's contract refuses the result.
    """
    try:
        value = from_json(letter.body)
        payload = dict(value["payload"])
    except (ValueError, TypeError, KeyError) as error:
        raise TaskInvalid(letter.letter.id, "its body is no task with a payload of fields: send it anew") from error
    payload.update(changes)
    payload = {name: given for name, given in payload.items() if given is not None}
    receive = project.receives[letter.letter.queue]
    draft = {"id": str(EDITS), "created_at": now(), **value, "payload": payload}
    name = f"{letter.letter.id or letter.letter.key} {codec.digest(json.dumps(draft).encode()).hex()}"
    task_id = uuid5(EDITS, name)
    reader = project.codec(receive)
    task = reader.from_value(draft | {"id": str(task_id)})
    if isinstance(task, Undecodable):
        raise TaskInvalid(letter.letter.id, task.error)
    kind = receive.kind_of(task.payload) or kinds.UNTOLD
    return Edit(letter, task_id, kind, payload, reader.encode(task))


async def carry_out(project: Project, desk: Desk, name: str, wanted: Edit, *, why: str) -> None:
    """Publish the new task, confirmed, tell the ledger of both, and take the letter away. Raises LetterGone, NotSent,
    SendUnknown; as `Desk`.

    Killed in between, the letter is there still; the same edit again sends the same task, which is done once.
    """
    letter, tracer = wanted.letter.letter, open_tracing(project.settings, name)
    receive = project.receives[letter.queue]
    link = Link(project.settings, f"{name} publishes")
    try:
        async with desk.for_itself(receive.dead.name), hold(project.settings, receive.dead.name, name) as held:
            async for arrived in held:
                if key_of(arrived) == letter.key:
                    break
            else:
                raise LetterGone(letter.key)
            task_id, size, headers = str(wanted.id), len(wanted.body), wanted.letter.headers
            with redriving(tracer, receive, wanted.kind, task_id, size, headers) as context:
                await Publisher(link, name).send(
                    receive.queue,
                    wanted.body,
                    message_id=task_id,
                    message_type=receive.message.type,
                    content_type=receive.message.content_type,
                    headers={"x-contract": project.contract_of(receive).version, **context},
                    deadline_s=CONFIRM_S,
                )
            sent = Sent(wanted.id, wanted.kind, codec.digest(wanted.body))
            await asked(desk.ledger, partial(desk.ledger.record, [sent]))
            await tell_removal(desk.ledger, letter, operator(), why, wanted.id)
            await desk.note("dead edit", why, {"letter": letter.id or letter.key, "task": task_id})
            await held.done(arrived)
    finally:
        await link.end()
