"""A claimed task is run, its result recorded, and its message settled.

| how the attempt ends                           | what becomes of the task                    |
|------------------------------------------------|---------------------------------------------|
| it returned                                    | done, with the result                       |
| it raised, attempts are left                   | later, an attempt more                      |
| it raised, none is left or GiveUp              | a dead letter                               |
| its result breaks the contract                 | a dead letter                               |
| it raised after its own `completion`           | done; a line tells what it raised           |
| it was cut off at the end of a drain           | a task again at once                        |
| it was called off, and did not finish          | nothing more                                |
| its claim was lost                             | later: the next claim decides               |
| the ledger went in its own `completion`        | later: it is done then, or nothing of it is |
| the ledger was lost                            | nothing: the worker can't go on             |
"""

import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic

from pydantic import BaseModel

from workqueue.codec import ResultCodec
from workqueue.contract import Receive
from workqueue.errors import LedgerLost
from workqueue.ledger import Claimed, ClaimLost, LedgerBusy, Transaction
from workqueue.tasks.asking import Asking
from workqueue.tasks.attempt import Attempts, Handler
from workqueue.tasks.claiming import Claiming
from workqueue.tasks.context import TaskContext
from workqueue.tasks.ends import Ends
from workqueue.tasks.events import Done, What
from workqueue.tasks.received import Attempt, Received, Runtime, T
from workqueue.tasks.scope import Cancellation, CutOff, Holder
from workqueue.tasks.settling import Settling
from workqueue.tasks.stack import describe
from workqueue.verdicts import GiveUp

log = logging.getLogger(__name__)

DONE = Done(1)


class Execution(Generic[T]):
    """Of the tasks of one operation. `ends` are those of their handlers, until they are in the ledger."""

    def __init__(
        self, handler: Handler[T, Any], receive: Receive, runtime: Runtime, ask: Asking, settling: Settling[T],
        claims: Claiming,
    ) -> None:  # fmt: skip
        self._receive, self._ledger, self._worker = receive, runtime.ledger, runtime.worker
        self._settings, self._resources = runtime.settings, runtime.resources
        self._ask, self._settling, self._results = ask, settling, ResultCodec(receive)
        self.holder = Holder(runtime.worker, receive.operation, runtime.ledger, receive.lease_s, runtime.tell)
        self._attempts = Attempts(handler, self.holder, tell_begin=runtime.settings.tells_begin)
        self.running = self._attempts.running
        self.ends = Ends(self.holder, runtime.ledger, ask, claims, settling)

    def end(self) -> None:
        """Stop what runs."""
        self._attempts.end()
        self.ends.end()

    async def run(self, attempt: Attempt[T]) -> What:
        """Raises CancelledError where the process ends, with the claim still held, and errors of our own."""
        received, number = attempt.received, attempt.number
        try:
            await self._complete(attempt)
        except CutOff:
            return await self.ends.given_back(attempt, self._settling.hand_back)
        except ClaimLost:
            return await self._settling.lost(received.arrived)
        except LedgerBusy:  # in a completion of the handler's own, or as the process ends: that is no failed attempt
            return await self.ends.given_back(attempt, self._settling.lost)
        except Cancellation as why:
            return await self.ends.recorded(attempt, self._settling.cancelled(attempt, str(why)))
        except LedgerLost:  # from a completion of the handler's own: that is no failed attempt
            raise
        except Exception as error:  # noqa: BLE001  # whatever the user's handler raises fails the attempt
            return await self.ends.recorded(attempt, self._failed(attempt, error))
        self._settling.ack(received.arrived)
        return DONE if number == 1 else Done(number)

    async def held(self, received: Received[T], claim: Claimed, settling: Coroutine[Any, Any, What]) -> What:
        """Settle, which may have to wait for a broker, with the claim renewed meanwhile: nobody else tries the task."""
        try:
            return await self.holder.held(received, claim.fence, settling)
        except ClaimLost:
            return await self._settling.lost(received.arrived)

    async def _failed(self, attempt: Attempt[T], error: Exception) -> What:
        await self._ask(lambda: attempt.save(self._ledger))
        return await self.held(attempt.received, attempt.claim, self._settling.failed(attempt, error))

    async def _complete(self, attempt: Attempt[T]) -> None:
        """Run the handler and record its result. Raises what the handler raises; TimeoutError at the contract's time
        limit; GiveUp for a result that breaks the contract; CutOff; ClaimLost; LedgerBusy."""
        received, number, fence = attempt.received, attempt.number, attempt.claim.fence
        task_id = received.id

        def complete(result: BaseModel | None) -> AbstractAsyncContextManager[Transaction]:
            return self._ledger.completion(task_id, fence, number, self._encode(result))

        context = TaskContext(self._worker, number, self._settings, self._resources, complete, attempt.progress)
        limit_s = self._receive.time_limit_s(received.kind)
        try:
            result = await self._attempts.run(received, context, fence, limit_s)
        except Exception as error:
            if not context.completed:
                raise
            log.warning("%s  %s is done, and its handler failed after that: %s", self._worker, task_id, describe(error))
            return
        if context.completed:
            return
        encoded = self._encode(result)
        if not await self.ends.completed(attempt, lambda: self._ledger.complete(task_id, fence, number, encoded)):
            raise ClaimLost

    def _encode(self, result: BaseModel | None) -> str | None:
        try:
            return None if result is None else self._results.encode(result)
        except ValueError as error:
            raise GiveUp(str(error)) from error
