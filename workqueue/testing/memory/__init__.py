"""Tests of handlers without a broker: a worker, and a client, on a broker in this process's memory.

    result = await run_task(Application, handle, Checksum(kind="checksum", path="/etc/hosts"))

    async with MemoryQueue(Application, {"process_task": handle}, Client(Producer)) as queue:
        handle = await queue.client.send(Checksum(kind="checksum", path="/etc/hosts"))
        result = await handle.result(timeout_s=10)

All that becomes of a task is the runtime's own doing: codecs, guard, policy, threads, time limits and leases, lifespan,
events, client. The broker is a stand-in (`broker`); the ledger is a SQLite one, in a folder that ends with the test,
since it promises the same and its transactions are real: SQL in a `completion` is SQLite's here.

No time is spent on delays: as soon as nothing is in hand, time is skipped until the next task is due, for the ledger
too. All other times are real.

What only a real broker can show, it can't: that tasks outlast a crash, a restart, a cut connection or a full queue,
that workers share them, what a user may do; see `Site` for that.
"""

import asyncio
import os
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Generic, Self, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel

from workqueue import codec, contract
from workqueue.amqp.wire import Wire
from workqueue.application import package_of
from workqueue.client import Client
from workqueue.client.blocking import SyncClient
from workqueue.client.instead import Place, instead
from workqueue.client.results import Results
from workqueue.client.running import Running
from workqueue.client.sending import Sender
from workqueue.contract import Contract, Send
from workqueue.errors import TaskDead
from workqueue.ledger import Ledger, open_ledger
from workqueue.observe.health import Health
from workqueue.process.contexts import Within
from workqueue.settings import Settings
from workqueue.tasks.attempt import Handler
from workqueue.tasks.context import TaskContext
from workqueue.tasks.events import Cancelled, Dead, Done, Event, Skipped, Told
from workqueue.tasks.received import Runtime
from workqueue.testing.memory.broker import Broker, Message
from workqueue.testing.memory.lane import open_memory
from workqueue.worker import check
from workqueue.worker.beside import again, begin
from workqueue.worker.crew import Crew, Job, start, stop
from workqueue.worker.ending import Ending
from workqueue.worker.lifespan import Lifespan
from workqueue.worker.orders import LOOK_S, Orders

WORKER = "memory"
FOLDERS = "/dev/shm"  # where there is one: elsewhere SQLite waits for a disk, at times for longer than the test takes
NO_BROKER = "amqp://memory.invalid/"  # for a handler that connects by itself: it is told so, and finds nobody's broker
SETTINGS = Settings(amqp_uri=(NO_BROKER,), reconnect_s=0.1)
FINISH_S = 2.0  # for what is in hand when the test is over, and again for what was cut off then
SKIP = """
UPDATE task SET next_at = next_at - ?1, lease_until = next_at - ?1, ends_at = ends_at - ?1
WHERE state = 'waiting' AND next_at = lease_until
"""

C = TypeVar("C", bound=Client | SyncClient | None)
R = TypeVar("R")
M = TypeVar("M", bound=BaseModel | None)


