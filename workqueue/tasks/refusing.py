"""A message that can't be run, and what the ledger is told of it.

Whoever waits for its task would wait for ever. So the task is dead in the ledger, too, if the message says which one it
is: an id, and a payload that the ledger does not know this id to have another one than.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic
from uuid import uuid4

from workqueue import codec
from workqueue.contract import Receive
from workqueue.delivery import Delivery
from workqueue.ledger import Claimed, LedgerBusy
from workqueue.tasks.asking import Asking
from workqueue.tasks.events import What
from workqueue.tasks.policy import Bury
from workqueue.tasks.received import Attempt, Received, Runtime, T
from workqueue.tasks.settling import Settling

Held = Callable[[Received[Any], Claimed, Coroutine[Any, Any, What]], Coroutine[Any, Any, What]]


class Refusing(Generic[T]):
    """For one operation. `held` settles with the claim renewed; `is_draining`: whether a silent ledger is given up."""

    def __init__(
        self, receive: Receive, runtime: Runtime, ask: Asking, settling: Settling[T], held: Held,
        is_draining: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._receive, self._runtime, self._ask = receive, runtime, ask
        self._settling, self._held, self._is_draining = settling, held, is_draining

    async def __call__(self, arrived: Delivery, why: Bury) -> What:
        """Make a dead letter of the message, and of its task a dead one."""
        try:
            attempt = await self._claimed(arrived)
        except LedgerBusy:
            return await self._settling.hand_back(arrived)
        if attempt is None:
            return await self._settling.dead_letter(arrived, why)
        return await self._held(attempt.received, attempt.claim, self._settling.bury(attempt, why))

    async def _claimed(self, arrived: Delivery) -> Attempt[Any] | None:
        """The message's task, if it says which one that is, and nobody has it or has finished it. Raises LedgerBusy
        where the worker drains."""
        receive, runtime = self._receive, self._runtime
        named = codec.named(arrived.body, receive.tag) if len(arrived.body) <= receive.message.max_bytes else None
        if named is None:
            return None
        claim = partial(
            runtime.ledger.claim, named.id, runtime.worker, receive.lease_s, kind=codec.printable(named.kind),
            digest=named.digest, alone=runtime.single, request=uuid4(),
        )  # fmt: skip
        answer = await self._ask(claim, self._is_draining)
        if not isinstance(answer, Claimed):
            return None
        received = Received[Any](None, named.id, arrived, named.kind, str(named.id))
        return Attempt(received, answer, failed=[])  # what its headers tell may be anything
