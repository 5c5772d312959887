"""A worker that can't claim tasks leaves them to those who can.

Each of its consumers would hold a message for as long as the ledger is out of its reach, beside workers that are idle.
So it takes no more, and hands back what it has not claimed, until it could claim a task again. What runs goes on.
"""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from workqueue.amqp.wire import Wire
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.observe.health import Health
from workqueue.worker.crew import Crew

log = logging.getLogger(__name__)

AWAY_S = 10.0  # a server that restarts is back sooner
LEDGER = "the ledger"


@dataclass
class Breaker:
    """Between one worker and its ledger. `queues` are those that it takes tasks from."""

    name: str
    queues: Collection[str]
    ledger: Ledger
    crew: Crew
    wire: Wire
    health: Health
    _is_open: bool = False

    async def look(self) -> None:
        """See whether a task could be claimed now. Raises LedgerLost."""
        try:
            await self.ledger.check()
        except LedgerBusy as error:
            away_s = time.monotonic() - self.health.ledger_s
            if not self._is_open and away_s > AWAY_S:
                self._is_open = True
                log.warning("%s  takes no tasks: the ledger has not answered for %.0f s: %s", self.name, away_s, error)
                await asyncio.gather(*(self.wire.pause(queue, LEDGER) for queue in self.queues))
                self.crew.cut_off(True)
        else:
            self.health.ledger_s = time.monotonic()
            if self._is_open:
                self._is_open = False
                self.crew.cut_off(False)
                for queue in self.queues:
                    self.wire.resume(queue, LEDGER)
                log.warning("%s  takes tasks again: the ledger answers", self.name)
