"""The guard around a user's handler: claim, run, decide, settle.

| what arrives                         | what the guard does, in this order; the ack is always last                    |
|--------------------------------------|------------------------------------------------------------------------------|
| not the contract's, or not readable  | dead letter                                                                  |
| a task that is done or dead          | ack                                                                          |
| a task that somebody has a claim on  | copy to a rung, no attempt counted; ack                                      |
| a task that keeps killing workers    | dead letter; record as dead; ack                                             |
| any other                            | claim it, run the handler, renew the claim meanwhile; then one of these:      |
| - it returned                        | record as done, with the result; ack                                         |
| - it raised, attempts are left       | copy to a rung with one attempt more in its headers; release the claim; ack  |
| - it raised, none is left or GiveUp  | dead letter; record as dead; ack                                             |
| - it was cut off at the end of a drain | release the claim; requeue                                                 |
| - its claim was lost                 | copy to a rung, no attempt counted: the next claim decides; ack              |

Every copy is confirmed before the step after it. A step that is cut short leaves the message with the broker, which
delivers it again, and the ledger knows it then.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel

from workqueue import delivery
from workqueue.codec import ERROR_LIMIT, ResultCodec, Schema, Undecodable
from workqueue.contract import Contract, Queue, Receive, Rung
from workqueue.delivery import Delivery, Publisher
from workqueue.errors import GiveUp, NotSent, SendUnknown
from workqueue.ledger import Claimed, ClaimLost, Finished, Ledger, LedgerBusy, Taken
from workqueue.settings import Settings
from workqueue.tasks.context import Run
from workqueue.tasks.policy import Bury, after_failure, describe, rung_of
from workqueue.tasks.scope import CutOff, Leash
from workqueue.tasks.threads import in_thread

log = logging.getLogger(__name__)

LEDGER_RETRY_S = 0.005  # between two tries at a busy ledger, doubling up to the cap
LEDGER_RETRY_CAP_S = 1.0
LEDGER_SILENT_S = 1.0  # a lock of another process's transaction is not worth a line; one this long is
COPY_RETRY_S = 1.0
BROKER_HEADERS = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")
"""The broker's own record of a message; on a copy it would speak of another message."""


class TaskLike(Protocol):
    """What the guard needs of a task: the identity that the contract gives it, and what to do."""

    id: UUID
    payload: Any


A = TypeVar("A")
T = TypeVar("T", bound=TaskLike)
Handler = Callable[[T, Run], Awaitable[BaseModel | None] | BaseModel | None]


