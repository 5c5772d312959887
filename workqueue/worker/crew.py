"""The guards of all that a worker does, as one, and the consumers that feed them."""

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from workqueue.amqp.wire import Wire
from workqueue.application import operation_of
from workqueue.contract import Receive
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.process.contexts import apart
from workqueue.tasks.attempt import Handler
from workqueue.tasks.events import Stopped
from workqueue.tasks.processor import Guard
from workqueue.tasks.received import Runtime
from workqueue.tasks.scope import HeldClaim, Scope
from workqueue.tasks.stack import describe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A receive operation, its handler, and how many tasks of it at a time."""

    receive: Receive
    handler: Handler[Any, Any]
    concurrency: int


class Crew:
    """The guards of all that this worker does, as one."""

    def __init__(self) -> None:
        self._guards: dict[str, Guard[Any]] = {}
        self.draining = False

    def consumers(self, application: type[Any], jobs: Collection[Job], runtime: Runtime, wire: Wire) -> list[list[Any]]:
        """Competing consumers of each job, as many as it says: each handles a message at a time."""
        crews = []
        for job in jobs:
            guard = Guard[Any](job.handler, job.receive, runtime)
            self._guards[job.receive.operation] = guard
            consumers = [
                operation_of(application(wire).consumer, job.receive.operation) for _ in range(job.concurrency)
            ]
            for consumer in consumers:
                consumer(apart(guard.take))  # a consumer does one task after the other
            crews.append(consumers)
        return crews

    def running(self) -> list[Scope]:
        """For any thread: a set is copied in one step."""
        return [scope for guard in self._guards.values() for scope in list(guard.execution.running)]

    def claims_unrecorded(self) -> list[HeldClaim]:
        """For any thread, as above."""
        return [claim for guard in self._guards.values() for claim in list(guard.execution.ends.open.values())]

    def waiting(self, operation: str) -> int:
        """How many messages wait in this process while a task runs alone."""
        guard = self._guards.get(operation)
        return 0 if guard is None else guard.waiting

    def settling(self, operation: str) -> int:
        """How many messages neither wait nor run: they are claimed just now, or settled."""
        guard = self._guards.get(operation)
        return 0 if guard is None else len(guard.in_hand) - guard.waiting - len(guard.execution.running)

    def late(self, operation: str) -> int:
        """How many messages can't be settled."""
        guard = self._guards.get(operation)
        return 0 if guard is None else guard.settling.copies.late() + guard.ask.late()

    def stuck(self) -> list[str]:
        """The messages that can't be settled, and why, in words. For any thread."""
        guards = list(self._guards.values())
        return [said for guard in guards for said in (guard.settling.copies.stuck(), guard.ask.stuck()) if said]

    async def save(self, ledger: Ledger) -> None:
        """Save the latest checkpoints of what runs. One whose row is locked is no reason to miss the others."""
        for scope in self.running():
            with suppress(LedgerBusy):
                await scope.progress.save(ledger, scope.task_id, scope.fence)

    def held_s(self) -> list[tuple[str, float]]:
        """How long each message has been in hand, with its operation. For any thread."""
        guards = list(self._guards.items())
        return [(operation, age_s) for operation, guard in guards for age_s in guard.in_hand.ages_s()]

    def asked_s(self) -> float:
        """How long the ledger has owed an answer; 0 for none. For any thread."""
        return max((guard.ask.silent_s() for guard in list(self._guards.values())), default=0.0)

    @property
    def in_hand(self) -> int:
        return sum(len(guard.in_hand) for guard in self._guards.values())

    def drain(self) -> None:
        self.draining = True
        for guard in self._guards.values():
            guard.drain()

    def cut_off(self, is_cut_off: bool) -> None:
        """Whether the ledger is out of reach: what is not claimed goes back then."""
        for guard in self._guards.values():
            guard.claims.cut_off(is_cut_off)

    def end(self) -> None:
        for guard in self._guards.values():
            guard.end()

    async def idle(self, within_s: float) -> bool:
        """Wait until nothing is in hand. False: something still was after this time."""
        return all(await asyncio.gather(*(guard.idle(within_s) for guard in self._guards.values())))

    def account(self, name: str, more: int = 0) -> Stopped:
        """What became of the messages; `more` are on their way back."""
        finished = sum(guard.settling.finished for guard in self._guards.values())
        return Stopped(name, finished, sum(guard.settling.handed_back for guard in self._guards.values()) + more)


async def start(crews: list[list[Any]]) -> bool:
    """Have all of them consume. The first of each queue connects, and declares, one after the other: a broker may
    stumble over who declares a queue that another is just making."""
    for first, *_ in crews:
        await first.start()
    starting = [asyncio.ensure_future(consumer.start()) for _, *others in crews for consumer in others]
    try:
        await asyncio.gather(*starting)
    finally:
        for one in starting:
            one.cancel()
    return True


async def stop(crews: list[list[Any]], within_s: float | None = None) -> None:
    """Cancel what the consumers still do. A handler may not let itself be cancelled."""
    stopping = [asyncio.ensure_future(consumer.stop()) for consumer in chain.from_iterable(crews)]
    stopped, _ = await asyncio.wait(stopping, timeout=within_s)
    for consumer in stopped:
        if not consumer.cancelled() and (error := consumer.exception()) is not None:
            log.warning("a consumer did not stop well: %s", describe(error))
