"""The guard around a user's handler: which of the messages that arrive are run, and what becomes of the others.

| what arrives                                                                     | what becomes of it            |
|----------------------------------------------------------------------------------|-------------------------------|
| a body too large to be held in memory                                            | rejected                      |
| what is not the contract's, or not readable                                      | a dead letter                 |
| a dead letter that was sent back: its story becomes history                      | a task again                  |
| - more often than a few times                                                    | later, by the longest rung    |
| a task that is done                                                              | nothing more                  |
| a task that is dead, sent again by a producer; one of an earlier burial          | nothing more                  |
| a task that is dead, with no header of ours: it may be the letter's body alone   | a dead letter                 |
| a task that is dead, and was sent back: it is revived in the ledger              | as any other                  |
| a task whose id is another payload's                                             | a dead letter                 |
| a task that somebody has a claim on                                              | later, no attempt counted     |
| a task whose worker died                                                         | later, no attempt counted     |
| a copy that tells less than another one, once for each attempt                   | later, no attempt counted     |
| a task that keeps killing workers                                                | a dead letter                 |
| any task while the worker drains                                                 | a task again at once          |
| any other                                                                        | claimed, and run: `execution` |

The steps of each, and their order, are in `settling`.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Generic

from workqueue import codec, delivery, kinds
from workqueue.codec import ERROR_LIMIT, Schema, Undecodable
from workqueue.contract import Receive
from workqueue.delivery import Delivery
from workqueue.ledger import FIRST, Claimed, Conflict, Finished, LedgerBusy, Taken
from workqueue.tasks import story
from workqueue.tasks.asking import Asking
from workqueue.tasks.attempt import Handler
from workqueue.tasks.claiming import Claiming, forget_wish
from workqueue.tasks.copies import now
from workqueue.tasks.events import Event, Skipped, What
from workqueue.tasks.execution import Execution
from workqueue.tasks.pending import Pending
from workqueue.tasks.policy import Bury, Skip, Try, Wait, before_attempt, rung_of, without_ledger
from workqueue.tasks.received import Attempt, Received, Runtime, T
from workqueue.tasks.refusing import Refusing
from workqueue.tasks.room import Closed
from workqueue.tasks.settling import Settling

ALONE_WAIT_S = 10.0  # for the other tasks of the process to end; meanwhile none begins
RETURNS_AT_ONCE = 3  # how often a dead letter that is sent back is tried at once: something may send it back for ever
DELIVERIES = 10  # after which a copy is made, which begins to count anew: the broker drops a message at its limit


class Guard(Generic[T]):
    """Wraps `handler`; `take` is for the generated application's receive operation. `in_hand` are the messages that are
    being handled, `waiting` counts those of them that wait while a task runs alone."""

    def __init__(self, handler: Handler[T, Any], receive: Receive, runtime: Runtime) -> None:
        self._receive, self._runtime, self._ledger = receive, runtime, runtime.ledger
        self._single, self._room = runtime.single, runtime.room
        self._headers = Schema(receive.message.headers_schema)
        self.ask = Asking(runtime.worker)
        self.settling: Settling[T] = Settling(receive, runtime, self.ask)
        self.claims = Claiming(receive, runtime, self.ask, self._headers, lambda: self._draining)
        self.execution = Execution(handler, receive, runtime, self.ask, self.settling, self.claims)
        self._refuse = Refusing(receive, self.claims, self.settling, self.execution.held, single=runtime.single)
        self._emptied: asyncio.Future[None] | None = None
        self._draining = False
        self.in_hand, self.waiting = Pending(), 0

    async def take(self, task: T | Undecodable) -> None:
        """Handle and settle the delivery that is current. An error of the guard's own ends the worker."""
        arrived, began = delivery.current.get(), time.perf_counter()
        mine = self.in_hand.begin()
        try:
            if isinstance(task, Undecodable):
                kind, name = "message", arrived.message_id or ""
                what = await self._at_sight(arrived) or await self._refuse(arrived, Bury(task.reason, task.error))
            else:
                kind, name = self._receive.kind_of(task.payload) or kinds.UNTOLD, str(task.id)
                seen = None if _is_plain(arrived) else await self._at_sight(arrived)
                what = seen or await self._take(Received(task, task.id, arrived, kind, name))
            took_s = time.perf_counter() - began
            self._runtime.tell(Event(self._runtime.worker, self._receive.operation, kind, name, took_s, what))
        except Exception as error:
            self._runtime.fatal(error)
            raise
        finally:
            self.in_hand.end(mine)
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
        """Stop what is in hand: what runs is handed back, as is what the ledger does not answer, and all may be
        cancelled."""
        self.execution.end()
        self.claims.end()

    async def _at_sight(self, arrived: Delivery) -> What | None:
        """Settle what need not be looked into. A dead letter that was sent back is a task again, and waits for long
        where that happens again and again."""
        if arrived.oversized_bytes is not None:
            return self.settling.reject(arrived)
        if not arrived.readable:
            return await self.settling.dead_letter(arrived, Bury("undecodable", "its properties can't be read"))
        if not story.came_back(arrived.headers):
            return None
        arrived.headers = story.revived(arrived.headers)
        returns: int = arrived.headers["x-returns"]
        if returns <= RETURNS_AT_ONCE:
            return None
        return await self.settling.delay(arrived, self._receive.rungs[-1], "returned", returns)

    async def _take(self, received: Received[T]) -> What:
        """Settle a task."""
        arrived = received.arrived
        if arrived.again:
            forget_wish(arrived)  # somebody may be at work with it
        if problem := self._problem(arrived.headers):
            return await self._refuse(arrived, Bury("invalid", f"headers: {problem}"[:ERROR_LIMIT]))
        if arrived.delivery_count >= DELIVERIES:
            rung = self._receive.rungs[0]
            return await self.settling.delay(arrived, rung, "redelivered", arrived.delivery_count)
        try:
            if self._single and not self._draining:  # nobody is beside it
                what = await self._claim(received, alone=True)
                assert what is not None
                return what
            return await self._begin(received)
        except Closed:
            return await self.settling.hand_back(arrived)

    def _problem(self, headers: Mapping[str, Any]) -> str | None:
        """What is wrong with those of a message's headers that are read again; a foreign client may send anything."""
        if story.READ.keys().isdisjoint(headers):
            return None
        return self._headers.problem({name: headers[name] for name in story.READ.keys() & headers.keys()})

    async def _begin(self, received: Received[T]) -> What:
        """Try the task beside others, or alone where it is under suspicion. Raises Closed if the worker drains."""
        self.waiting += 1
        try:
            await self._room.enter()
        finally:
            self.waiting -= 1
        try:
            what = await self._claim(received, alone=False)
        finally:
            self._room.leave()
        if what is not None:
            return what
        if not await self._room.enter_alone(ALONE_WAIT_S):
            return await self.settling.delay(received.arrived, rung_of(ALONE_WAIT_S, self._receive.rungs), "alone")
        try:
            what = await self._claim(received, alone=True)
            assert what is not None
            return what
        finally:
            self._room.leave_alone()

    async def _claim(self, received: Received[T], *, alone: bool) -> What | None:
        """Claim the task and do what follows from the answer. None: it is to run alone, and is not claimed."""
        answer = await self._answer(received, alone)
        if answer is not FIRST:
            decision = self._decide(answer, received.arrived)
            if not isinstance(decision, Try):
                return await self._settle(received, answer, decision)
            assert isinstance(answer, Claimed)
            if decision.alone and not alone:
                await self.settling.release(received, answer)
                return None
        if self.execution.holder.ending:  # the claim came when nothing may begin any more
            await self.settling.release(received, answer)
            raise Closed
        attempt = Attempt(received, answer, received.arrived.headers.get("x-attempts", []))
        try:
            return await self.execution.run(attempt)
        except asyncio.CancelledError:  # the process ends: that is no failed attempt, and no crash
            with suppress(LedgerBusy):  # no time to wait: the claim ends with this process, or with its lease
                await attempt.give_back(self._ledger)
            raise

    async def _answer(self, received: Received[T], alone: bool) -> Claimed | Taken | Finished | Conflict:
        """The ledger's answer to a claim. A task that is dead and was sent back is revived, once for each burial."""
        task_id, digest = received.id, codec.digest(received.arrived.body)
        claim = partial(self.claims, received.arrived, task_id, received.kind, digest, alone=alone)
        try:
            answer = await claim()
            headers = received.arrived.headers
            if isinstance(answer, Finished) and answer.state == "dead" and story.is_letter_of(answer.fence, headers):
                told = json.dumps({"sent_back": now()} | story.sent_back(headers)) + "\n"
                await self.ask(partial(self._ledger.revive, task_id, answer.fence, told=told))
                answer = await claim()
        except LedgerBusy as error:
            raise Closed from error
        return answer

    async def _settle(
        self, received: Received[T], answer: Claimed | Taken | Finished | Conflict, decision: Skip | Wait | Bury
    ) -> What:
        """Do what was decided of a task that is not to be tried now."""
        arrived = received.arrived
        if isinstance(answer, Claimed):
            if isinstance(decision, Bury):
                burying = self.settling.bury_crashed(received, answer, decision)
                return await self._refuse.untried(received, answer, burying)
            assert isinstance(decision, Wait)
            return await self.settling.wait(received, answer, decision, self._deaths(arrived))
        match decision:
            case Skip():
                if isinstance(answer, Finished) and answer.state == "dead" and not story.SENT & arrived.headers.keys():
                    return await self.settling.bury_again(received, answer)
                self.settling.ack(arrived)
                return Skipped(decision.state)
            case Wait():
                return await self.settling.delay(arrived, decision.rung, decision.why, decision.count)
            case Bury():
                return await self.settling.dead_letter(arrived, decision)

    def _decide(self, answer: Claimed | Taken | Finished | Conflict, arrived: Delivery) -> Try | Skip | Wait | Bury:
        receive = self._receive
        if isinstance(answer, Claimed) and answer.crashes is None:
            limit = receive.crash_limit + (not self._single)  # the first may have been a neighbour's fault
            return without_ledger(self._deaths(arrived), arrived.again, receive.rungs, limit)
        told = len(arrived.headers.get("x-attempts", ()))
        waited_for = story.count(arrived.headers, "x-waited-for")
        return before_attempt(answer, told, waited_for, receive.rungs, receive.crash_limit)

    def _deaths(self, arrived: Delivery) -> int:
        """How many workers died with the message, as far as it and the broker tell. Its last delivery was one death,
        whatever the broker counts: as a connection ends, or a node, that may give a message to one dead consumer after
        the other."""
        return story.count(arrived.headers, "x-crashes") + int(arrived.again)


def _is_plain(arrived: Delivery) -> bool:
    """Whether there is nothing to it at sight, as with nearly all."""
    return arrived.readable and arrived.oversized_bytes is None and story.STORIED.isdisjoint(arrived.headers)