class Guard(Generic[T]):
    """Wraps `handler`; `take` is for the generated application's receive operation.

    `in_hand` counts the messages that are being handled, `finished` those that were acked, `handed_back` those that
    were requeued undone. `report` gets a line about each.
    """

    def __init__(
        self,
        handler: Handler[T],
        contract: Contract,
        receive: Receive,
        ledger: Ledger,
        publisher: Publisher,
        worker: str,
        settings: Settings,
        report: Callable[[str], object],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._handler, self._receive, self._ledger, self._publisher = handler, receive, ledger, publisher
        self._version, self._worker, self._settings = contract.version, worker, settings
        self._report, self._fatal = report, fatal
        self._results, self._headers = ResultCodec(receive), Schema(receive.message.headers_schema)
        self._blocking = not inspect.iscoroutinefunction(handler)
        self._leashes: set[Leash] = set()
        self._emptied: asyncio.Future[None] | None = None
        self.in_hand = self.finished = self.handed_back = 0

    async def take(self, task: T) -> None:
        """Handle and settle the delivery that is current. An error of the guard's own ends the worker."""
        arrived, began = delivery.current.get(), time.perf_counter()
        self.in_hand += 1
        try:
            said = await self._take(task, arrived)
            took_ms = (time.perf_counter() - began) * 1000
            self._report(f"{self._worker}  {said}  {took_ms:.0f} ms")
        except Exception as error:
            self._fatal(error)
            raise
        finally:
            self.in_hand -= 1
            if not self.in_hand and self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    async def idle(self, within_s: float) -> bool:
        """Wait until nothing is in hand. False: something still was after this time."""
        if self.in_hand:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=within_s)
        return not self.in_hand

    def cut_off(self) -> None:
        """Stop the running handlers; their messages go back to the broker."""
        for leash in self._leashes:
            leash.pull(CutOff())

    async def _take(self, task: T | Undecodable, arrived: Delivery) -> str:
        """Returns what became of the message, in words."""
        if not arrived.readable:
            unreadable = Bury("undecodable", "its properties can't be read")
            return await self._dead_letter(arrived, [], unreadable, "a message")
        if isinstance(task, Undecodable):
            return await self._dead_letter(arrived, [], Bury(task.reason, task.error), str(arrived.message_id))
        attempts = arrived.headers.get("x-attempts", [])
        problem = self._headers.problem({"x-attempts": attempts}) if attempts != [] else None
        if problem is not None:
            return await self._dead_letter(
                arrived, [], Bury("invalid", f"headers: {problem}"[:ERROR_LIMIT]), str(task.id)
            )
        claim = await self._ask(lambda: self._ledger.claim(task.id, self._worker, self._receive.lease_s))
        match claim:
            case Finished(state):
                self._ack(arrived)
                return f"{state} already  {task.id}"
            case Taken(left_s):
                return await self._wait_on(rung_of(left_s, self._receive.rungs), arrived, f"is taken  {task.id}")
        try:
            return await self._attempt(task, arrived, claim, attempts)
        except asyncio.CancelledError:  # the process ends: that is no failed attempt, and no crash
            with suppress(LedgerBusy):  # no time to wait: the claim ends with this process, or with its lease
                await self._ledger.release(task.id, claim.fence)
            raise

    async def _attempt(self, task: T, arrived: Delivery, claim: Claimed, attempts: list[dict[str, str]]) -> str:
        number, told = len(attempts) + 1, f"{getattr(task.payload, 'kind', 'task')}  {task.id}"
        crashes = arrived.delivery_count if claim.crashes is None else len(claim.crashes)
        if crashes >= self._receive.crash_limit:
            why = Bury("crashed", f"{crashes} workers died, or lost their claim, while they had it")
            died = [
                {"worker": c.worker, "at": c.noticed_at, "error": "died, or lost its claim"}
                for c in claim.crashes or ()
            ]
            return await self._bury(task, arrived, claim, [*attempts, *died], why)
        try:
            await self._run(task, claim, number)
        except CutOff:
            await self._ask(lambda: self._ledger.release(task.id, claim.fence))
            arrived.requeue()
            self.handed_back += 1
            return f"handed back  {told}"
        except ClaimLost:
            return await self._wait_on(self._receive.rungs[0], arrived, f"lost its claim  {told}")
        except Exception as error:  # noqa: BLE001  # whatever the user's handler raises fails the attempt
            attempts = [*attempts, {"worker": self._worker, "at": _now(), "error": describe(error)}]
            decision = after_failure(number, error, self._receive.rungs)
            if isinstance(decision, Bury):
                return await self._bury(task, arrived, claim, attempts, decision)
            await self._copy(arrived, decision.rung.queue, self._receive.message.type, {"x-attempts": attempts})
            await self._ask(lambda: self._ledger.release(task.id, claim.fence))
            self._ack(arrived)
            return f"failed  {told}  attempt {number}, again in {decision.rung.delay_s:g} s: {describe(error)}"
        self._ack(arrived)
        return f"done  {told}" + (f"  attempt {number}" if number > 1 else "")

    async def _run(self, task: T, claim: Claimed, number: int) -> None:
        """Run the handler and record its result. Raises what the handler raises; TimeoutError at the contract's time
        limit; GiveUp for a result that breaks the contract; CutOff; ClaimLost."""

        def complete(result: BaseModel | None) -> AbstractAsyncContextManager[Any]:
            return self._ledger.completion(task.id, claim.fence, number, self._encode(result))

        run = Run(self._worker, number, self._settings, complete)
        limit_s = self._receive.time_limit_s(task.payload)
        lease_s = self._receive.lease_s
        leash = Leash(limit_s, lease_s, lambda: self._ledger.renew(task.id, claim.fence, lease_s))
        self._leashes.add(leash)
        try:
            with leash:
                running: Any = in_thread(self._handler, task, run) if self._blocking else self._handler(task, run)
                result: BaseModel | None = await running
        except Exception as error:
            if not run._completed:
                raise
            log.warning("%s  %s is done, and its handler failed after that: %s", self._worker, task.id, describe(error))
            return
        finally:
            self._leashes.discard(leash)
        if run._completed:
            return
        encoded = self._encode(result)
        if not await self._ask(lambda: self._ledger.complete(task.id, claim.fence, number, encoded)):
            raise ClaimLost

    def _encode(self, result: BaseModel | None) -> str | None:
        try:
            return None if result is None else self._results.encode(result)
        except ValueError as error:
            raise GiveUp(str(error)) from error

    async def _bury(self, task: T, arrived: Delivery, claim: Claimed, attempts: list[dict[str, str]], why: Bury) -> str:
        said = await self._dead_letter(arrived, attempts, why, str(task.id), ack=False)
        await self._ask(lambda: self._ledger.bury(task.id, claim.fence, len(attempts), f"{why.reason}: {why.error}"))
        self._ack(arrived)
        return said

    async def _dead_letter(
        self, arrived: Delivery, attempts: list[dict[str, str]], why: Bury, told: str, *, ack: bool = True
    ) -> str:
        story = {
            "x-reason": why.reason, "x-error": why.error, "x-queue": arrived.queue, "x-contract": self._version,
            "x-died-at": _now(), "x-attempts": attempts[-self._receive.dead_max_attempts :],
        }  # fmt: skip
        await self._copy(arrived, self._receive.dead, self._receive.dead_message_type, story)
        if ack:
            self._ack(arrived)
        return f"dead  {told}  {why.reason}: {why.error}"

    async def _wait_on(self, rung: Rung, arrived: Delivery, said: str) -> str:
        """Let the message come back later; no attempt is counted."""
        await self._copy(arrived, rung.queue, self._receive.message.type, {})
        self._ack(arrived)
        return f"{said}, again in {rung.delay_s:g} s"

    def _ack(self, arrived: Delivery) -> None:
        arrived.ack()
        self.finished += 1

    async def _copy(self, arrived: Delivery, queue: Queue, message_type: str, headers: Mapping[str, Any]) -> None:
        """Publish the message's body to `queue` with its headers, changed by these, and don't return unconfirmed."""
        kept = {name: value for name, value in arrived.headers.items() if not name.startswith(BROKER_HEADERS)}
        while True:
            try:
                return await self._publisher.send(
                    queue,
                    arrived.body,
                    message_id=arrived.message_id,
                    message_type=message_type,
                    content_type=arrived.content_type,
                    headers={**kept, **headers},
                    deadline_s=self._settings.send_s,
                )
            except (NotSent, SendUnknown) as error:
                log.warning("%s  can't copy to %s, and keeps trying: %s", self._worker, queue.name, error)
                await asyncio.sleep(COPY_RETRY_S)

    async def _ask(self, call: Callable[[], Coroutine[Any, Any, A]]) -> A:
        """Ask the ledger until it answers: no task runs, and none is settled, without it."""
        delay_s, asked = LEDGER_RETRY_S, 0.0
        while True:
            try:
                return await call()
            except LedgerBusy as error:
                if asked < LEDGER_SILENT_S <= asked + delay_s:
                    log.warning("%s  waits for the ledger: %s", self._worker, error)
                asked += delay_s
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LEDGER_RETRY_CAP_S)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
