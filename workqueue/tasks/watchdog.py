"""A thread that watches the event loop, since nothing on a loop that is blocked can.

| what it sees                            | what it does                                                            |
|-----------------------------------------|-------------------------------------------------------------------------|
| the loop stands still                   | says in which task and where; renews the claims within their time limit |
| the loop goes on                        | says how long it stood still                                            |
| the process stood still itself          | says so: it was frozen, or C code kept the interpreter's lock           |
| the time by which the process must end  | says what still runs, or has ended and is not recorded; gives the       |
|                                         | claims back; ends the process                                           |

A task costs nothing: the loop sets a time twice a second, and the thread looks at it as often.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from uuid import UUID

from workqueue.tasks.ends import UNRECORDED
from workqueue.tasks.scope import HeldClaim, Scope, blocking_frames
from workqueue.tasks.stack import describe

LOOK_S = 0.5
BLOCKED_S = 2.0  # longer than a slow garbage collection or a full disk's write, shorter than any lease
FROZEN_S = 5.0  # more than a machine with too much to do
SAY_S = 1.0  # a line that takes longer to write is not read by anybody

log = logging.getLogger(__name__)


class Watchdog:
    """Watches the running loop from `start` on. `running` gives the handlers that run, `unrecorded` the claims of those
    that have ended and are not in the ledger yet; `release` gives claims back, from any thread."""

    def __init__(
        self,
        worker: str,
        running: Callable[[], Iterable[Scope]],
        unrecorded: Callable[[], Iterable[HeldClaim]],
        release: Callable[[list[HeldClaim]], None],
    ) -> None:
        self._worker, self._running, self._unrecorded, self._release = worker, running, unrecorded, release
        self._stream = sys.stderr  # once: a handler may put another one there
        self._beat = time.monotonic()
        self._resting = False
        self._end: tuple[float, int, str] | None = None
        self._blocked_since: float | None = None
        self._renewed: dict[tuple[UUID, int], float] = {}

    def start(self) -> None:
        self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self._go_on()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def end_by(self, within_s: float, exit_code: int, why: str) -> None:
        """The process ends after this time at the latest, whatever still runs then. For any thread, and for signal
        handlers. A later call counts if it says a sooner time."""
        at = time.monotonic() + within_s
        if self._end is None or at < self._end[0]:
            self._end = (at, exit_code, why)

    def rest(self) -> None:
        """Look at the loop no more, which ends; just at the time by which the process must end."""
        self._resting = True
        self._timer.cancel()

    def _go_on(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(LOOK_S, self._go_on)

    def _watch(self) -> None:
        looked = time.monotonic()
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic()
            late_s, looked = now - looked - LOOK_S, now
            if self._end is not None and now >= self._end[0]:
                self._end_process(*self._end[1:])
            if late_s > FROZEN_S:
                self._say(f"the process stood still for {late_s:.0f} s: frozen, or C code kept Python's lock")
            if late_s < LOOK_S and not self._resting:  # else the loop may have had no time either
                try:
                    self._look(now)
                except Exception as error:  # noqa: BLE001  # whatever it is, this thread has more to look at
                    self._say(f"can't look at the event loop: {describe(error)}")

    def _look(self, now: float) -> None:
        beat = self._beat
        stands_s = now - beat
        if self._blocked_since is not None and beat > self._blocked_since:
            self._say(f"the event loop goes on, after {beat - self._blocked_since:.0f} s")
            self._blocked_since = None
        if stands_s > 2 * LOOK_S:
            self._renew(now, beat)
        elif self._renewed:
            self._renewed.clear()
        if stands_s > BLOCKED_S and self._blocked_since is None:
            self._blocked_since = beat
            self._say(
                f"the event loop is blocked, since {stands_s:.0f} s, {self._culprits()}: "
                f"{blocking_frames(self._loop_thread)}; use `await`, in_thread(...), or a handler that is no coroutine"
            )

    def _culprits(self) -> str:
        running = list(self._running())
        at_it = [scope for scope in running if scope.is_current_of(self._loop)]
        told = "; ".join(scope.told for scope in (at_it or running)[:5])
        if not running:
            return "with no task in hand"
        return f"in  {told}" if at_it else f"with in hand  {told}"

    def _renew(self, now: float, beat: float) -> None:
        held = [scope.claim for scope in self._running() if scope.may_hold()]
        for holder, task_id, fence, *_ in [*held, *self._unrecorded()]:
            if now - self._renewed.get((task_id, fence), beat) < holder.renew_every_s:
                continue
            try:
                holder.ledger.renew_blocking(task_id, fence, holder.lease_s)
                self._renewed[task_id, fence] = now
            except Exception as error:  # noqa: BLE001  # whatever it is, the next try may succeed before the lease ends
                self._say(f"a claim could not be renewed: {describe(error)}")

    def _end_process(self, exit_code: int, why: str) -> None:
        scopes, unrecorded = list(self._running()), list(self._unrecorded())
        for scope in scopes:
            self._say(f"ends ({why}) while it runs  {scope.told}: {self._where(scope)}")
        if not scopes:
            left = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
            self._say(f"ends ({why}) with threads of a handler's left: {', '.join(left) or self._main()}")
        for claim in unrecorded:
            self._say(UNRECORDED % claim.told)
        try:
            self._release([*(scope.claim for scope in scopes), *unrecorded])
        except Exception as error:  # noqa: BLE001  # the leases end by themselves
            self._say(f"the claims could not be given back: {describe(error)}")
        self._within(self._stream.flush)
        os._exit(exit_code)

    def _where(self, scope: Scope) -> str:
        return blocking_frames(self._loop_thread) if scope.is_current_of(self._loop) else scope.where()

    def _main(self) -> str:
        return f"none, the main thread is at {blocking_frames(self._loop_thread)}"

    def _say(self, line: str) -> None:
        self._within(lambda: log.warning("%s  %s", self._worker, line))

    def _within(self, write: Callable[[], object]) -> None:
        """A line may take for ever: nobody reads the pipe. This thread has other things to do."""
        writer = threading.Thread(target=write, daemon=True)
        try:
            writer.start()
        except RuntimeError:  # the interpreter shuts down
            return
        writer.join(SAY_S)
