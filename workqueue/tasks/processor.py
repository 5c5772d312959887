"""The guard around a user's handler: claim, run, decide, settle.

| what arrives                         | what the guard does, in this order; the ack is always last                    |
|--------------------------------------|------------------------------------------------------------------------------|
| a body too large to be held in memory | reject: the broker moves it to the dead letters                             |
| not the contract's, or not readable  | dead letter                                                                  |
| a dead letter that was sent back     | its story becomes history, and it is a task again; too often: copy to the    |
|                                      | longest rung first; ack                                                      |
| a task that is done                  | ack                                                                          |
| a task that is dead, sent again by a producer; one of an earlier burial | ack                                       |
| a task that is dead, with no header of ours | dead letter: it may be one that was sent back by its body alone       |
| a task that is dead, and was sent back | revive it in the ledger, then as any other                                 |
| a task whose id is another payload's | dead letter                                                                  |
| a task that somebody has a claim on  | copy to a rung, no attempt counted; ack                                      |
| a task whose worker died             | release the claim; copy to a rung, no attempt counted; ack                   |
| a copy that tells less than another  | the same, once for each attempt                                              |
| a task that keeps killing workers    | dead letter; record as dead; ack                                             |
| any task while the worker drains     | copy to the tasks; ack                                                       |
| any other                            | claim it, run the handler, renew the claim meanwhile; then one of these:      |
| - it returned                        | record as done, with the result; ack                                         |
| - it raised, attempts are left       | copy to a rung with one attempt more in its headers; release the claim; ack  |
| - it raised, none is left or GiveUp  | dead letter; record as dead; ack                                             |
| - it was cut off at the end of a drain | release the claim; copy to the tasks; ack                                  |
| - its claim was lost                 | copy to a rung, no attempt counted: the next claim decides; ack              |

Every copy is confirmed before the step after it. A step that is cut short leaves the message with the broker, which
delivers it again, and the ledger knows it then.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel

from workqueue import codec, delivery
from workqueue.codec import ERROR_LIMIT, ResultCodec, Schema, Undecodable
from workqueue.contract import Contract, Receive, Rung
from workqueue.delivery import Delivery, Publisher
from workqueue.errors import GiveUp, Verdict
from workqueue.ledger import FIRST, Claimed, ClaimLost, Conflict, Finished, Ledger, LedgerBusy, Taken, Transaction
from workqueue.settings import Settings
from workqueue.tasks import story
from workqueue.tasks.asking import Asking
from workqueue.tasks.attempt import Attempts
from workqueue.tasks.context import TaskContext
from workqueue.tasks.copies import Copies, now
from workqueue.tasks.policy import (
    Bury,
    Reason,
    Skip,
    Try,
    Wait,
    after_failure,
    before_attempt,
    describe,
    rung_of,
    without_ledger,
)
from workqueue.tasks.room import Closed, Room
from workqueue.tasks.scope import CutOff, Holder
from workqueue.tasks.stack import traceback_lines, traceback_tail

log = logging.getLogger(__name__)

ALONE_WAIT_S = 10.0  # for the other tasks of the process to end; meanwhile none begins
NEXT_SHARE = 0.8  # of a delay, before which no other copy of the task may be tried; the delay itself has its own clock
RETURNS_AT_ONCE = 3  # how often a dead letter that is sent back is tried at once: something may send it back for ever
DELIVERIES = 10  # after which a copy is made, which begins to count anew: the broker drops a message at its limit


class TaskLike(Protocol):
    """What the guard needs of a task: the identity that the contract gives it, and what to do."""

    id: UUID
    payload: Any


T = TypeVar("T", bound=TaskLike)
R = TypeVar("R")
Handler = Callable[[T, TaskContext[R]], Awaitable[BaseModel | None] | BaseModel | None]


@dataclass(slots=True)
class Matter(Generic[T]):
    """A task and the message that brought it. `told`: its kind and id, as a line has them."""

    task: T
    arrived: Delivery
    kind: str
    told: str


@dataclass(slots=True)
class Attempt(Generic[T]):
    """A task that is claimed and may be tried. `failed`: the attempts that its message tells of."""

    matter: Matter[T]
    claim: Claimed
    failed: list[dict[str, str]]

    @property
    def number(self) -> int:
        """Counted from 1. The ledger knows of attempts that another copy of the message has in its headers."""
        return max(len(self.failed), self.claim.attempts) + 1


class Guard(Generic[T]):
    """Wraps `handler`; `take` is for the generated application's receive operation.

    `in_hand` counts the messages that are being handled, `finished` those that were acked, `handed_back` those that
    went back undone. `report` gets a line about each. `resources` are the lifespan's, for the handler. `room` is
    shared by all guards of a process; `single`: no other task ever runs in it.
    """

    def __init__(
        self,
        handler: Handler[T, Any],
        contract: Contract,
        receive: Receive,
        ledger: Ledger,
        publisher: Publisher,
        worker: str,
        settings: Settings,
        report: Callable[[str], object],
        fatal: Callable[[BaseException], None],
        *,
        resources: Any = None,
        room: Room | None = None,
        single: bool = True,
    ) -> None:
        self._receive, self._ledger, self._single = receive, ledger, single
        self._worker, self._settings, self._report, self._fatal = worker, settings, report, fatal
        self._copies = Copies(contract, receive, publisher, worker, settings.send_s)
        self._results, self._headers = ResultCodec(receive), Schema(receive.message.headers_schema)
        holder = Holder(worker, ledger, receive.lease_s, report, receive.kind_of)
        self.attempts = Attempts(handler, holder, tell_begin=settings.log == "debug")
        self._ask, self._room, self._resources = Asking(worker), room or Room(), resources
        self._emptied: asyncio.Future[None] | None = None
        self._draining = self.ended = False
        self.unrecorded: set[str] = set()
        """The tasks, as a line has them, whose handler has ended and whose end is not in the ledger yet."""
        self.in_hand = self.finished = self.handed_back = 0

    async def take(self, task: T) -> None:
        """Handle and settle the delivery that is current. An error of the guard's own ends the worker."""
        arrived, began = delivery.current.get(), time.perf_counter()
        self.in_hand += 1
        try:
            said = await self._take(task, arrived)
            took_ms = (time.perf_counter() - began) * 1000
            said, _, trace = said.partition("\n")
            self._report(f"{self._worker}  {said}  {took_ms:.0f} ms")
            for line in trace.splitlines():
                self._report(f"{self._worker}  {line}")
        except Exception as error:
            self._fatal(error)
            raise
        finally:
            self.in_hand -= 1
            if not self.in_hand and self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    def drain(self) -> None:
        """Begin no task any more: what has not begun goes back to the tasks."""
        self._draining = True
        self._room.close()

    async def idle(self, within_s: float) -> bool:
        """Wait until nothing is in hand. False: something still was after this time."""
        if self.in_hand:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=within_s)
        return not self.in_hand

    def end(self) -> None:
        """What is in hand now is cancelled; what it was about to record is told by `unrecorded`."""
        self.ended = True
        self.attempts.end()

    def cut_off(self) -> None:
        """Stop the running handlers; their messages go back to the broker."""
        self.attempts.cut_off()

    async def _take(self, task: T | Undecodable, arrived: Delivery) -> str:
        """Returns what became of the message, in words."""
        if arrived.oversized_bytes is not None:
            arrived.reject()
            self.finished += 1
            size = f"{arrived.oversized_bytes} bytes, too large to be held in memory"
            return f"dead  message  {arrived.message_id}  undecodable: {size}; moved by the broker itself"
        if not arrived.readable:
            return await self._dead_letter(arrived, Bury("undecodable", "its properties can't be read"), "message")
        if story.came_back(arrived.headers):
            arrived.headers = story.revived(arrived.headers)
            if arrived.headers["x-returns"] > RETURNS_AT_ONCE:
                often = f"sent back  {arrived.message_id}  for the {arrived.headers['x-returns']}th time"
                return await self._delay(arrived, self._receive.rungs[-1], often)
        if isinstance(task, Undecodable):
            return await self._dead_letter(arrived, Bury(task.reason, task.error), f"message  {arrived.message_id}")
        kind = self._receive.kind_of(task.payload) or "task"
        told = f"{kind}  {task.id}"
        if problem := self._problem(arrived.headers):
            return await self._dead_letter(arrived, Bury("invalid", f"headers: {problem}"[:ERROR_LIMIT]), told)
        if arrived.delivery_count >= DELIVERIES:
            often = f"was delivered  {told}  {arrived.delivery_count} times without an ack"
            return await self._delay(arrived, self._receive.rungs[0], often)
        matter = Matter(task, arrived, kind, told)
        try:
            if self._single and not self._draining:  # nobody is beside it
                return await self._claim(matter, alone=True) or ""
            return await self._begin(matter)
        except Closed:
            return await self._hand_back(matter)

    def _problem(self, headers: Mapping[str, Any]) -> str | None:
        """What is wrong with those of a message's headers that are read again; a foreign client may send anything."""
        if story.OURS.isdisjoint(headers):
            return None
        return self._headers.problem({name: headers[name] for name in story.OURS & headers.keys()})

    async def _begin(self, matter: Matter[T]) -> str:
        """Try the task beside others, or alone where it is under suspicion. Raises Closed if the worker drains."""
        await self._room.enter()
        try:
            said = await self._claim(matter, alone=False)
        finally:
            self._room.leave()
        if said is not None:
            return said
        if not await self._room.enter_alone(ALONE_WAIT_S):
            rung = rung_of(ALONE_WAIT_S, self._receive.rungs)
            return await self._delay(matter.arrived, rung, f"must run alone  {matter.told}")
        try:
            return await self._claim(matter, alone=True) or ""
        finally:
            self._room.leave_alone()

    async def _claim(self, matter: Matter[T], *, alone: bool) -> str | None:
        """Claim the task and do what follows from the answer. None: it is to run alone, and is not claimed."""
        answer = await self._answer(matter, alone)
        if answer is not FIRST:
            arrived, told = matter.arrived, matter.told
            decision = self._decide(answer, arrived)
            if isinstance(answer, Finished) and answer.state == "dead" and not story.SENT & arrived.headers.keys():
                return await self._bury_again(matter, answer)
            if isinstance(decision, Skip):
                self._ack(arrived)
                return f"{decision.state} already  {told}"
            if not isinstance(answer, Claimed):
                if isinstance(decision, Bury):
                    return await self._dead_letter(arrived, decision, told)
                assert isinstance(decision, Wait)
                return await self._delay(arrived, decision.rung, f"{decision.why}  {told}")
            if isinstance(decision, Bury):
                return await self._bury_crashed(matter, answer, decision)
            if isinstance(decision, Wait):
                return await self._wait(matter, answer, decision)
            if decision.alone and not alone:
                await self._release(matter, answer)
                return None
        try:
            return await self._attempt(Attempt(matter, answer, matter.arrived.headers.get("x-attempts", [])))
        except asyncio.CancelledError:  # the process ends: that is no failed attempt, and no crash
            with suppress(LedgerBusy):  # no time to wait: the claim ends with this process, or with its lease
                await self._ledger.release(matter.task.id, answer.fence)
            raise

    async def _answer(self, matter: Matter[T], alone: bool) -> Claimed | Taken | Finished | Conflict:
        """The ledger's answer to a claim. A task that is dead and was sent back is revived, once for each burial."""
        task_id, digest, lease_s = matter.task.id, codec.digest(matter.arrived.body), self._receive.lease_s

        def claim() -> Coroutine[Any, Any, Claimed | Taken | Finished | Conflict]:
            return self._ledger.claim(task_id, self._worker, lease_s, kind=matter.kind, digest=digest, alone=alone)

        try:
            answer = await self._ask(claim, self._is_draining)
            if isinstance(answer, Finished) and _is_sent_back(matter.arrived, answer):
                await self._ask(partial(self._ledger.revive, task_id, answer.fence))
                answer = await self._ask(claim, self._is_draining)
        except LedgerBusy as error:
            raise Closed from error
        return answer

    def _is_draining(self) -> bool:
        return self._draining

    def _decide(self, answer: Claimed | Taken | Finished | Conflict, arrived: Delivery) -> Try | Skip | Wait | Bury:
        receive = self._receive
        if isinstance(answer, Claimed) and answer.crashes is None:
            limit = receive.crash_limit + (not self._single)  # the first may have been a neighbour's fault
            return without_ledger(self._deaths(arrived), _is_again(arrived), receive.rungs, limit)
        told = len(arrived.headers.get("x-attempts", ()))
        waited_for = story.count(arrived.headers, "x-waited-for")
        return before_attempt(answer, told, waited_for, receive.rungs, receive.crash_limit)

    def _deaths(self, arrived: Delivery) -> int:
        """How many workers died with the message, as far as it and the broker tell."""
        now = max(arrived.delivery_count, int(_is_again(arrived)))
        return story.count(arrived.headers, "x-crashes") + now

    async def _bury_crashed(self, matter: Matter[T], claim: Claimed, why: Bury) -> str:
        deaths = [
            {"worker": crash.worker, "at": crash.noticed_at, "error": "died, or lost its claim"}
            for crash in claim.crashes or ()
        ]
        return await self._bury(Attempt(matter, claim, [*matter.arrived.headers.get("x-attempts", []), *deaths]), why)

    async def _wait(self, matter: Matter[T], claim: Claimed, why: Wait) -> str:
        """What is claimed is to come back later, after a crash or behind another copy."""
        await self._release(matter, claim)
        more = {} if claim.crashes is not None else {"x-crashes": self._deaths(matter.arrived)}
        if claim.attempts:
            more["x-waited-for"] = claim.attempts
        return await self._delay(matter.arrived, why.rung, f"{why.why}  {matter.told}", more)

    async def _attempt(self, attempt: Attempt[T]) -> str:
        matter, number = attempt.matter, attempt.number
        try:
            await self._run(matter, attempt.claim, number)
        except CutOff:
            await self._release(matter, attempt.claim)
            return await self._hand_back(matter)
        except ClaimLost:
            return await self._delay(matter.arrived, self._receive.rungs[0], f"lost its claim  {matter.told}")
        except Exception as error:  # noqa: BLE001  # whatever the user's handler raises fails the attempt
            return await self._failed(attempt, error)
        self._ack(matter.arrived)
        return f"done  {matter.told}" + (f"  attempt {number}" if number > 1 else "")

    async def _failed(self, attempt: Attempt[T], error: Exception) -> str:
        matter, claim, number, said = attempt.matter, attempt.claim, attempt.number, describe(error)
        failed = [*attempt.failed, {"worker": self._worker, "at": now(), "error": said}]
        decision = after_failure(number, error, self._receive.rungs)
        is_verdict = isinstance(error, Verdict)  # in words of the handler's own: where it was said does not matter
        if isinstance(decision, Bury):
            trace = "" if is_verdict else traceback_tail(error)
            said = await self._bury(replace(attempt, failed=failed), decision, trace)
        else:
            await self._copies.delay(matter.arrived, decision.rung, {"x-attempts": failed})
            delay_s = decision.rung.delay_s
            release = partial(self._ledger.release, attempts=number, error=said, next_s=NEXT_SHARE * delay_s)
            await self._ask(partial(release, matter.task.id, claim.fence))
            self._ack(matter.arrived)
            said = f"failed  {matter.told}  attempt {number}, again in {delay_s:g} s: {said}"
        return "\n    ".join([said, *([] if is_verdict else traceback_lines(error))])

    async def _run(self, matter: Matter[T], claim: Claimed, number: int) -> None:
        """Run the handler and record its result. Raises what the handler raises; TimeoutError at the contract's time
        limit; GiveUp for a result that breaks the contract; CutOff; ClaimLost."""
        task = matter.task

        def complete(result: BaseModel | None) -> AbstractAsyncContextManager[Transaction]:
            return self._ledger.completion(task.id, claim.fence, number, self._encode(result))

        context = TaskContext(self._worker, number, self._settings, self._resources, complete)
        limit_s = self._receive.time_limit_s(matter.kind)
        try:
            result = await self.attempts.run(task, context, claim.fence, limit_s)
        except Exception as error:
            if not context._completed:
                raise
            log.warning("%s  %s is done, and its handler failed after that: %s", self._worker, task.id, describe(error))
            return
        if context._completed:
            return
        encoded = self._encode(result)
        self.unrecorded.add(matter.told)
        try:
            if not await self._ask(lambda: self._ledger.complete(task.id, claim.fence, number, encoded)):
                raise ClaimLost
        finally:
            if not self.ended:
                self.unrecorded.discard(matter.told)

    def _encode(self, result: BaseModel | None) -> str | None:
        try:
            return None if result is None else self._results.encode(result)
        except ValueError as error:
            raise GiveUp(str(error)) from error

    async def _bury(self, attempt: Attempt[T], why: Bury, trace: str = "") -> str:
        matter, claim, said = attempt.matter, attempt.claim, f"{why.reason}: {why.error}"
        more: dict[str, Any] = {} if claim.crashes is None else {"x-burial": claim.fence}
        if trace:
            more["x-traceback"] = trace
            said += f"\n{trace}"
        await self._copies.bury(matter.arrived, why, attempt.failed, more)
        await self._ask(lambda: self._ledger.bury(matter.task.id, claim.fence, len(attempt.failed), said))
        self._ack(matter.arrived)
        return f"dead  {matter.told}  {why.reason}: {why.error}"

    async def _bury_again(self, matter: Matter[T], answer: Finished) -> str:
        """A dead task that comes with no header of ours: a foreign client sent it again, or somebody took it from the
        dead letters and sent it back by its body alone. Nobody can tell, so it is a dead letter once more: this may be
        the last copy."""
        found = await self._ask(partial(self._ledger.outcomes, [matter.task.id]))
        said = next((outcome.error for outcome in found if outcome.error), None) or "failed: it is dead already"
        word, _, error = said.partition("\n")[0].partition(": ")
        reason: Reason = next((known for known in story.REASONS if known == word), "failed")
        why = Bury(reason, error[:ERROR_LIMIT])
        await self._copies.bury(matter.arrived, why, [], {"x-burial": answer.fence})
        self._ack(matter.arrived)
        return (
            f"dead already  {matter.told}  and a dead letter again; to have it tried, send that back with its headers"
        )

    async def _dead_letter(self, arrived: Delivery, why: Bury, told: str) -> str:
        """Of what was not claimed."""
        await self._copies.bury(arrived, why, [])
        self._ack(arrived)
        return f"dead  {told}  {why.reason}: {why.error}"

    async def _delay(self, arrived: Delivery, rung: Rung, said: str, headers: Mapping[str, Any] | None = None) -> str:
        """Let the message come back later; no attempt is counted."""
        await self._copies.delay(arrived, rung, headers)
        self._ack(arrived)
        return f"{said}, again in {rung.delay_s:g} s"

    async def _hand_back(self, matter: Matter[T]) -> str:
        await self._copies.hand_back(matter.arrived)
        matter.arrived.ack()
        self.handed_back += 1
        return f"handed back  {matter.told}"

    async def _release(self, matter: Matter[T], claim: Claimed) -> None:
        await self._ask(lambda: self._ledger.release(matter.task.id, claim.fence))

    def _ack(self, arrived: Delivery) -> None:
        arrived.ack()
        self.finished += 1


def _is_again(arrived: Delivery) -> bool:
    return arrived.delivery_count > 0 or arrived.redelivered


def _is_sent_back(arrived: Delivery, answer: Finished) -> bool:
    """Whether the message is the dead letter that the ledger tells of. One of the version before names no burial."""
    is_letter = answer.state == "dead" and "x-returns" in arrived.headers
    return is_letter and arrived.headers.get("x-burial", answer.fence) == answer.fence
