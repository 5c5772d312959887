"""The end of a handler, until it is in the ledger; and what becomes of the message where the process ends before.

The claim is given back then. Where the ledger does not answer, the message takes the number of the wish along, and who
gets it next goes on with the claim: that the process ended is no death.
"""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from workqueue.delivery import Delivery
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.tasks.asking import Asking
from workqueue.tasks.claiming import Claiming
from workqueue.tasks.events import What
from workqueue.tasks.limited import END_S, UNANSWERED, Limited
from workqueue.tasks.received import Attempt, T
from workqueue.tasks.scope import HeldClaim, Holder
from workqueue.tasks.settling import Settling

A = TypeVar("A")
COMPLETE_S = 2.0  # for the completions that are open as the process ends; the rest of its time is for handing back
UNRECORDED = "ends before the end of  %s  could be recorded: it will be done again"

log = logging.getLogger(__name__)


class Ends(Generic[T]):
    """Of the handlers of one operation. `open` are the claims of those that have ended and are not in the ledger yet,
    by the task as a line has it."""

    def __init__(self, holder: Holder, ledger: Ledger, ask: Asking, claims: Claiming, settling: Settling[T]) -> None:
        self._holder, self._ledger, self._claims, self._settling = holder, ledger, claims, settling
        self._completions, self._releases = Limited(ask), Limited(ask)
        self.open: dict[str, HeldClaim] = {}

    def end(self) -> None:
        """The process ends. Where a claim can't go along with its message, the ledger is waited for to the end."""
        if self._claims.go_along:
            self._completions.end(COMPLETE_S)
            self._releases.end(END_S)

    async def completed(self, attempt: Attempt[T], complete: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """Record that it is done. Raises LedgerBusy where that is given up, as the process ends."""
        return await self.recorded(attempt, self._completions(complete))

    async def recorded(self, attempt: Attempt[T], recording: Coroutine[Any, Any, A]) -> A:
        """Record the end of a handler: what ends the process before gives the claim back, and says so."""
        received, told = attempt.received, attempt.received.told
        self.open[told] = HeldClaim(self._holder, received.id, attempt.claim.fence, told, attempt.progress)
        answer = await recording
        self.open.pop(told, None)
        return answer

    async def given_back(self, attempt: Attempt[T], then: Callable[[Delivery], Coroutine[Any, Any, What]]) -> What:
        """Give the claim back, and do `then` with the message; hand it back where that is not answered in time."""
        arrived, told = attempt.received.arrived, attempt.received.told
        try:
            if told in self.open:  # the handler has done its work, and that may be on its way
                log.warning("%s  %s", self._holder.worker, UNRECORDED % told)
                raise LedgerBusy(UNANSWERED)
            await self.recorded(attempt, self._releases(lambda: attempt.give_back(self._ledger)))
        except LedgerBusy:
            self._claims.tell(arrived)
            what = await self._settling.hand_back(arrived)
            self.open.pop(told, None)
            return what
        return await then(arrived)
