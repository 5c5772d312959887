"""What became of tasks that were sent: their statuses, and their results in the models of the contract."""

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

from workqueue.client.asking import asked
from workqueue.client.sending import Outgoing, check_to
from workqueue.client.status import Status, reason_of, status_of
from workqueue.client.waiting import CLOSED, Waiting
from workqueue.codec.results import ResultReader
from workqueue.errors import (
    LedgerUnreachable,
    ResultInvalid,
    SettingInvalid,
    TaskCancelled,
    TaskDead,
    TaskUnfinished,
)
from workqueue.ledger import Cancelling, Ledger, LedgerBusy, Outcome
from workqueue.tasks.policy import CONFLICT

LOOK_S = 1.0  # at the end of a wait, for the ledger's word on where the task is

R = TypeVar("R")


class Results:
    """Asks a ledger about tasks; `readers` read the results of each send operation's tasks, by its name. `who` calls
    tasks off."""

    def __init__(self, ledger: Ledger, readers: Mapping[str, ResultReader], who: str = "") -> None:
        self._who = f"{who}@{socket.gethostname()}"
        self._ledger, self._readers, self._waiting = ledger, readers, Waiting(ledger)
        self._loop, self._closed = asyncio.get_running_loop(), False

    async def status(self, task_id: UUID, digest: bytes = b"") -> Status:
        """Where the task is; with a `digest`, as far as it is this payload. Raises LedgerUnreachable, LedgerLost."""
        self._check()
        return status_of(task_id, await asked(self._ledger, lambda: self._ledger.entry(task_id)), digest)

    async def result(
        self, task_id: UUID, *, timeout_s: float | None = None, operation: str | None = None, digest: bytes = b""
    ) -> Any:
        """Wait for the task, and read its result as the operation's that sent it; None: one that sends its kind. With a
        `digest`, wait no longer than until the id is known with another payload.

        Raises TaskDead, TaskCancelled, TaskUnfinished, ResultInvalid, LedgerLost; TaskInvalid for an operation that is
        none; SettingInvalid for a `timeout_s` that is no time.
        """
        check_seconds("timeout_s", timeout_s)
        check_to(operation, self._readers, str(task_id))
        self._check()
        began_s, left_s = self._loop.time(), timeout_s
        if digest:
            _refuse_conflict(await self._look(task_id, digest, timeout_s))
            left_s = None if timeout_s is None else max(0.0, timeout_s - (self._loop.time() - began_s))
        try:
            outcome = await self._waiting.outcome(task_id, left_s)
        except TimeoutError:
            assert timeout_s is not None
            outcome = await self._at_last(task_id, digest, timeout_s)
        if digest and outcome.digest not in (None, b"", digest):
            raise _conflict(task_id)
        return _read(outcome, self._readers if operation is None else {operation: self._readers[operation]})

    async def cancel(self, task_id: UUID, why: str, digest: bytes = b"") -> Cancelling:
        """See `Client.cancel`. With a `digest`, not where the id is another payload's: that task is left alone.

        Raises LedgerUnreachable, LedgerLost."""
        self._check()
        if digest and (await self.status(task_id, digest)).reason == CONFLICT.reason:
            return "dead"
        told = f"by {self._who}{f': {why}' if why else ''}"
        return await asked(self._ledger, lambda: self._ledger.cancel(task_id, told))

    async def close(self) -> None:
        self._closed = True
        await self._waiting.close()

    async def _at_last(self, task_id: UUID, digest: bytes, timeout_s: float) -> Outcome:
        """The outcome of a task for which the time is over, if it has one by now."""
        known = await self._look(task_id, digest, LOOK_S)
        _refuse_conflict(known)
        if known is not None and known.state in ("done", "dead", "cancelled"):
            for outcome in await _in_time(self._ledger.outcomes([task_id]), LOOK_S) or ():
                return outcome
        state, error = ("unknown", "the ledger does not answer") if known is None else (known.state, known.error)
        raise TaskUnfinished(task_id, timeout_s, state, error) from None

    async def _look(self, task_id: UUID, digest: bytes, within_s: float | None) -> Status | None:
        """The status; None if the ledger does not give it in time."""
        return await _in_time(self.status(task_id, digest), within_s)

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError(CLOSED)
        check_loop(self._loop)


