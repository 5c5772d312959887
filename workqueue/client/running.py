"""An event loop in a thread of its own, for threads that block: what they have carried out there, and its end."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, Self, TypeVar

from workqueue.client.waiting import CLOSED
from workqueue.process import forking
from workqueue.process.loops import new_event_loop

log = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", bound="Closing")

CLOSE_S = 5.0  # for the closing handshakes, at the end of the process
ENDS_S = 1.0  # for the calls that are under way then, to end by themselves, and again for those that are cut off


class Closing(Protocol):
    async def close(self) -> None: ...


@dataclass(eq=False)
class Call(Generic[T]):
    """What a loop in another thread is to do, and a thread waits for.

    It waits on a SimpleQueue, which may be interrupted anywhere: by a signal handler that makes further calls, for one.
    A Future has a lock, which the loop would wait for while the handler waits for the loop.
    """

    make: Callable[[], Coroutine[Any, Any, T]]
    task: "asyncio.Task[T] | None" = None
    told: "SimpleQueue[asyncio.Task[T] | None]" = field(default_factory=SimpleQueue)
    """The task once it is done; None when nobody carries it out any more."""

    def begin(self) -> None:
        self.task = asyncio.create_task(self.make())
        self.task.add_done_callback(self.told.put)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Ended(RuntimeError):
    """The client was closed before it had begun with a call."""


class Running(Generic[C]):
    """A client, or something else that is opened and closed, on an event loop in a thread of its own.

    `is_ended`: it takes no calls any more. Any thread may call its methods, its own too, and a signal handler.
    """

    def __init__(self, client: C) -> None:
        self.client, self.is_ended = client, False
        self._loop = new_event_loop()
        self.thread = threading.Thread(target=self._work, name="workqueue client", daemon=True)
        self._calls, self._enders = set[Call[Any]](), list[SimpleQueue[None]]()
        self._is_open, self._waiting = False, 0
        self._opening: asyncio.Task[None]
        self._ending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def start(self, opening: Coroutine[Any, Any, None]) -> Self:
        """Open it there. Raises what that does."""
        self.begin(opening)
        try:
            self.opened()
        except BaseException:
            self.end()
            raise
        return self

    def begin(self, opening: Coroutine[Any, Any, None]) -> Self:
        """Begin to open it there. Raises RuntimeError where no thread can be started, as at the process's end."""
        self._loop.call_soon(self._open, opening)
        forking.begin_work(self)
        try:
            self.thread.start()
        except RuntimeError:
            opening.close()
            self._loop.close()
            raise
        return self

    def opened(self) -> None:
        """Wait until it is open. Raises why it is not; who waits at the same time is told the same."""
        if not self._is_open:
            self.run(lambda _: self._opened())

    def run(self, what: Callable[[C], Coroutine[Any, Any, T]]) -> T:
        """Carry it out there, and wait for it here. What interrupts the wait cancels it. Raises RuntimeError when it is
        cut off by `end`, Ended when it was not begun."""
        if threading.current_thread() is self.thread:
            raise RuntimeError("this is the client's own thread, which can't wait for itself")

        async def carried_out() -> T:
            return await what(self.client)

        call = Call(carried_out)
        self._calls.add(call)
        try:
            self._call_soon(self._begin, call)
            done = call.told.get()
        except BaseException:
            with suppress(Ended):
                self._call_soon(call.cancel)
            raise
        finally:
            self._calls.discard(call)
        if done is None:
            raise RuntimeError(CLOSED) if call.task is not None else Ended(CLOSED)
        try:
            return done.result()
        except asyncio.CancelledError as error:
            raise RuntimeError(CLOSED) from error

    def ask_to_rest(self, rest: Callable[[], None]) -> bool:
        """As `forking.LoopThread`."""
        if threading.current_thread() is self.thread:
            return False
        try:
            self._call_soon(rest)
        except Ended:
            return False
        return True

    def end(self) -> None:
        """Close it, and end the calls that are under way. In its own thread it is begun only."""
        self.is_ended = True
        ended = SimpleQueue[None]()
        self._enders.append(ended)
        try:
            self._call_soon(self._end)
        except Ended:
            return
        if threading.current_thread() is not self.thread:
            self._wait_for(ended)

    def _wait_for(self, ended: "SimpleQueue[None]") -> None:
        try:
            ended.get(timeout=CLOSE_S + 5 * ENDS_S)
        except Empty:
            log.warning("the client's thread does not answer; it is left alone")
            self._give_up()
            return
        self.thread.join(ENDS_S)
        if self._closing is not None and self._closing.done() and not self._closing.cancelled():
            self._closing.result()

    def _call_soon(self, callback: Callable[..., object], *given: object) -> None:
        """Raises Ended once the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(callback, *given)
        except RuntimeError as error:
            raise Ended(CLOSED) from error

    # --- in its own thread ---

    def _work(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()  # before the calls are looked at: one that comes later finds it closed
            self._give_up()

    def _give_up(self) -> None:
        for call in list(self._calls):
            call.told.put(None)
        for ended in self._enders:
            ended.put(None)

    def _open(self, opening: Coroutine[Any, Any, None]) -> None:
        self._opening = self._loop.create_task(opening)
        self._opening.add_done_callback(self._after_opening)

    def _after_opening(self, opening: "asyncio.Task[None]") -> None:
        if opening.cancelled() or opening.exception() is not None:  # who waits for it raises that
            self._end()
        else:
            self._is_open = True

    async def _opened(self) -> None:
        self._waiting += 1
        try:
            await asyncio.shield(self._opening)
        finally:
            self._waiting -= 1
            self._loop.call_soon(self._give_up_opening)  # after those who have come meanwhile

    def _give_up_opening(self) -> None:
        if not self._waiting and not self._opening.done():  # nobody wants it any more
            self._end()

    def _begin(self, call: Call[Any]) -> None:
        if self._ending is None:
            call.begin()
        else:
            call.told.put(None)

    def _end(self) -> None:
        self.is_ended = True
        if self._ending is None:
            self._ending = self._loop.create_task(self._close())
            self._ending.add_done_callback(lambda _: self._loop.stop())

    async def _close(self) -> None:
        """The calls end with what the closing makes of them. Those that do not are cut off: at first the tasks on which
        they wait, so that `send_many` gives its account."""
        until_s = self._loop.time() + CLOSE_S
        if not self._opening.done():
            self._opening.cancel()
            await asyncio.wait([self._opening], timeout=CLOSE_S)
        if self._is_open:
            self._closing = self._loop.create_task(self.client.close())
            _, late = await asyncio.wait([self._closing], timeout=max(0.0, until_s - self._loop.time()))
            if late:
                log.warning("the connections did not close within %g s", CLOSE_S)
        calls = {call.task for call in list(self._calls) if call.task is not None}
        await _ended(calls)
        for tasks in (asyncio.all_tasks() - calls - {asyncio.current_task()}, calls):
            for task in tasks:
                task.cancel(CLOSED)
            await _ended(tasks | calls)


async def _ended(tasks: "set[asyncio.Task[Any]]") -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=ENDS_S)
