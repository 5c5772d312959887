"""The client for code that blocks: Django, Flask, scripts, threads, servers that fork."""

import atexit
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from typing import Any, Generic, Self, TypeVar
from uuid import UUID
from weakref import WeakSet

from workqueue.client import Client
from workqueue.client.results import Handle, check_seconds
from workqueue.client.running import Ended, Running
from workqueue.client.status import Status
from workqueue.errors import NotAllSent, NotSent, SendUnknown, ThreadsMissing
from workqueue.ledger import Cancelling
from workqueue.process import forking
from workqueue.settings import Settings

R = TypeVar("R")

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
        check_seconds("wait_s", wait_s)
        self._application, self._settings, self._wait_s, self._name = application, settings, wait_s, name
        # A signal handler, or what gc collects, may use the client in the middle of a call: what holds the lock waits
        # for nothing.
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._running: Running[Client] | None = None
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
        """Close this process's connections, if there are any, or give up opening them. The calls that are under way
        end: RuntimeError tells them, or, of what was being sent, SendUnknown."""
        running = self._running
        if running is not None and self._pid == os.getpid() and not sys.is_finalizing():
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
        sent = self._here().run(
            lambda client: client.send(task, to=to, id=id, key=key, within_s=within_s, record=record)
        )
        return SyncHandle(sent, self)

    def send_many(
        self, tasks: Iterable[object], *, to: str | None = None, within_s: float | None = None
    ) -> "list[SyncHandle[Any]]":
        """As `Client.send_many`. `tasks` is read in the caller's thread, some at a time."""
        running, rest, handles = self._here(), iter(tasks), list[Handle[Any]]()

        async def send(client: Client) -> list[Handle[Any]]:
            return await client.send_many(some, to=to, within_s=within_s)

        refused, unknown, complete = list[NotSent](), list[SendUnknown](), True
        while complete and (some := list(islice(rest, AT_ONCE))):
            try:
                handles += running.run(send)
            except NotAllSent as error:
                handles += error.sent
                refused += error.refused
                unknown += error.unknown
                complete = error.complete
            except Ended as error:  # between two lots: what the broker has is told all the same
                if not handles and not refused:
                    raise
                refused.append(NotSent("", str(error)))
                complete = False
        sent = [SyncHandle(handle, self) for handle in handles]
        if refused or unknown:
            raise NotAllSent(sent, refused, unknown, complete=complete)
        return sent

    def status(self, id: UUID | str) -> Status:
        """As `Client.status`."""
        return self._here().run(lambda client: client.status(id))

    def result(self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None) -> Any:
        """As `Client.result`."""
        return self._here().run(lambda client: client.result(id, timeout_s=timeout_s, to=to))

    def cancel(self, id: UUID | str, why: str = "") -> Cancelling:
        """As `Client.cancel`."""
        return self._here().run(lambda client: client.cancel(id, why))

    def status_of(self, handle: Handle[Any]) -> Status:
        return self._here().run(lambda client: client.results.status(handle.id, handle.digest))

    def cancel_of(self, handle: Handle[Any], why: str) -> Cancelling:
        return self._here().run(lambda client: client.results.cancel(handle.id, why, handle.digest))

    def result_of(self, handle: Handle[R], timeout_s: float | None) -> R:
        result: R = self._here().run(
            lambda client: client.results.result(
                handle.id, timeout_s=timeout_s, operation=handle.operation, digest=handle.digest
            )
        )
        return result

    def _here(self) -> Running[Client]:
        """The connections of this process, open."""
        if sys.is_finalizing():  # a thread does not run any more
            raise RuntimeError("the process is at its end: its clients are closed")
        if self._pid != os.getpid():
            # Nothing of the parent's is closed, nor let go: what it is made of would say goodbye to the broker.
            _left.append(self._running)
            self._lock, self._running, self._pid = threading.RLock(), None, os.getpid()
        running = self._running
        if running is None or running.is_ended:
            with self._lock:
                running = self._running
                if running is None or running.is_ended:
                    with forking.making:
                        running = self._instead_of(running)
        try:
            running.opened()
        except Ended:  # meanwhile: this call comes after
            return self._here()
        return running

    def _instead_of(self, ended: Running[Client] | None) -> Running[Client]:
        made = self._begun()
        if self._running is not None and self._running is not ended:  # a signal handler has made it meanwhile
            made.end()
            return self._running
        self._running = made
        return made

    def _begun(self) -> Running[Client]:
        _refuse_without_threads()
        client = Client(self._application, settings=self._settings, wait_s=self._wait_s, name=self._name)

        async def opening() -> None:
            await client.open()
            if client.place is not None:  # the next call after the test connects to the broker
                client.place.on_end.append(self.close)

        return Running(client).begin(opening())


@dataclass(frozen=True, slots=True)
class SyncHandle(Generic[R]):
    """As `Handle`, for code that blocks."""

    handle: Handle[R]
    client: SyncClient = field(repr=False, compare=False)

    @property
    def id(self) -> UUID:
        return self.handle.id

    def status(self) -> Status:
        """As `Handle.status`."""
        return self.client.status_of(self.handle)

    def cancel(self, why: str = "") -> Cancelling:
        """As `Handle.cancel`."""
        return self.client.cancel_of(self.handle, why)

    def result(self, *, timeout_s: float | None = None) -> R:
        """As `Handle.result`."""
        return self.client.result_of(self.handle, timeout_s)


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
