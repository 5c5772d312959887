"""A wish to have a task, until the ledger has answered; and what becomes of one whose answer does not come.

It may have been granted all the same, and a claim that ends without a word counts as a death of its worker. So the wish
has a number, by which who repeats it has the claim that was made. A message that is handed back without an answer takes
the number along in a header, where the contract's headers allow that: the next worker adopts the wish, and goes on with
the claim. One does: a message that was handed back may be there twice.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from workqueue.codec import Schema
from workqueue.contract import Receive
from workqueue.delivery import Delivery
from workqueue.ledger import Claimed, Conflict, Finished, LedgerBusy, Taken
from workqueue.ledger.clock import steady_s
from workqueue.tasks.asking import Asking
from workqueue.tasks.limited import END_S, UNANSWERED, Limited
from workqueue.tasks.received import Runtime
from workqueue.tasks.story import REQUEST

Answer = Claimed | Taken | Finished | Conflict


class Claiming:
    """For one operation, whose messages have these `headers`. A ledger that is busy while the worker drains, or is cut
    off from it, is not waited for."""

    def __init__(
        self, receive: Receive, runtime: Runtime, ask: Asking, headers: Schema, is_draining: Callable[[], bool]
    ) -> None:
        self._receive, self._ledger, self._worker = receive, runtime.ledger, runtime.worker
        self._ask, self._is_draining = Limited(ask), is_draining
        self._tells = headers.problem({REQUEST: str(uuid4())}) is None
        self._ends = self._is_cut_off = False

    def end(self) -> None:
        """Wait for no answer any more for longer than END_S."""
        self._ends = True
        self._ask.end(END_S)

    def cut_off(self, is_cut_off: bool) -> None:
        """The same until the worker is cut off no more. Where the message can't tell of the wish, it waits on: only
        this worker can repeat it."""
        self._is_cut_off = is_cut_off and self._tells
        self._ask.is_over &= self._ends
        if self._is_cut_off:
            self._ask.end(END_S, lambda: self._is_cut_off)

    @property
    def go_along(self) -> bool:
        """Whether a claim can go along with its message."""
        return self._tells and self._ledger.keeps_requests

    def tell(self, arrived: Delivery) -> None:
        """Have the message take the number of its wish along, where its contract allows that."""
        if self._tells and arrived.wish is not None:
            arrived.headers = {**arrived.headers, REQUEST: str(arrived.wish)}

    async def __call__(self, arrived: Delivery, task_id: UUID, kind: str, digest: bytes, *, alone: bool) -> Answer:
        """Raises LedgerBusy where it is given up: the message is to be handed back."""
        adopts, request = _wish_of(arrived), uuid4()
        arrived.wish = adopts or request
        claim = partial(
            self._ledger.claim, task_id, self._worker, self._receive.lease_s, kind=kind, digest=digest, alone=alone,
            request=request, adopts=adopts,
        )  # fmt: skip
        began_s = steady_s()
        try:
            if self._ask.is_over:
                raise LedgerBusy(UNANSWERED)
            answer = await self._ask(claim, lambda: self._is_cut_off or self._is_draining())
            arrived.wish = request
            if isinstance(answer, Claimed) and steady_s() - began_s > self._receive.lease_s / 2:
                return await self._still(task_id, answer)
            return answer
        except LedgerBusy:
            self.tell(arrived)
            raise
        except asyncio.CancelledError:
            with suppress(LedgerBusy, TimeoutError):
                async with asyncio.timeout(END_S):
                    if isinstance(made := await claim(), Claimed):
                        await self.give_back(task_id, made)
            raise

    async def _still(self, task_id: UUID, claim: Claimed) -> Answer:
        """What became of a claim while its answer was on its way, or the process stood still."""
        renew = partial(self._ledger.renew, task_id, claim.fence, self._receive.lease_s)
        return claim if await self._ask(renew, self._is_draining) else Taken(0.0, claim.attempts)

    async def give_back(self, task_id: UUID, claim: Claimed) -> None:
        """Without waiting for a ledger that is busy: the claim ends with this process, or with its lease."""
        with suppress(LedgerBusy):
            await self._ledger.release(task_id, claim.fence)


def _wish_of(arrived: Delivery) -> UUID | None:
    """The number of the wish that the message brings, at its first delivery: later on somebody may be at work with it.
    No copy of the message has it."""
    told: Any = arrived.headers.get(REQUEST)
    forget_wish(arrived)
    try:
        return None if arrived.again or told is None else UUID(told)
    except (ValueError, AttributeError, TypeError):  # a foreign client may send anything
        return None


def forget_wish(arrived: Delivery) -> None:
    if REQUEST in arrived.headers:
        arrived.headers = {name: value for name, value in arrived.headers.items() if name != REQUEST}
