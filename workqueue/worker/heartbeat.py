"""What a worker tells of itself, for those who operate it: a row in the ledger, written every two seconds."""

import asyncio
import json
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID, uuid4

from workqueue.contract import Contract
from workqueue.errors import LedgerLost
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.board import GONE_S, RECENT_S
from workqueue.observe.counting import Counting
from workqueue.observe.health import Health
from workqueue.tasks.events import Dead, Done, HandedBack, Retrying
from workqueue.worker.crew import Crew, Job

log = logging.getLogger(__name__)

BEAT_S = 2.0
AGAIN_S = 4.0  # after a failure: a role without the privilege would cost the ledger its connection each time
END_S = 1.0
TOLD_AT = 2  # failures in a row: a lock of another process's is not worth a line
RATE_S = 60.0  # over which the rate is taken
COUNTED: dict[type, str] = {Done: "done", Retrying: "failed", Dead: "dead", HandedBack: "handed_back"}


@dataclass
class Heartbeat:
    """Tells the ledger's board what this worker is, what it has done, and what it has in hand.

    A board that can't be written to is said once, and is no reason to stop: no task depends on it.
    """

    name: str
    contract: Contract
    jobs: Collection[Job]
    crew: Crew
    counting: Counting
    ledger: Ledger
    health: Health
    id: UUID = field(default_factory=uuid4)
    _began: float = field(default_factory=time.time)
    _done: deque[tuple[float, Counter[str]]] = field(default_factory=lambda: deque(maxlen=int(RATE_S / BEAT_S) + 1))
    _failures: int = 0

    async def beat(self) -> None:
        """Until it is cancelled. Raises LedgerLost."""
        with suppress(LedgerBusy):
            await self._take_over(GONE_S)
        while True:  # noqa: ASYNC110  # nothing else tells when
            await asyncio.sleep(BEAT_S if await self._put() else AGAIN_S)

    async def _take_over(self, silent_s: float) -> None:
        """One of this name that died on this host, silent for longer than this, is replaced by this one."""
        for seen in await self.ledger.board.seen(RECENT_S):
            if (
                seen.name == self.name
                and seen.seen_s > silent_s
                and json.loads(seen.told)["host"] == socket.gethostname()
            ):
                await self.ledger.board.remove(seen.id)

    async def _put(self) -> bool:
        try:
            await self.ledger.board.put(self.id, self.name, json.dumps(self.told()))
        except LedgerBusy as error:
            self._failures += 1
            if self._failures == TOLD_AT:
                log.warning("%s  can't tell the ledger that it works: %s", self.name, error)
            return False
        self._failures = 0
        return True

    async def end(self) -> None:
        """What ends well leaves nothing behind, nor what it has replaced: one that was started anew at once could not
        be told from one that lives. What dies is seen as long gone. A ledger that is silent holds up no end."""
        with suppress(LedgerBusy, LedgerLost, TimeoutError):
            async with asyncio.timeout(END_S):
                await self.ledger.board.remove(self.id)
                await self._take_over(time.time() - self._began)

    def told(self) -> dict[str, Any]:
        now, rates = time.time(), self._rates()
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": installed(),
            "contract": {"version": self.contract.version, "digest": self.contract.digest},
            "state": self._state(),
            "why": "; ".join(self.health.not_ready()),
            "at": round(now, 3),
            "started_at": round(self._began, 3),
            "queues": {
                job.receive.queue.name: {
                    "concurrency": job.concurrency,
                    "paused": job.receive.queue.name in self.health.paused,
                    "rate": rates[job.receive.operation],
                    "waiting": self.crew.waiting(job.receive.operation),
                    "settling": self.crew.settling(job.receive.operation),
                    **self._counts(job.receive.operation),
                }
                for job in self.jobs
            },
            "in_hand": [
                {
                    "id": str(scope.task_id), "kind": scope.kind, "operation": scope.holder.operation,
                    "attempt": scope.attempt, "since": round(now - scope.ran_s(), 3),
                    **scope.progress.shown(),
                }
                for scope in self.crew.running()
            ],
        }  # fmt: skip

    def _state(self) -> str:
        if self.crew.draining:
            return "stopping"
        if self.health.starting:
            return "starting"
        queues = {job.receive.queue.name for job in self.jobs}
        shut = self._shut()
        if self.health.ledger_is_silent or (shut and queues <= shut | self.health.paused):
            return "waiting"
        return "paused" if queues <= self.health.paused else "working"

    def _shut(self) -> set[str]:
        """The queues of which it can take no task, whatever operators say: they are not consumed, or each of their
        consumers holds what it can't settle."""
        full = {job.receive.queue.name for job in self.jobs if self.crew.late(job.receive.operation) >= job.concurrency}
        return full.union(self.health.not_consumed())

    def _counts(self, operation: str) -> dict[str, int]:
        return {word: self.counting.of[operation, what] for what, word in COUNTED.items()}

    def _rates(self) -> dict[str, float]:
        """Tasks done per second, by operation, over the last minute or as long as it has worked."""
        now = time.monotonic()
        done = Counter({job.receive.operation: self.counting.of[job.receive.operation, Done] for job in self.jobs})
        self._done.append((now, done))
        began, before = self._done[0]
        took_s = now - began
        return {name: round((number - before[name]) / took_s, 2) if took_s else 0.0 for name, number in done.items()}


@cache
def installed() -> str:
    """The version of this package; "source" where it is not installed."""
    try:
        return version("asyncapi-workqueue")
    except PackageNotFoundError:
        return "source"
