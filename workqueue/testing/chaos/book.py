"""What a run knows of what it did: producers and faults write it down, and the judgement goes by it."""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from workqueue.contract import Receive
from workqueue.testing.chaos.load import Task
from workqueue.testing.evidence import Evidence, Letter, Life, Span
from workqueue.testing.processes import Note
from workqueue.testing.scripts import Operation


@dataclass
class Book:
    """The fields are those of `Evidence`. `own`: it is known of each task how often it fails."""

    operations: Mapping[str, Operation]
    own: bool
    given: dict[str, float] = field(default_factory=dict)
    receives: dict[str, Receive] = field(default_factory=dict)
    failures: dict[str, int | None] = field(default_factory=dict)
    poison: dict[str, str] = field(default_factory=dict)
    curable: dict[str, str] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    deadly: set[str] = field(default_factory=set)
    flooded: set[str] = field(default_factory=set)
    letters: list[Letter] = field(default_factory=list)
    moved: list[Letter] = field(default_factory=list)
    called_off: dict[str, float | None] = field(default_factory=dict)
    paused: list[tuple[str, Span]] = field(default_factory=list)
    deleted: int = 0
    unhealthy: list[Span] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """With producers, each in a line."""

    def note_given(self, task: Task) -> None:
        self.given.setdefault(task.id, time.time())
        self.receives[task.id] = self.operations[task.operation].receive
        if self.own:
            self.failures[task.id] = task.failures

    def note_poison(self, body: bytes, headers: Mapping[str, Any], operation: str) -> str:
        """The id for this message, which breaks the contract of this operation."""
        id = f"poison-{len(self.poison) + 1}"
        self.poison[id] = f"{body[:100]!r} headers {headers}"
        self.receives[id] = self.operations[operation].receive
        if headers:
            self.curable[id] = json.loads(body)["id"]
            self.receives[self.curable[id]] = self.receives[id]
        return id

    def letter(self, message: AbstractIncomingMessage, operation: str) -> Letter:
        """What was found among the dead letters of this operation."""
        id = str(message.message_id)
        if id not in self.poison:
            with suppress(ValueError, TypeError, KeyError):
                id = str(json.loads(message.body)["id"])
        return Letter(id, message.headers, operation)

    @asynccontextmanager
    async def unusable(self) -> AsyncIterator[None]:
        """Something that all depend on is out of use meanwhile."""
        since = time.time()
        try:
            yield
        finally:
            self.unhealthy.append((since, time.time()))

    def missing(self, notes: Sequence[Note]) -> set[str]:
        """What was sent, and is neither done nor dead."""
        ended = {note.id for note in notes if note.word == "end"} | {letter.id for letter in self.letters}
        ended |= {poison for poison, task in self.curable.items() if task in ended} | self.called_off.keys()
        return (self.given.keys() | self.poison.keys()) - ended

    def evidence(self, notes: Sequence[Note], lives: Sequence[Life], *, left_over: int, stuck: bool) -> Evidence:
        return Evidence(
            given=self.given, receives=self.receives, failures=self.failures, poison=self.poison, curable=self.curable,
            notes=notes, letters=self.letters, lives=lives, unhealthy=self.unhealthy, left_over=left_over, stuck=stuck,
            own_failures=not self.own, odd=frozenset(self.odd), deadly=frozenset(self.deadly),
            flooded=frozenset(self.flooded), moved=self.moved, deleted=self.deleted, called_off=self.called_off,
            paused=self.paused,
        )  # fmt: skip