class MemoryQueue(Generic[C]):
    """A worker with these handlers, and `client`, on a broker in memory: a context manager.

    `application`, `handlers` and `lifespan` are those of `run_worker`. `client` is the application's own, closed until
    now and closed again at the end: a Client for `async with`, a SyncClient for a plain `with`, whose worker has its
    event loop in a thread. Any other client that is opened meanwhile, by the application or by a handler, is connected
    to this queue too, whatever its settings say. `concurrency` is for each operation; without `skip_delays` they are
    waited for.

    `events` has what the worker told so far. Raises at its end what had ended the worker before.
    """

    broker: Broker
    ledger: Ledger
    settings: Settings
    _closing: AsyncExitStack
    _ending: Ending
    _running: Running[Any]

    def __init__(
        self,
        application: type[Any],
        handlers: Mapping[str, Any],  # a generated TypedDict, or a dict of several, is no mapping to Handler
        client: C,
        *,
        lifespan: Callable[[Settings], AbstractAsyncContextManager[Any]] | None = None,
        concurrency: int = 1,
        skip_delays: bool = True,
    ) -> None:
        self.client, self.events = client, list[Told]()
        self._application, self._handlers, self._lifespan = application, handlers, lifespan
        self._contract = contract.load(package_of(application))
        self._receives = {receive.operation: receive for receive in self._contract.receives.values()}
        self._concurrency, self._skip_delays = concurrency, skip_delays
        self._settled = defaultdict[str, asyncio.Event](asyncio.Event)
        check(handlers, self._receives)

    async def __aenter__(self) -> Self:
        if isinstance(self.client, SyncClient):
            raise TypeError("a SyncClient would block the worker's event loop: use `with`")
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        if isinstance(self.client, Client):
            raise TypeError("a Client is for the worker's event loop: use `async with`")
        self._running = Running(self).start(self.open())
        return self

    def __exit__(self, *_: object) -> None:
        self._running.end()

    @property
    def dead_letters(self) -> list[Message]:
        """The dead letters of all operations, the oldest of each first: `body`, `properties`, `headers`."""
        queues = dict.fromkeys(receive.dead.name for receive in self._receives.values())
        return [letter for queue in queues for letter in self.broker.messages(queue)]

    async def idle(self) -> None:
        """Wait until nothing is left to do: every task is done, or a dead letter. In any event loop: a plain test has
        `asyncio.run(queue.idle())`."""
        if asyncio.get_running_loop() is not self.broker.loop:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.idle(), self.broker.loop))
        await self._until(self.broker.idle)

    async def settled(self, task_id: UUID) -> None:
        """Wait until this task is done, or a dead letter. In the worker's event loop."""
        await self._until(self._settled[str(task_id)])

    def only(self, operation: str) -> Self:
        """Have tasks of this operation done; those of the others wait in their queues. Before it is opened."""
        self._handlers = {operation: self._handlers[operation]}
        return self

    async def open(self) -> None:
        """Raises as `run_worker` and the client's `open`."""
        codec.install()
        self._ending = Ending()
        async with AsyncExitStack() as stack:
            home = FOLDERS if os.access(FOLDERS, os.W_OK | os.X_OK) else None
            ledger = f"{stack.enter_context(TemporaryDirectory(prefix='workqueue-', dir=home))}/ledger.db"
            self.settings = replace(SETTINGS, ledger_url=f"sqlite:{ledger}")
            self.ledger = await open_ledger(self.settings)
            stack.push_async_callback(self.ledger.close)
            db = stack.enter_context(closing(sqlite3.connect(ledger, isolation_level=None)))
            self.broker = Broker((lambda by_s: db.execute(SKIP, (by_s,))) if self._skip_delays else None)
            stack.callback(self.broker.close)
            queues = {receive.queue.name for receive in self._receives.values()}
            place = Place(self.settings, partial(open_memory, self.broker), frozenset(queues))
            stack.push_async_callback(_end, place)
            stack.enter_context(instead(place))
            stack.push_async_callback(self._close_client)
            await self._open_client()
            make = None if self._lifespan is None else partial(self._lifespan, self.settings)
            resources = Lifespan(make, self._fatal)
            stack.push_async_callback(resources.close)
            await resources.open()
            await self._work(stack, resources)
            self._closing = stack.pop_all()

    async def close(self) -> None:
        await self._closing.aclose()
        self._ending.set()
        await self._ending.wait()

    async def _work(self, stack: AsyncExitStack, resources: Lifespan) -> None:
        wire = Wire(self.settings, self._contract, WORKER, self._fatal, connect=partial(open_memory, self.broker))
        jobs = [Job(self._receives[name], handler, self._concurrency) for name, handler in self._handlers.items()]
        runtime = Runtime(
            WORKER, self._contract, self.ledger, wire.publisher(), self.settings, self._tell, self._fatal,
            resources.value, single=len(jobs) * self._concurrency == 1,
        )  # fmt: skip
        crews = (crew := Crew()).consumers(self._application, jobs, runtime, wire)

        async def end() -> None:
            crew.drain()
            await wire.drain()
            await crew.idle(FINISH_S)
            crew.end()
            await crew.idle(FINISH_S)
            await stop(crews, FINISH_S)
            await wire.close()

        stack.push_async_callback(end)
        queues = {job.receive.queue.name for job in jobs}
        orders = Orders(WORKER, queues, self.ledger, crew, wire, Health(), self._tell)
        begin(again(orders.look, LOOK_S), self._fatal, stack)
        await Within(resources.context, start(crews))

    async def _open_client(self) -> None:
        await self._close_client()  # one that was open is connected to something else
        if self.client is not None:
            await _either(self.client.open)

    async def _close_client(self) -> None:
        if self.client is not None:
            await _either(self.client.close)

    def _tell(self, told: Told) -> None:
        self.events.append(told)
        if isinstance(told, Event) and isinstance(told.what, Done | Dead | Cancelled | Skipped):
            self._settled[told.id].set()

    async def _until(self, event: asyncio.Event) -> None:
        """Raises what has ended the worker before."""
        while not event.is_set():  # a task may have been sent since it was
            if not await self._ending.unless(event.wait()):
                return await self._ending.wait()

    def _fatal(self, error: BaseException) -> None:
        """The worker can't go on: no result comes any more, and who waits for one is told."""
        self._ending.set(error)
        self._telling = asyncio.ensure_future(self._close_client())


