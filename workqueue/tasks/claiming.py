"""A wish to have a task, until the ledger has answered; and what becomes of one whose answer does not come.

It may have been granted all the same, and a claim that ends without a word counts as a death of its worker. So the wish
has a number, by which who repeats it has the claim that was made. A message that is handed back without an answer takes
the number along in a header, where the contract's headers allow that: the next worker adopts the wish, and goes on with
the claim. One does: a message that was handed back may be there twice.
"""

import asyncio
from collections.abc import Callable, Coroutine
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

END_S = 1.0  # for the answer to a claim that nobody wants any more: the process ends
Answer = Claimed | Taken | Finished | Conflict


class Claiming:
    """For one operation, whose messages have these `headers`. Where the worker drains, or `is_cut_off` from the ledger,
    an answer that does not come is given up."""

    def __init__(
        self, receive: Receive, runtime: Runtime, ask: Asking, headers: Schema, is_draining: Callable[[], bool]
    ) -> None:
        self._receive, self._ledger, self._worker = receive, runtime.ledger, runtime.worker
        self._ask, self._is_draining = ask, is_draining
        self._tells = headers.problem({REQUEST: str(uuid4())}) is None
        self.is_cut_off = False
        self._open: set[asyncio.Timeout] = set()
        self._ending = False

    def end(self) -> None:
        """Wait for no answer any more for longer than END_S."""
        if self._ending:
            return
        self._ending = True
        until_s = asyncio.get_running_loop().time() + END_S
        for limit in self._open:
            limit.reschedule(until_s)

    async def __call__(self, arrived: Delivery, task_id: UUID, kind: str, digest: bytes, *, alone: bool) -> Answer:
        """Raises LedgerBusy where the worker drains, or ends: the message is to be handed back."""
        adopts, request = _wish_of(arrived), uuid4()
        claim = partial(
            self._ledger.claim, task_id, self._worker, self._receive.lease_s, kind=kind, digest=digest, alone=alone,
            request=request, adopts=adopts,
        )  # fmt: skip
        try:
            return await self._asked(claim)
        except LedgerBusy:
            if self._tells:
                arrived.headers = {**arrived.headers, REQUEST: str(adopts or request)}
            raise
        except asyncio.CancelledError:
            with suppress(LedgerBusy, TimeoutError):
                async with asyncio.timeout(END_S):
                    if isinstance(made := await claim(), Claimed):
                        await self.give_back(task_id, made)
            raise

    async def _asked(self, claim: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        limit = asyncio.timeout(END_S if self._ending else None)
        self._open.add(limit)
        try:
            async with limit:
                return await self._ask(claim, self._gives_up)
        except TimeoutError as error:
            raise LedgerBusy("no answer before the end of the process") from error
        finally:
            self._open.discard(limit)

    def _gives_up(self) -> bool:
        return self._is_draining() or (self.is_cut_off and self._tells)  # untold, only this worker can repeat its wish

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
