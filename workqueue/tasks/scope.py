"""What holds a running handler: its time limit, the renewal of its claim, and the end that others put to it."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from workqueue import delivery
from workqueue.ledger import ClaimLost, Ledger
from workqueue.tasks import stack, threads
from workqueue.tasks.events import Event, Listener, Running, Started
from workqueue.tasks.progress import Progress
from workqueue.tasks.received import Received
from workqueue.tasks.stack import describe

log = logging.getLogger(__name__)

A = TypeVar("A")

RENEWALS = 3  # in a lease: one that fails or is late does not lose the claim
LONG_S = 10.0  # a task that runs for longer is told, so that one that hangs can be seen
CANCEL_AGAIN_S = 1.0  # a handler that swallows a cancellation may be in a loop: the next one may get it out
STUBBORN = 3  # cancellations, after which the handler is told to be one that can't be stopped


class CutOff(Exception):
    """The handler was stopped at the end of a drain."""

    def __init__(self) -> None:
        super().__init__("the worker ends, and its drain is over")


class Cancellation(Exception):
    """An operator, or the sender, has called the task off. Its text is the task's error."""


@dataclass
class Holder:
    """Who holds the claims: one worker, in its ledger, for one operation. `ending` tells that it cancels its tasks."""

    worker: str
    operation: str
    ledger: Ledger
    lease_s: float
    tell: Listener
    ending: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    """Kept: to ask which one runs is a system call on Python 3.11."""
    _due: dict["Scope", float] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None
    _timer_at: float = 0.0

    @property
    def renew_every_s(self) -> float:
        return self.lease_s / RENEWALS

    def first_s(self, limit_s: float | None) -> float:
        """After which time the first thing is due that holds a handler."""
        first_s = self.lease_s / RENEWALS
        if limit_s is not None and limit_s < first_s:
            first_s = limit_s
        return first_s if first_s < LONG_S else LONG_S

    def watch(self, scope: "Scope", began: float) -> None:
        """Tighten the scope when the first thing is due that holds it, unless it is left before. Nearly all are, so
        they share one timer: when it ends for nobody, it is set anew."""
        self._due[scope] = at = began + self.first_s(scope.limit_s)
        if self._timer is None or at < self._timer_at:
            self._set_timer(at, began)

    def forget(self, scope: "Scope") -> None:
        self._due.pop(scope, None)

    async def held(self, received: Received[Any], fence: int, work: Coroutine[Any, Any, A]) -> A:
        """What it comes to, with the claim renewed meanwhile. Where the claim is lost, it is cancelled, and ClaimLost
        raised."""
        lost, working = False, asyncio.ensure_future(work)

        def lose() -> None:
            nonlocal lost
            lost = True
            working.cancel()

        holding = asyncio.ensure_future(self.hold(received, fence, self.renew_every_s, lose))
        try:
            return await working
        except asyncio.CancelledError:
            if lost:
                raise ClaimLost from None
            raise
        finally:
            holding.cancel()

    async def hold(self, of: Received[Any], fence: int, first_s: float, lost: Callable[[], object]) -> None:
        """Renew a claim again and again until this is cancelled, or the claim is `lost`."""
        await asyncio.sleep(first_s)
        while True:
            renewing = asyncio.ensure_future(self.ledger.renew(of.id, fence, self.lease_s))
            renewing.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait([renewing])  # and is not cancelled with this: a silent ledger would be asked to cancel
            try:
                if not renewing.result():
                    lost()
                    return
            except Exception as error:  # noqa: BLE001  # whatever it is, the next try may succeed before the lease ends
                log.warning("%s  the claim on  %s  could not be renewed: %s", self.worker, of.told, describe(error))
            await asyncio.sleep(self.renew_every_s)

    def _set_timer(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_later(at - now, self._tighten), at

    def _tighten(self) -> None:
        self._timer, now = None, time.monotonic()
        for scope in [scope for scope, at in self._due.items() if at <= now]:
            del self._due[scope]
            scope.tighten()
        if self._due:
            self._set_timer(min(self._due.values()), now)


class HeldClaim(NamedTuple):
    """A claim: whose, on which task, its fence; and the task as lines of the log have it."""

    holder: Holder
    task_id: UUID
    fence: int
    told: str
    progress: Progress


class Scope:
    """A context around a running handler that can end it: at its time limit, when its claim is lost, by `stop`.

    It renews the claim meanwhile, and for as long as the handler does not end. Leaving it raises TimeoutError at the
    limit, or what it was stopped with. It does by itself what `asyncio.timeout` does, to which a handler that ends in
    time is no cheaper than one that does not.

    A cancellation by the handler's own code (`current_task().cancel()`, a cancelled task that it awaits) is its
    failure, and does not outlast it; one from outside does, but that only comes once the holder is `ending`.
    """

    # What a handler that ends in time has no need of costs it nothing.
    why: Exception | None = None
    """What it was stopped with."""
    is_over = False
    """The handler came to its end before it was interrupted: a stop that came since was too late."""
    cancelled_by_others = False
    """Once it is left: whether the task was cancelled, and not by this scope."""
    _left = False
    _cancellations = 0
    _again: asyncio.TimerHandle | None = None
    _later: tuple[asyncio.TimerHandle, ...] = ()
    _renewing: asyncio.Task[None] | None = None

    def __init__(
        self,
        holder: Holder,
        received: Received[Any],
        fence: int,
        limit_s: float | None,
        attempt: int,
        progress: Progress,
    ) -> None:
        self.holder, self._received, self.fence, self.limit_s = holder, received, fence, limit_s
        self.attempt, self.progress = attempt, progress
        self._delivery = delivery.current.get(None)  # that of the threads, too, which the handler starts

    @property
    def task_id(self) -> UUID:
        return self._received.id

    @property
    def kind(self) -> str:
        return self._received.kind

    @property
    def told(self) -> str:
        """The task as lines of the log have it."""
        return self._received.told

    @property
    def claim(self) -> HeldClaim:
        return HeldClaim(self.holder, self.task_id, self.fence, self.told, self.progress)

    def tell(self, what: Started | Running, took_s: float = 0.0) -> None:
        self.holder.tell(Event(self.holder.worker, self.holder.operation, self.kind, self._received.name, took_s, what))

    def ran_s(self) -> float:
        return time.monotonic() - self._began

    def may_hold(self) -> bool:
        """Whether the contract still allows the handler to run."""
        return self.limit_s is None or self.ran_s() < self.limit_s

    def is_current_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the loop is just now in this handler. For any thread."""
        return asyncio.current_task(loop) is self.running

    def is_running(self) -> bool:
        """Whether this is called by the handler's own task."""
        try:
            return asyncio.current_task() is self.running
        except RuntimeError:
            return False

    def where(self) -> str:
        """Where the handler is: in its threads, else at what it awaits."""
        running = [frame for thread in threads.frames_of(self._delivery) for frame in stack.outwards(thread)]
        return stack.where(running or stack.awaited(self.running.get_coro()))

    def stop(self, why: Exception) -> None:
        """Cancel the handler, again and again until it ends; nothing once it has."""
        if self.why is None and not self._left:
            self.why = why
            self._cancel()

    def __enter__(self) -> None:
        self._loop = self.holder.loop
        running = asyncio.current_task(self._loop)
        assert running is not None
        self.running, self._cancelled_before, self._began = running, running.cancelling(), time.monotonic()
        self.holder.watch(self, self._began)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._left = True
        self.holder.forget(self)
        for timer in self._later:
            timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
        if self._again is not None:
            self._again.cancel()
        asked_for = self.running.cancelling() - self._cancelled_before
        if self.why is None and not asked_for:
            return
        for _ in range(min(self._cancellations, asked_for)):  # the handler may have taken back what it swallowed
            self.running.uncancel()
        self.cancelled_by_others = asked_for > self._cancellations
        if self.why is None or (self.cancelled_by_others and self.holder.ending):
            return
        if kind is asyncio.CancelledError or not self._may_answer(kind):
            raise self.why

    def _may_answer(self, kind: type[BaseException] | None) -> bool:
        """A handler may answer a time limit with a result, or an error of its own, and a cancellation with a result:
        then it was too late. So is a cut-off where the handler was over. A claim that is lost is lost."""
        if isinstance(self.why, CutOff) and self.is_over:
            return True
        return isinstance(self.why, TimeoutError) or (isinstance(self.why, Cancellation) and kind is None)

    async def forget_cancellations(self) -> None:
        """Once it is left: let those that the handler's own code has asked for end with it."""
        while self.running.cancelling() > self._cancelled_before:
            self.running.uncancel()
        try:
            await asyncio.sleep(0)  # one that was asked for and not delivered yet; Python 3.13 forgets it by itself
        except asyncio.CancelledError:
            if self.holder.ending:
                raise

    def tighten(self) -> None:
        """Set the time limit, and start to renew. Most handlers have ended before, and cost no timer."""
        now_s, ran_s = self._loop.time(), self.ran_s()
        self._later += (self._loop.call_at(now_s - ran_s + LONG_S, self._tell_long),)
        if self.limit_s is not None:
            late = TimeoutError(f"it took longer than its limit of {self.limit_s:g} s")
            self._later += (self._loop.call_at(now_s - ran_s + self.limit_s, self.stop, late),)
        first_s = self.holder.renew_every_s - ran_s
        holding = self.holder.hold(self._received, self.fence, first_s, lambda: self.stop(ClaimLost()))
        self._renewing = asyncio.ensure_future(holding)

    def _cancel(self) -> None:
        self._cancellations += 1
        self.running.cancel()
        self._again = self._loop.call_later(CANCEL_AGAIN_S, self._cancel)
        if self._cancellations == STUBBORN:
            self._tell_stubborn()

    def _tell_stubborn(self) -> None:
        log.warning(
            "%s  can't stop  %s  after %.0f s: %s, but it goes on at %s; let CancelledError pass (in a thread, "
            "Interrupted), and don't wait in C code for long",
            self.holder.worker, self.told, self.ran_s(), str(self.why) or "its claim was lost", self.where(),
        )  # fmt: skip

    def _tell_long(self) -> None:
        self.tell(Running(), self.ran_s())


def blocking_frames(loop_thread: int) -> str:
    """What the thread of an event loop is doing, in one line."""
    return stack.where(stack.outwards(sys._current_frames().get(loop_thread)))  # noqa: SLF001  # the only way to see it
