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
from workqueue.tasks.asking import Asking
from workqueue.tasks.received import Runtime
from workqueue.tasks.story import REQUEST

UNDO_S = 1.0  # for a claim that nobody wants any more: the process ends


class Claiming:
    """For one operation, whose messages have these `headers`. `is_draining`: whether a silent ledger is given up."""

    def __init__(
        self, receive: Receive, runtime: Runtime, ask: Asking, headers: Schema, is_draining: Callable[[], bool]
    ) -> None:
        self._receive, self._ledger, self._worker = receive, runtime.ledger, runtime.worker
        self._ask, self._is_draining = ask, is_draining
        self._tells = headers.problem({REQUEST: str(uuid4())}) is None

    async def __call__(
        self, arrived: Delivery, task_id: UUID, kind: str, digest: bytes, *, alone: bool
    ) -> Claimed | Taken | Finished | Conflict:
        """Raises LedgerBusy where the worker drains: the message is to be handed back."""
        adopts, request = _wish_of(arrived), uuid4()
        claim = partial(
            self._ledger.claim, task_id, self._worker, self._receive.lease_s, kind=kind, digest=digest, alone=alone,
            request=request, adopts=adopts,
        )  # fmt: skip
        try:
            return await self._ask(claim, self._is_draining)
        except LedgerBusy:
            if self._tells:
                arrived.headers = {**arrived.headers, REQUEST: str(adopts or request)}
            raise
        except asyncio.CancelledError:
            with suppress(LedgerBusy, TimeoutError):
                async with asyncio.timeout(UNDO_S):
                    if isinstance(made := await claim(), Claimed):
                        await self.give_back(task_id, made)
            raise

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
