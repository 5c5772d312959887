"""Copies of a message: to a delay queue, to the dead letters, back to the tasks. Each is confirmed when it returns."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from workqueue.contract import Contract, Queue, Receive, Rung
from workqueue.delivery import Delivery, Publisher
from workqueue.errors import NotSent, SendUnknown
from workqueue.patience import Patience
from workqueue.tasks.pending import Pending
from workqueue.tasks.policy import Bury
from workqueue.tasks.story import without_brokers

log = logging.getLogger(__name__)

COPY_RETRY_S = 1.0
STUCK_S = 5.0  # a queue that changes its leader takes less


class Copies:
    """Publishes a message's body, untouched, with its headers, changed as each method says."""

    def __init__(
        self, contract: Contract, receive: Receive, publisher: Publisher, worker: str, deadline_s: float
    ) -> None:
        self._version, self._receive = contract.version, receive
        self._publisher, self._worker, self._deadline_s = publisher, worker, deadline_s
        self._patience: dict[tuple[str, str], Patience] = {}  # by queue, and what copies to it wait for
        self._open, self._why = Pending(), ""

    def late(self) -> int:
        """How many messages have waited for long for their copies to be confirmed. For any thread."""
        return sum(age_s > STUCK_S for age_s in self._open.ages_s())

    def stuck(self) -> str:
        """How many are late, and why; empty for none. For any thread."""
        late, why = self.late(), self._why or "the broker has not confirmed their copies"
        return f"{late} of {self._receive.queue.name} can't be settled: {why}" if late else ""

    async def delay(self, arrived: Delivery, rung: Rung, headers: Mapping[str, Any] | None = None) -> None:
        """It comes back to the tasks after the rung's delay."""
        await self._send(arrived, rung.queue, self._receive.message.type, headers or {})

    async def hand_back(self, arrived: Delivery) -> None:
        """It is a task again at once. Not a requeue: the broker counts those, and gives up on what has too many
        (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling)."""
        await self._send(arrived, self._receive.queue, self._receive.message.type, {})

    async def bury(
        self, arrived: Delivery, why: Bury, attempts: list[dict[str, str]], more: Mapping[str, Any] | None = None
    ) -> None:
        """It is a dead letter, with its story."""
        story = {
            "x-reason": why.reason, "x-error": why.error, "x-queue": arrived.queue, "x-contract": self._version,
            "x-died-at": now(), "x-attempts": attempts[-self._receive.dead_max_attempts :],
        }  # fmt: skip
        await self._send(arrived, self._receive.dead, self._receive.dead_message_type, {**story, **(more or {})})

    async def _send(self, arrived: Delivery, queue: Queue, message_type: str, headers: Mapping[str, Any]) -> None:
        mine = self._open.begin()
        try:
            await self._until_confirmed(arrived, queue, message_type, headers)
            self._why = ""
        finally:
            self._open.end(mine)

    async def _until_confirmed(
        self, arrived: Delivery, queue: Queue, message_type: str, headers: Mapping[str, Any]
    ) -> None:
        waited_for = set[tuple[str, str]]()
        while True:
            try:
                await self._publisher.send(
                    queue,
                    arrived.body,
                    message_id=arrived.message_id,
                    message_type=message_type,
                    content_type=arrived.content_type,
                    headers={**without_brokers(arrived.headers), **headers},
                    deadline_s=self._deadline_s,
                    original=arrived.properties,
                )
            except (NotSent, SendUnknown) as error:
                self._why = str(error)
                why = (queue.name, error.reason if isinstance(error, NotSent) else "not confirmed")
                waited_for.add(why)
                if self._patience.setdefault(why, Patience()).due():
                    log.warning("%s  can't copy to %s, and keeps trying: %s", self._worker, queue.name, error)
                await asyncio.sleep(COPY_RETRY_S)
            else:
                for why in waited_for:
                    self._patience.pop(why, None)
                return


def now() -> str:
    """RFC 3339, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