@dataclass(frozen=True, slots=True)
class Handle(Generic[R]):
    """A task that was sent by this operation. `R` is what its handler returns; `digest` names its payload where another
    one may have been sent under the same id."""

    id: UUID
    operation: str
    digest: bytes = field(repr=False)
    results: Results | None = field(repr=False, compare=False)

    @classmethod
    def of(cls, sent: Outgoing, results: Results | None) -> "Handle[R]":
        return cls(sent.id, sent.operation, b"" if sent.is_new else sent.digest, results)

    async def status(self) -> Status:
        """Where the task is, see `Status`. As `Client.status`."""
        return await self._known().status(self.id, self.digest)

    async def result(self, *, timeout_s: float | None = None) -> R:
        """Wait until the task is done, and return what its handler returned. As `Client.result`."""
        made = await self._known().result(self.id, timeout_s=timeout_s, operation=self.operation, digest=self.digest)
        return cast(R, made)

    async def cancel(self, why: str = "") -> Cancelling:
        """Call the task off. As `Client.cancel`."""
        return await self._known().cancel(self.id, why, self.digest)

    def _known(self) -> Results:
        return with_ledger(self.results)


async def _in_time(question: Coroutine[Any, Any, R], within_s: float | None) -> R | None:
    """The ledger's answer; None where it gives none in time. What is asked is not cut off: that costs a connection."""
    asking = asyncio.ensure_future(question)
    asking.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait([asking], timeout=within_s)
    try:
        return asking.result() if asking.done() else None
    except (LedgerUnreachable, LedgerBusy):
        return None


def check_loop(opened_in: asyncio.AbstractEventLoop) -> None:
    """Raises RuntimeError in any other event loop: what is awaited there would never be woken."""
    if asyncio.get_running_loop() is not opened_in:
        raise RuntimeError(
            "the client was opened in another event loop: open one in each, or use SyncClient, which has its own"
        )


def check_seconds(name: str, given: object) -> None:
    """Raises SettingInvalid for what is no number of seconds, nor None."""
    if given is not None and not (isinstance(given, int | float) and given >= 0):
        raise SettingInvalid(name, str(given), "use a number of seconds from 0 up")


def check_time_to_send(within_s: object) -> None:
    """Raises SettingInvalid for what is no time in which a broker could confirm a task, nor None."""
    if within_s is not None and not (isinstance(within_s, int | float) and within_s > 0):
        raise SettingInvalid("within_s", str(within_s), "use a number of seconds above 0")


def _refuse_conflict(status: Status | None) -> None:
    if status is not None and status.reason == CONFLICT.reason:
        raise _conflict(status.id)


def _conflict(task_id: UUID) -> TaskDead:
    return TaskDead(task_id, CONFLICT.reason, CONFLICT.error, worker=None, attempts=0)


def with_ledger(results: Results | None) -> Results:
    """Raises SettingInvalid where there is no ledger to ask."""
    if results is None:
        raise SettingInvalid(
            "LEDGER_URL", "none", "statuses, results and cancellations need a ledger, the one that the workers use"
        )
    return results


def _read(outcome: Outcome, readers: Mapping[str, ResultReader]) -> Any:
    if outcome.state == "cancelled":
        _, _, said = (outcome.error or "").partition(": ")
        raise TaskCancelled(outcome.id, said, worker=outcome.worker or None, attempts=outcome.attempts)
    if outcome.state == "dead":
        reason, error = reason_of(outcome.error)
        raise TaskDead(outcome.id, reason, error, worker=outcome.worker, attempts=outcome.attempts)
    if outcome.result is None:
        return None
    made, problems = dict[str, Any](), list[str]()
    of_kind = {name: reader for name, reader in readers.items() if outcome.kind in reader.kinds}
    for name, reader in (of_kind or readers).items():
        try:
            made[name] = reader.read(outcome.result)
        except ValueError as error:
            problems.append(str(error))
    if not made:
        raise ResultInvalid(outcome.id, f"breaks the contract: {'; '.join(dict.fromkeys(problems))}", outcome.result)
    first, *others = made.values()
    if any(other != first for other in others):
        raise ResultInvalid(
            outcome.id, f"may be that of any of {', '.join(made)}", outcome.result, way_out="say which, with to="
        )
    return first
