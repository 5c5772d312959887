"""A message that can't be run, and what the ledger is told of it.

Whoever waits for its task would wait for ever. So the task is dead in the ledger, too, if the message says which one it
is: an id, and a payload that the ledger does not know this id to have another one than.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic

from workqueue import codec
from workqueue.contract import Receive
from workqueue.delivery import Delivery
from workqueue.ledger import Claimed, LedgerBusy, Taken
from workqueue.tasks.claiming import Claiming
from workqueue.tasks.events import What
from workqueue.tasks.policy import Bury, rung_of
from workqueue.tasks.received import Attempt, Received, T
from workqueue.tasks.settling import Settling

NAMED_BYTES = 4 << 20  # of a body larger than its contract allows: what it says takes ten times as much memory
Held = Callable[[Received[Any], Claimed, Coroutine[Any, Any, What]], Coroutine[Any, Any, What]]


class Refusing(Generic[T]):
    """For one operation. `held` settles with the claim renewed; `single`: nothing else ever runs in this process."""

    def __init__(self, receive: Receive, claims: Claiming, settling: Settling[T], held: Held, *, single: bool) -> None:
        self._receive, self._claims, self._settling, self._held, self._single = receive, claims, settling, held, single

    async def __call__(self, arrived: Delivery, why: Bury) -> What:
        """Make a dead letter of the message, and of its task a dead one, once nobody else has that in hand."""
        named = codec.named(arrived.body, self._receive.tag) if len(arrived.body) <= self._most_bytes() else None
        if named is None:
            return await self._settling.dead_letter(arrived, why)
        kind = codec.printable(named.kind)
        try:
            answer = await self._claims(arrived, named.id, kind, named.digest, alone=self._single)
        except LedgerBusy:
            return await self._settling.hand_back(arrived)
        match answer:
            case Claimed():
                received = Received[Any](None, named.id, arrived, named.kind, str(named.id))
                attempt = Attempt(received, answer, failed=[])  # what its headers tell may be anything
                return await self.untried(received, answer, self._settling.bury(attempt, why))
            case Taken():
                rung = rung_of(answer.left_s, self._receive.rungs)
                return await self._settling.delay(arrived, rung, "early" if answer.waits else "taken")
        return await self._settling.dead_letter(arrived, why)

    async def untried(self, received: Received[Any], claim: Claimed, burying: Coroutine[Any, Any, What]) -> What:
        """Bury what was claimed for that alone. The claim is given back where the process ends: nobody died with it."""
        try:
            return await self._held(received, claim, burying)
        except asyncio.CancelledError:
            await self._claims.give_back(received.id, claim)
            raise

    def _most_bytes(self) -> int:
        return max(NAMED_BYTES, self._receive.message.max_bytes)