async def _end(place: Place) -> None:
    for told in place.on_end:
        await asyncio.to_thread(told)


async def _either(call: Callable[[], Awaitable[None] | None]) -> None:
    """A method of a client, which is awaited or blocks."""
    answer = await asyncio.to_thread(call)
    if answer is not None:
        await answer


@overload
async def run_task(
    application: type[Any], handler: Callable[[Any, TaskContext[R]], Awaitable[M]], payload: object, *,
    to: str | None = None, lifespan: Callable[[Settings], AbstractAsyncContextManager[R]] | None = None,
) -> M: ...  # fmt: skip
@overload
async def run_task(
    application: type[Any], handler: Callable[[Any, TaskContext[R]], M], payload: object, *,
    to: str | None = None, lifespan: Callable[[Settings], AbstractAsyncContextManager[R]] | None = None,
) -> M: ...  # fmt: skip
async def run_task(
    application: type[Any], handler: Handler[Any, R], payload: object, *,
    to: str | None = None, lifespan: Callable[[Settings], AbstractAsyncContextManager[R]] | None = None,
) -> Any:  # fmt: skip
    """Run one task, a payload or a whole one, as a worker does, and return the result that its sender would get.

    It is tried as often as the contract says, see `MemoryQueue`. `to` names the receive operation where the payload may
    be several's. Tasks that the handler itself sends are nobody's concern here: those of other operations are not done,
    and the end of this one is waited for, not theirs. In a plain test: `asyncio.run(run_task(...))`.

    Raises NotSent for what breaks the contract; TaskDead when it became a dead letter, and what the handler raised last
    is its cause.
    """
    package = package_of(application)
    loaded = contract.load(package)
    handlers = dict.fromkeys((receive.operation for receive in loaded.receives.values()), handler)
    queue, sends = MemoryQueue(application, handlers, None, lifespan=lifespan), _sends(loaded)
    wire = Wire(SETTINGS, sends, "test", lambda _: None, connect=lambda *given: open_memory(queue.broker, *given))
    sender = Sender(sends, package, wire)
    outgoing = sender.prepare(payload, to=to)
    async with queue.only(outgoing.operation):
        await sender.send(outgoing)
        await queue.settled(outgoing.id)
        results = Results(queue.ledger, {name: operation.results for name, operation in sender.operations.items()})
        try:
            return await results.result(outgoing.id, operation=outgoing.operation)
        except TaskDead as dead:
            told = [one.what for one in queue.events if isinstance(one, Event) and one.id == str(outgoing.id)]
            deaths = [what for what in told if isinstance(what, Dead) and what.reason == dead.reason]
            raise dead from (deaths[0].cause if deaths else None)
        finally:
            await results.close()


def _sends(loaded: Contract) -> Contract:
    """The contract of those who send what this one receives."""
    sends = {
        name: Send(
            receive.operation, receive.queue, receive.message, persistent=True, mandatory=True, timestamp=True,
            tag=receive.tag, kinds=receive.kinds,
        )
        for name, receive in loaded.receives.items()
    }  # fmt: skip
    return Contract(loaded.version, loaded.digest, loaded.queues, sends, {})
