"""What operators ask of a worker: to stop a task, and to take none from a queue. It looks for that every second."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from workqueue.amqp.wire import Wire
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.board import Pause
from workqueue.observe.health import Health
from workqueue.tasks.events import Listener, Paused, Resumed
from workqueue.tasks.scope import Cancellation
from workqueue.worker.crew import Crew

log = logging.getLogger(__name__)

LOOK_S = 1.0
AGAIN_S = 4.0  # after a failure with the pauses: each costs the ledger its connection where a role lacks the privilege
OPERATORS = "operators"
FIRST_S = 2.0  # that a start waits for; a ledger that is silent for longer grants no claims either


@dataclass
class Orders:
    """Reads the ledger for one worker, and obeys. `queues` are those that it takes tasks from."""

    name: str
    queues: Collection[str]
    ledger: Ledger
    crew: Crew
    wire: Wire
    health: Health
    tell: Listener
    _said: bool = False
    _pauses_s: float = 0.0
    """Not before, pauses are looked for (monotonic)."""

    async def first(self) -> None:
        """Before the first message is taken: what is paused stays so when a worker starts."""
        try:
            async with asyncio.timeout(FIRST_S):
                await self.look()
        except TimeoutError:
            pass

    async def look(self) -> None:
        """Obey what is asked for now. Raises LedgerLost."""
        try:
            await self._cancel()
            if time.monotonic() >= self._pauses_s:
                self._pauses_s = time.monotonic() + AGAIN_S
                await self._pause({pause.queue: pause for pause in await self.ledger.board.pauses()})
                self._pauses_s, self._said = 0.0, False
        except LedgerBusy as error:
            if not self._said:
                log.warning("%s  can't see what operators ask of it: %s", self.name, error)
            self._said = True

    async def _cancel(self) -> None:
        running = {scope.task_id: scope for scope in self.crew.running()}
        if not running:
            return
        for task_id, told in (await self.ledger.to_cancel(list(running))).items():
            running[task_id].stop(Cancellation(told))

    async def _pause(self, wanted: dict[str, Pause]) -> None:
        for queue in self.queues:
            pause = wanted.get(queue)
            if pause is not None and queue not in self.health.paused:
                await self.wire.pause(queue, OPERATORS)
                self.health.paused.add(queue)
                self.tell(Paused(self.name, queue, pause.who, pause.why))
            elif pause is None and queue in self.health.paused:
                self.health.paused.discard(queue)
                self.wire.resume(queue, OPERATORS)
                self.tell(Resumed(self.name, queue))
