"""For an application that sends tasks: confirmed sends, their status, and their results.

    async with Client(Application) as queue:
        handle = await queue.send(Checksum(kind="checksum", path="/etc/hosts"))
        result = await handle.result(timeout_s=30)

`SyncClient` is the same for code that blocks. `generated/<app>/client.py` has both with the types of the contract.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, Self
from uuid import UUID

from workqueue import contract
from workqueue.amqp.connection import reconnect_delay_s
from workqueue.amqp.shared import shared_ledger
from workqueue.amqp.wire import Wire
from workqueue.application import package_of, project_folder
from workqueue.client.instead import Place, taken
from workqueue.client.recording import Recording
from workqueue.client.results import Handle, Results, check_loop, check_seconds, check_time_to_send, with_ledger
from workqueue.client.sending import Outgoing, Sender
from workqueue.client.status import Status
from workqueue.client.submit import Account, Given, submit
from workqueue.client.waiting import CLOSED
from workqueue.errors import (
    BrokerRefused,
    BrokerUnreachable,
    ContractInvalid,
    IdInvalid,
    LedgerUnreachable,
    NoBroker,
    NotAllSent,
    NotSent,
    SendUnknown,
    WorkQueueError,
)
from workqueue.ledger import Cancelling, Ledger, Sent
from workqueue.observe.tracing import open_tracing
from workqueue.patience import Patience
from workqueue.settings import Settings, misspelt

log = logging.getLogger(__name__)


class Client:
    """A connection to the queues of a generated application's send operations, and to the ledger. An asynchronous
    context manager, for one event loop.

    Safe to use from any number of tasks at a time. A connection that is lost is made anew by the next send, which waits
    for it within its own time.
    """

    def __init__(
        self, application: type[Any], *, settings: Settings | None = None, wait_s: float = 0.0, name: str | None = None
    ) -> None:
        """`settings` are those of the environment unless given. `wait_s`: how long, in seconds, `open` waits for a
        broker and a ledger that are out of reach. `name` is this process in the broker's lists."""
        check_seconds("wait_s", wait_s)
        self._application, self._wait_s = application, wait_s
        self._given, self._name = settings, name or f"client-{os.getpid()}"
        self.place: Place | None = None
        """What takes the place of the broker, in a test."""
        self._sender: Sender | None = None
        self._ledger: Ledger | None = None
        self._results: Results | None = None
        self._recording: Recording | None = None
        self._opened = AsyncExitStack()
        """Closes what is open, the last first."""
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect, and declare the contract's queues. Nothing, where that is done.

        Raises BrokerUnreachable and LedgerUnreachable once `wait_s` is over; BrokerRefused, ContractInvalid,
        LedgerClosed, LedgerDiffers and SettingInvalid at once.
        """
        async with self._turn():
            if self._sender is not None:
                return check_loop(self._loop)
            if self._given is None:
                for line in misspelt():
                    log.warning(line)
            patience, failures = Patience(), 0
            while True:
                try:
                    return await self._open()
                except (BrokerUnreachable, LedgerUnreachable) as error:
                    left_s = self._wait_s - patience.waited_s
                    if isinstance(error, BrokerRefused) or left_s <= 0:
                        raise
                    if patience.due():
                        log.warning("%s  waits: %s", self._name, error)
                    failures += 1
                    await asyncio.sleep(min(left_s, reconnect_delay_s(failures, random.random)))

    async def close(self) -> None:
        """Close the connections. What is being sent is unknown then; those who wait for a result are told. An `open`
        that is under way comes first."""
        async with self._turn():
            if self._sender is not None:
                check_loop(self._loop)
            self._sender = self._ledger = self._results = self._recording = None
            await self._opened.aclose()

    async def send(
        self,
        task: object,
        *,
        to: str | None = None,
        id: UUID | str | None = None,
        key: str | None = None,
        within_s: float | None = None,
        record: bool = True,
    ) -> Handle[Any]:
        """Send a payload as a new task, or a whole task as it is. When this returns the broker has the task on disk.

        `to` names the send operation, where several could send it. The same `id` is the same task, which is done once;
        `key` makes an id from the queue, the kind and this text, so whoever sends the same key sends the same task.
        `within_s` is how long it may take, WORKQUEUE_SEND_S unless given. With `record` the ledger is told of the task,
        so that its status is `waiting` until a worker takes it; without, it is `unknown` until then, and the send is
        one statement cheaper.

        Raises TaskInvalid when the task breaks the contract (IdInvalid when its id is none); NotSent when the broker
        refused it, or NoBroker when there was none; SendUnknown when it may have it: sending it again is safe, under
        the same id. SettingInvalid for a `within_s` that is not above 0.
        """
        check_time_to_send(within_s)
        outgoing = self._prepare(task, to, id, key)
        check_loop(self._loop)
        began_s = self._loop.time()
        recording, results = self._recording, self._results  # of what sends it: that may be closed meanwhile
        await self._send(outgoing, within_s)
        if record and recording is not None:
            left_s = (self._settings.send_s if within_s is None else within_s) - (self._loop.time() - began_s)
            await recording.record(Sent(outgoing.id, outgoing.kind, outgoing.digest), max(0.0, left_s))
        return Handle.of(outgoing, results)

    async def send_many(
        self, tasks: Iterable[object], *, to: str | None = None, within_s: float | None = None
    ) -> list[Handle[Any]]:
        """Send them all, at most WORKQUEUE_WINDOW unconfirmed at a time; what is known of each, in their order.

        They are not recorded, see `send`. `tasks` is read by the event loop's thread, no further ahead than is sent.
        Raises NotAllSent, with all that is known, when some were refused or stayed unconfirmed.
        """
        sender = self.sender
        check_loop(self._loop)
        check_time_to_send(within_s)
        sent: dict[int, Handle[Any]] = {}
        refused, unknown, account = list[NotSent](), list[SendUnknown](), Account()

        async def send(numbered: tuple[int, object]) -> None:
            number, task = numbered
            outgoing = sender.prepare(task, to=to)
            results = self._results
            await self._send(outgoing, within_s)
            sent[number] = Handle.of(outgoing, results)

        def note(error: Exception) -> None:
            if isinstance(error, NotSent):
                refused.append(error)
            elif isinstance(error, SendUnknown):
                unknown.append(error)

        await submit(Given(enumerate(tasks)), send, window=self._settings.window, account=account, problem=note)
        handles = [sent[number] for number in sorted(sent)]
        if refused or unknown:
            raise NotAllSent(handles, refused, unknown, complete=account.complete)
        return handles

    async def status(self, id: UUID | str) -> Status:
        """Where the task is. Raises SettingInvalid without a ledger, LedgerUnreachable when that does not answer,
        IdInvalid."""
        return await self.results.status(as_uuid(id))

    async def result(self, id: UUID | str, *, timeout_s: float | None = None, to: str | None = None) -> Any:
        """Wait until the task is done, and return what its handler returned, in the model of the contract.

        Any number may wait at a time: they share one poll of the ledger. `to` names the operation that sent it, where
        several send its kind. Raises TaskDead, and TaskCancelled, which is one; TaskUnfinished (a TimeoutError) after
        `timeout_s`, ResultInvalid, TaskInvalid (IdInvalid); SettingInvalid without a ledger.
        """
        return await self.results.result(as_uuid(id), timeout_s=timeout_s, operation=to)

    async def cancel(self, id: UUID | str, why: str = "") -> Cancelling:
        """Call a task off; `why` is kept with it. What it comes to:

        | answer    | means                                                                                |
        |-----------|--------------------------------------------------------------------------------------|
        | cancelled | no attempt at it begins any more, whether it waits, or is sent later                 |
        | asked     | it runs: its worker stops the handler within two seconds, unless that does not let   |
        |           | itself be stopped. A handler that returns meanwhile has done it; no other attempt is |
        |           | made                                                                                 |
        | done      | it was done before                                                                   |
        | dead      | it was a dead letter before: `workqueue dead drop` throws that away                  |

        Raises as `status`.
        """
        return await self.results.cancel(as_uuid(id), why)

    @property
    def sender(self) -> Sender:
        """What sends, once the client is open."""
        if self._sender is None:
            raise RuntimeError("the client is not open: use it as `async with Client(...) as queue`")
        return self._sender

    @property
    def ledger(self) -> Ledger | None:
        """The ledger; None where there is none, or the client is not open."""
        return self._ledger

    @property
    def results(self) -> Results:
        """What knows of statuses and results, once the client is open. Raises SettingInvalid without a ledger."""
        _ = self.sender
        return with_ledger(self._results)

    async def _open(self) -> None:
        package = package_of(self._application)
        loaded = contract.load(package)
        place, given = taken(loaded), self._given
        if place is None:
            settings, connect = (given or Settings.load()).of_project(project_folder(self._application)), None
        else:
            settings, connect = place.settings_for(given), place.connect
        self.place, self._settings, self._loop = place, settings, asyncio.get_running_loop()
        tracer = open_tracing(settings, self._name)
        ledger = recording = results = None
        async with AsyncExitStack() as opened:
            if settings.ledger_url != "none":
                ledger = await shared_ledger(settings, loaded.sends, self._name)
                opened.push_async_callback(ledger.close)
                recording = Recording(ledger, self._name)
                opened.push_async_callback(recording.close)  # once nothing more is sent
            wire = Wire(settings, loaded, self._name, lambda error: None, ledger, connect)
            opened.push_async_callback(wire.close)
            sender = Sender(loaded, package, wire, tracer)
            await sender.open()
            if ledger is not None:
                results = Results(ledger, {name: one.results for name, one in sender.operations.items()}, self._name)
                opened.push_async_callback(results.close)
            self._opened = opened.pop_all()
        self._sender, self._ledger, self._recording, self._results = sender, ledger, recording, results

    def _turn(self) -> asyncio.Lock:
        """What `open` and `close` take. Each loop has its own: a client that was closed may be opened in another."""
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = loop, asyncio.Lock()
        return self._turns[1]

    def _prepare(self, task: object, to: str | None, id: UUID | str | None, key: str | None) -> Outgoing:
        if key is not None:
            if id is not None:
                raise TypeError("give an id or a key: a key makes the id")
            id = self.sender.keyed(task, key, to=to)
        return self.sender.prepare(task, to=to, task_id=None if id is None else as_uuid(id))

    async def _send(self, outgoing: Outgoing, within_s: float | None) -> None:
        """Raises NotSent and SendUnknown, and nothing else that could happen to a connection on the way."""
        sender, began_s = self._sender, time.monotonic()
        if sender is None:  # one of many, whose turn comes when the client is closed
            raise NoBroker(str(outgoing.id), CLOSED)
        try:
            await sender.send(outgoing, within_s=within_s)
        except (WorkQueueError, asyncio.CancelledError) as error:
            if isinstance(error, NotSent) or (isinstance(error, asyncio.CancelledError) and error.args != (CLOSED,)):
                raise
            why = str(error) if self._sender is sender else CLOSED
            if isinstance(error, BrokerUnreachable | ContractInvalid):  # nothing was published
                raise NoBroker(str(outgoing.id), why) from error
            if isinstance(error, SendUnknown) and why != CLOSED:
                raise
            raise SendUnknown(str(outgoing.id), round(time.monotonic() - began_s, 1), why) from error


def as_uuid(id: UUID | str) -> UUID:
    """An id as a task has it; in a URL, or in somebody's database, it is a text. Raises IdInvalid for another text."""
    try:
        return id if isinstance(id, UUID) else UUID(id)
    except (ValueError, AttributeError, TypeError) as error:
        raise IdInvalid(str(id)) from error
