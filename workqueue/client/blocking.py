"""The client for code that blocks: Django, Flask, scripts, threads, servers that fork."""

import asyncio
import atexit
import logging
import os
import sys
import threading
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from typing import Any, Generic, Protocol, Self, TypeVar
from uuid import UUID
from weakref import WeakSet

import uvloop

from workqueue.client import Client
from workqueue.client.results import Handle
from workqueue.client.status import Status
from workqueue.errors import NotAllSent, NotSent, SendUnknown, ThreadsMissing, WorkQueueError
from workqueue.settings import Settings

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")
C = TypeVar("C", bound="Closing")

CLOSE_S = 5.0  # for the closing handshakes, at the end of the process
AT_ONCE = 2000  # of many tasks, read in the caller's thread before they are sent


class SyncClient:
    """`Client` for code that blocks: the same methods, which return when it is done.

    Safe in any number of threads at a time, which share the connections of their process. Those are made by the first
    call, on an event loop in a thread of their own, and closed at the process's end or by `close`; a call after that
    makes new ones. A process that is forked makes its own: its parent's go on undisturbed.

    Where threads do not run (gevent, eventlet, uWSGI without threads) the first call raises ThreadsMissing.
    """

    def __init__(
        self, application: type[Any], *, settings: Settings | None = None, wait_s: float = 0.0, name: str | None = None
    ) -> None:
        """As `Client`."""
        self._application, self._settings, self._wait_s, self._name = application, settings, wait_s, name
        self._opening, self._pid = threading.Lock(), os.getpid()
        self._running: Running[Client] | None = None
        self._failed: WorkQueueError | None = None
        _clients.add(self)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect now, if this process has not. As `Client.open`."""
        self._here()

    def close(self) -> None:
        """Close this process's connections, if there are any."""
        if self._pid == os.getpid():
            with self._opening:
                running, self._running = self._running, None
            if running is not None:
                running.end()

    def send(
        self,
        task: object,
        *,
        to: str | None = None,
        id: UUID | str | None = None,
        key: str | None = None,
        within_s: float | None = None,
        record: bool = True,
    ) -> "SyncHandle[Any]":
        """As `Client.send`."""
        running = self._here()
        sent = running.client.send(task, to=to, id=id, key=key, within_s=within_s, record=record)
        return SyncHandle(running.run(sent), self)

    def send_many(
        self, tasks: Iterable[object], *, to: str | None = None, within_s: float | None = None
    ) -> "list[SyncHandle[Any]]":
        """As `Client.send_many`. `tasks` is read in the caller's thread, some at a time."""
        running, rest, handles = self._here(), iter(tasks), list[Handle[Any]]()
        refused, unknown, complete = list[NotSent](), list[SendUnknown](), True
        while complete and (some := list(islice(rest, AT_ONCE))):
            try:
                handles += running.run(running.client.send_many(some, to=to, within_s=within_s))
            except NotAllSent as error:
                handles += error.sent
                refused += error.refused
                unknown += error.unknown
                complete = error.complete
        sent = [SyncHandle(handle, self) for handle in handles]
        if refused or unknown:
            raise NotAllSent(sent, refused, unknown, complete=complete)
        return sent

    def status(self, id: UUID | str) -> Status:
        """As `Client.status`."""
        running = self._here()
        return running.run(running.client.status(id))

    def result(self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None) -> Any:
        """As `Client.result`."""
        running = self._here()
        return running.run(running.client.result(id, timeout_s=timeout_s, to=to))

    def status_of(self, handle: Handle[Any]) -> Status:
        running = self._here()
        return running.run(running.client.results.status(handle.id, handle.digest))

    def result_of(self, handle: Handle[R], timeout_s: float | None) -> R:
        running = self._here()
        result: R = running.run(
            running.client.results.result(
                handle.id, timeout_s=timeout_s, operation=handle.operation, digest=handle.digest
            )
        )
        return result

    def _here(self) -> "Running[Client]":
        """The connections of this process."""
        if self._pid != os.getpid():
            # Nothing of the parent's is closed, nor let go: what it is made of would say goodbye to the broker.
            _left.append(self._running)
            self._opening, self._running, self._pid = threading.Lock(), None, os.getpid()
        running = self._running
        if running is None:
            before = self._failed
            with self._opening:
                running = self._running
                if running is None:
                    if self._failed is not None and self._failed is not before:
                        raise self._failed  # another thread has tried while this one waited
                    running = self._running = self._opened()
        return running

    def _opened(self) -> "Running[Client]":
        _refuse_without_threads()
        client = Client(self._application, settings=self._settings, wait_s=self._wait_s, name=self._name)
        try:
            running = Running(client).start(client.open())
        except WorkQueueError as error:
            self._failed = error
            raise
        self._failed = None
        if client.place is not None:  # the next call after the test connects to the broker
            client.place.on_end.append(self.close)
        return running


@dataclass(frozen=True, slots=True)
class SyncHandle(Generic[R]):
    """As `Handle`, for code that blocks."""

    handle: Handle[R] = field(repr=False)
    client: SyncClient = field(repr=False, compare=False)

    @property
    def id(self) -> UUID:
        return self.handle.id

    def status(self) -> Status:
        """As `Handle.status`."""
        return self.client.status_of(self.handle)

    def result(self, *, timeout_s: float | None = None) -> R:
        """As `Handle.result`."""
        return self.client.result_of(self.handle, timeout_s)


class Closing(Protocol):
    async def close(self) -> None: ...


class Running(Generic[C]):
    """A client, or something else that is opened and closed, on an event loop in a thread of its own."""

    def __init__(self, client: C) -> None:
        self.client, self._loop = client, uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="workqueue client", daemon=True)

    def start(self, opening: Coroutine[Any, Any, None]) -> Self:
        """Open it there. Raises what that does."""
        self._thread.start()
        try:
            self.run(opening)
        except BaseException:
            self._stop()
            raise
        return self

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        """Carry it out there, and wait for it here. What interrupts the wait cancels it."""
        if threading.current_thread() is self._thread:
            what.close()
            raise RuntimeError("this is the client's own thread, which can't wait for itself")
        running = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def end(self) -> None:
        if self._thread.is_alive():
            try:
                asyncio.run_coroutine_threadsafe(self.client.close(), self._loop).result(CLOSE_S)
            except TimeoutError:
                log.warning("the connections did not close within %g s", CLOSE_S)
            finally:
                self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


_clients: WeakSet[SyncClient] = WeakSet()
_left: list[Running[Client] | None] = []


@atexit.register
def _close_all() -> None:
    for client in list(_clients):
        client.close()


def _refuse_without_threads() -> None:
    """Raises ThreadsMissing where the loop's thread would not run."""
    for module, monkey in (("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")):
        found = sys.modules.get(module)
        if found is not None and getattr(found, monkey)("threading" if module == "gevent.monkey" else "thread"):
            name = module.partition(".")[0]
            raise ThreadsMissing(f"{name} has replaced them; run the server with threads, or use Client")
    try:
        uwsgi = import_module("uwsgi")  # there is one inside uWSGI only
    except ImportError:
        return
    if uwsgi.opt.keys().isdisjoint({"threads", "enable-threads"}):
        raise ThreadsMissing("uWSGI runs none; start it with --enable-threads")
