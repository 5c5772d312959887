"""The ways in which a message is settled; the ack is always last.

| what is to become of it          | the steps, in this order                                                        |
|----------------------------------|---------------------------------------------------------------------------------|
| nothing more                     | ack                                                                             |
| a dead letter                    | copy to the dead letters; ack                                                   |
| nothing more, of a claimed task  | record as cancelled; ack                                                        |
| a dead letter, of a claimed task | copy to the dead letters; record as dead; ack                                   |
| later, no attempt counted        | release the claim, if there is one; copy to a rung; ack                         |
| later, an attempt more           | copy to a rung with that attempt in its headers; release the claim; ack         |
| a task again at once             | copy to the tasks; ack                                                          |
| too large to be held in memory   | reject: the broker moves it to the dead letters                                 |

Every copy is confirmed before the step after it. A step that is cut short leaves the message with the broker, which
delivers it again, and the ledger knows it then.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic

from workqueue.codec import ERROR_LIMIT
from workqueue.contract import Receive, Rung
from workqueue.delivery import Delivery
from workqueue.ledger import CANCELLED, Claimed, Finished
from workqueue.tasks import story
from workqueue.tasks.asking import Asking
from workqueue.tasks.copies import Copies, now
from workqueue.tasks.events import Cancelled, Dead, Delayed, HandedBack, LostClaim, Retrying, Skipped
from workqueue.tasks.policy import Because, Bury, Reason, Wait, after_failure
from workqueue.tasks.received import Attempt, Received, Runtime, T
from workqueue.tasks.stack import describe, traceback_lines, traceback_tail
from workqueue.verdicts import Verdict

NEXT_SHARE = 0.8  # of a delay, before which no other copy of the task may be tried; the delay itself has its own clock


class Settling(Generic[T]):
    """For the messages of one operation. `finished` counts those that were acked, `handed_back` those of them that
    went back undone; `copies` knows which can't be. Each method returns what became of the message, for listeners."""

    def __init__(self, receive: Receive, runtime: Runtime, ask: Asking) -> None:
        self._receive, self._ledger, self._ask, self._worker = receive, runtime.ledger, ask, runtime.worker
        self.copies = Copies(runtime.contract, receive, runtime.publisher, runtime.worker, runtime.settings.send_s)
        self.finished = self.handed_back = 0

    def _dead(self, why: Bury) -> Dead:
        return Dead(why.reason, why.error, self._receive.dead.name)

    def ack(self, arrived: Delivery) -> None:
        arrived.ack()
        self.finished += 1

    def reject(self, arrived: Delivery) -> Dead:
        arrived.reject()
        self.finished += 1
        size = f"{arrived.oversized_bytes} bytes, too large to be held in memory"
        return self._dead(Bury("undecodable", f"{size}; moved by the broker itself"))

    async def hand_back(self, arrived: Delivery) -> HandedBack:
        await self.copies.hand_back(arrived)
        arrived.ack()
        self.handed_back += 1
        return HandedBack()

    async def dead_letter(self, arrived: Delivery, why: Bury) -> Dead:
        """Of what was not claimed."""
        await self.copies.bury(arrived, why, [])
        self.ack(arrived)
        return self._dead(why)

    async def delay(
        self, arrived: Delivery, rung: Rung, why: Because, count: int = 0, headers: Mapping[str, Any] | None = None
    ) -> Delayed:
        """Let the message come back later; no attempt is counted."""
        await self.copies.delay(arrived, rung, headers)
        self.ack(arrived)
        return Delayed(why, rung.delay_s, count)

    async def wait(self, received: Received[T], claim: Claimed, why: Wait, deaths: int) -> Delayed:
        """What is claimed is to come back later, after a crash or behind another copy."""
        await self.release(received, claim)
        more = {} if claim.crashes is not None else {"x-crashes": deaths}
        if claim.attempts:
            more["x-waited-for"] = claim.attempts
        return await self.delay(received.arrived, why.rung, why.why, why.count, more)

    async def lost(self, arrived: Delivery) -> LostClaim:
        """The next claim decides."""
        rung = self._receive.rungs[0]
        await self.copies.delay(arrived, rung)
        self.ack(arrived)
        return LostClaim(rung.delay_s)

    async def failed(self, attempt: Attempt[T], error: Exception) -> Retrying | Dead:
        received, number, said = attempt.received, attempt.number, describe(error)
        last = {"worker": self._worker, "at": now(), "error": said}
        failed = [*attempt.failed, last]
        decision = after_failure(number, error, self._receive.rungs)
        is_verdict = isinstance(error, Verdict)  # in words of the handler's own: where it was said does not matter
        trace = () if is_verdict else tuple(traceback_lines(error))
        tail = "" if is_verdict else traceback_tail(error)
        line = json.dumps(last | {"attempt": number, "trace": tail}) + "\n"
        if isinstance(decision, Bury):
            buried = await self.bury(replace(attempt, failed=failed), decision, tail, line)
            return replace(buried, trace=trace, cause=error)
        await self.copies.delay(received.arrived, decision.rung, {"x-attempts": failed})
        rung_s = decision.rung.delay_s
        delay_s = decision.delay_s if attempt.claim.crashes is not None else rung_s  # no ledger: the broker's is all
        next_s = delay_s if delay_s > rung_s else NEXT_SHARE * rung_s
        release = partial(self._ledger.release, attempts=number, error=said, failed=line, next_s=next_s)
        await self._ask(partial(release, received.id, attempt.claim.fence))
        self.ack(received.arrived)
        return Retrying(number, delay_s, said, trace, error)

    async def bury(self, attempt: Attempt[T], why: Bury, tail: str = "", line: str = "") -> Dead:
        """`tail` is the end of the traceback, `line` the last attempt as the ledger's story has it."""
        received, claim, said = attempt.received, attempt.claim, f"{why.reason}: {why.error}"
        more: dict[str, Any] = {} if claim.crashes is None else {"x-burial": claim.fence}
        if tail:
            more["x-traceback"] = tail
            said += f"\n{tail}"
        await self.copies.bury(received.arrived, why, attempt.failed, more)
        failed = max(len(attempt.failed), claim.attempts)
        await self._ask(partial(self._ledger.bury, received.id, claim.fence, failed, said, failed=line))
        self.ack(received.arrived)
        return self._dead(why)

    async def cancelled(self, attempt: Attempt[T], told: str) -> Cancelled:
        """It was called off while it ran: no attempt failed, and no letter is kept."""
        received, claim = attempt.received, attempt.claim
        await self._ask(partial(self._ledger.bury, received.id, claim.fence, claim.attempts, told))
        self.ack(received.arrived)
        return Cancelled(told.removeprefix(f"{CANCELLED}: "))

    async def bury_crashed(self, received: Received[T], claim: Claimed, why: Bury) -> Dead:
        deaths = [
            {"worker": crash.worker, "at": crash.noticed_at, "error": "died, or lost its claim"}
            for crash in claim.crashes or ()
        ]
        told = received.arrived.headers.get("x-attempts", [])
        return await self.bury(Attempt(received, claim, [*told, *deaths]), why)

    async def bury_again(self, received: Received[T], answer: Finished) -> Skipped:
        """A dead task that comes with no header of ours: a foreign client sent it again, or somebody took it from the
        dead letters and sent it back by its body alone. Nobody can tell, so it is a dead letter once more: this may be
        the last copy."""
        found = await self._ask(partial(self._ledger.outcomes, [received.id]))
        said = next((outcome.error for outcome in found if outcome.error), None) or "failed: it is dead already"
        word, _, error = said.partition("\n")[0].partition(": ")
        reason: Reason = next((known for known in story.REASONS if known == word), "failed")
        await self.copies.bury(received.arrived, Bury(reason, error[:ERROR_LIMIT]), [], {"x-burial": answer.fence})
        self.ack(received.arrived)
        return Skipped("dead", buried=True)

    async def release(self, received: Received[T], claim: Claimed) -> None:
        await self._ask(lambda: self._ledger.release(received.id, claim.fence))
