"""Many tasks to the broker: a window of unconfirmed ones, and an exact account at the end."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from workqueue.errors import (
    BrokerUnreachable,
    ContractInvalid,
    InputInvalid,
    NoBroker,
    NotSent,
    SendUnknown,
    WorkQueueError,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass
class Account:
    """What became of everything that was to be sent, in tasks.

    `confirmed`: the broker has them. `refused`: it has not, and will not (or they break the contract). `unknown`: the
    deadline passed without a word. `unsent`: there was no broker to send them to. `unread`: input that is no task.
    `complete` is False when sending stopped early, so that there may be more input than was counted.
    """

    confirmed: int = 0
    refused: int = 0
    unknown: int = 0
    unsent: int = 0
    unread: int = 0
    complete: bool = True

    def __str__(self) -> str:
        parts = [f"{self.confirmed} confirmed", f"{self.refused} refused", f"{self.unknown} unknown"]
        parts += [f"{self.unsent} not sent"] * bool(self.unsent) + [f"{self.unread} unreadable"] * bool(self.unread)
        parts += ["the rest not tried"] * (not self.complete)
        return ", ".join(parts)


class Source(Protocol[T_co]):
    """Where what is to be sent comes from, for one reader; nothing more comes after `stop`."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...
    def stop(self) -> None: ...


class Given(Generic[T]):
    """An iterable that is read where it is sent from, by this thread: it must not block."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._stopped = items, False

    def stop(self) -> None:
        self._stopped = True

    async def __aiter__(self) -> AsyncIterator[T]:
        for item in self._items:
            if self._stopped:
                return
            yield item


class Feed(Generic[T]):
    """An iterable read by a thread of its own, at most `ahead` items ahead: it may block (a pipe, a slow disk) while
    the connection's heartbeats go on, and its length does not matter. For one reader."""

    def __init__(self, items: Iterable[T], ahead: int) -> None:
        self._items, self._ahead = items, ahead
        self._read: deque[T] = deque()
        self._room = threading.Event()
        self._changed, self._waiting = asyncio.Event(), False
        self._loop = asyncio.get_running_loop()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        threading.Thread(target=self._fill, name="feed", daemon=True).start()

    def stop(self) -> None:
        """Deliver nothing more."""
        self._stopped = True
        self._room.set()
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        while not self._stopped:
            ended = self._ended  # read before the items: nothing is appended after it is set
            if self._read:
                yield self._read.popleft()
                if not self._room.is_set() and len(self._read) <= self._ahead // 2:
                    self._room.set()  # many at a time: threads that wake each other for every item cost more than it
            elif ended:
                if self._error is not None:
                    raise self._error
                return
            else:
                self._changed.clear()
                self._waiting = True  # set before the last look: what comes after it wakes this
                if not self._read and not self._ended:
                    await self._changed.wait()
                self._waiting = False

    def _fill(self) -> None:
        try:
            for item in self._items:
                if len(self._read) >= self._ahead:
                    self._room.clear()
                    # Still? What is taken, or stopped, after this look sets it again.
                    if len(self._read) >= self._ahead and not self._stopped:
                        self._room.wait()
                if self._stopped:
                    return
                self._read.append(item)
                self._wake()
        except BaseException as error:  # noqa: BLE001  # raised again by the reader
            self._error = error
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._changed.set)


async def submit(
    source: Source[T | InputInvalid],
    send: Callable[[T], Awaitable[None]],
    *,
    window: int,
    account: Account,
    problem: Callable[[WorkQueueError], None],
) -> None:
    """Send them all, at most `window` unconfirmed at a time, and count into `account`.

    Each refused or unreadable one is told to `problem` and stops nothing. The first that stays unconfirmed, or unsent,
    until its deadline ends the reading of more: the broker takes nothing any more. Raises as `Publisher.send`.
    Cancelled, it counts what was under way as unknown.
    """
    submission = Submission(source, send, account, problem)
    try:
        await submission.send_all(asyncio.Semaphore(window))
    except BaseException:
        account.complete = False
        raise
    finally:
        await submission.end()
    if submission.unreachable is not None:
        raise submission.unreachable


class Submission(Generic[T]):
    """What one `submit` has under way. `unreachable` is why there is no broker, if there is none."""

    def __init__(
        self,
        source: Source[T | InputInvalid],
        send: Callable[[T], Awaitable[None]],
        account: Account,
        problem: Callable[[WorkQueueError], None],
    ) -> None:
        self._source, self._send, self._account, self._problem = source, send, account, problem
        self._under_way: set[asyncio.Task[None]] = set()
        self.unreachable: WorkQueueError | None = None

    async def send_all(self, slots: asyncio.Semaphore) -> None:
        async for task in self._source:
            if isinstance(task, InputInvalid):
                self._account.unread += 1
                self._problem(task)
                continue
            await slots.acquire()
            sending = asyncio.ensure_future(self._one(task, slots))
            self._under_way.add(sending)
            sending.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)

    async def end(self) -> None:
        self._source.stop()
        for sending in self._under_way:
            sending.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _one(self, task: T, slots: asyncio.Semaphore) -> None:
        try:
            await self._send(task)
            self._account.confirmed += 1
        except BaseException as error:
            if isinstance(error, NotSent) and not isinstance(error, NoBroker):
                self._account.refused += 1
                self._problem(error)
                return
            if isinstance(error, NoBroker | BrokerUnreachable | ContractInvalid):
                self._account.unsent += 1
            else:
                self._account.unknown += 1
            self._account.complete = False
            self._source.stop()
            if isinstance(error, SendUnknown | NoBroker):
                self._problem(error)
            elif isinstance(error, WorkQueueError):
                self.unreachable = self.unreachable or error
            else:
                raise
        finally:
            slots.release()
