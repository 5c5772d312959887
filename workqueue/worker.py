"""A worker process: connect, take tasks until a signal, drain, report."""

import argparse
import asyncio
import logging
import os
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from itertools import chain
from typing import Any, NoReturn, TypeVar

from workqueue import codec, contract
from workqueue.amqp.wire import Wire
from workqueue.contract import Contract, Receive
from workqueue.errors import HandlersDiffer, HandlersInvalid, SettingInvalid, WorkerFault
from workqueue.ledger import Ledger, LedgerBusy, open_ledger
from workqueue.lifecycle import Flags, count, load_settings, on_signals, operation_of, package_of, prepare, run
from workqueue.lifespan import Lifespan
from workqueue.observe.recycle import Recycle
from workqueue.settings import Settings
from workqueue.signals import INTERRUPTED, signals
from workqueue.tasks.attempt import check_handler
from workqueue.tasks.events import Listener, Ready, Stopped, Stopping
from workqueue.tasks.policy import describe
from workqueue.tasks.processor import Guard, Handler
from workqueue.tasks.received import Runtime
from workqueue.tasks.scope import Scope
from workqueue.tasks.watchdog import Watchdog

log = logging.getLogger(__name__)

R = TypeVar("R")

PRUNE_EVERY_S = 1800.0
CUT_OFF_S = 3.0  # for handing back what was cut off at the end of a drain; what takes longer is left to the broker
CLOSE_S = 4.0  # for closing connections
RELEASE_S = 2.0  # for giving back the claims of handlers that do not end


def run_worker(
    application: type[Any],
    handlers: Mapping[str, Handler[Any, R]],
    *,
    about: str | None = None,
    lifespan: Callable[[Settings], AbstractAsyncContextManager[R]] | None = None,
    variables: Collection[str] = (),
) -> int:
    """Run the handlers of a generated application's receive operations until SIGTERM or SIGINT.

    `handlers` has one for each, by the operation's name in the contract. `lifespan` makes, of the settings, a context
    manager that is entered before the first task is taken and left after the last one: what it gives is each
    handler's `context.resources`. `about` is what --help says; `variables` are the names of the script's own
    WORKQUEUE_ variables.

    Returns the exit code. It is 2 for a handler that is missing, or one too many, or that can do no task; and for a
    lifespan that raises when it is entered, unless that is a WorkQueueError with a code of its own.
    """
    tell = prepare()
    flags = Flags(about)
    flags.add_argument(
        "id", metavar="ID", type=_name, help="this worker's name in logs, results and the broker's lists"
    )
    flags.add_argument(
        "--concurrency", type=_concurrency, action="append", default=[], metavar="[OPERATION=]N",
        help="tasks at a time of each operation, or of this one (default 1)",
    )  # fmt: skip
    flags.add_argument(
        "--only", action="append", metavar="OPERATION", help="take tasks of this operation, and not of all"
    )
    flags.add_argument("--max-tasks", type=count, metavar="N", help="drain and exit with 0 after N runs of a handler")
    flags.add_argument("--max-memory", type=count, metavar="MIB", help="the same once it holds so much memory")
    given = flags.parse_args()

    async def work() -> int:
        loaded = contract.load(package_of(application))
        by_name = {receive.operation: receive for receive in loaded.receives.values()}
        _check(handlers, by_name)
        counts = _counts(given.concurrency, given.only or list(by_name), by_name)
        settings = load_settings(application, variables)
        work = [(by_name[name], handlers[name], count) for name, count in counts.items()]
        ending = Ending()
        listener = tell
        if given.max_tasks or given.max_memory:
            listener = Recycle(tell, ending.set, max_tasks=given.max_tasks, max_mib=given.max_memory)
        return await _work(application, loaded, work, given.id, settings, lifespan, listener, ending)

    return run(work, told_early=0)


def _check(handlers: Mapping[str, Handler[Any, Any]], by_name: Mapping[str, Receive]) -> None:
    """Raises HandlersInvalid, HandlersDiffer, HandlerInvalid."""
    if not isinstance(handlers, Mapping):
        raise HandlersInvalid(handlers, by_name)
    if handlers.keys() != by_name.keys():
        raise HandlersDiffer(handlers, by_name)
    for handler in handlers.values():
        check_handler(handler)


def _counts(given: Iterable[tuple[str | None, int]], only: Collection[str], known: Collection[str]) -> dict[str, int]:
    """How many tasks at a time of each operation. Raises SettingInvalid."""
    named = [name for name, _ in given if name is not None]
    for flag, names in (("--only", only), ("--concurrency", named)):
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise SettingInvalid(flag, unknown, f"no such receive operation; the contract has {', '.join(known)}")
    counts = dict.fromkeys(only, 1)
    for name, number in sorted(given, key=lambda one: one[0] is not None):  # what is said of one counts for that
        counts |= {each: number for each in (counts if name is None else [name]) if each in counts}
    return counts


class Crew:
    """The guards of all that this worker does, as one."""

    def __init__(self, guards: Collection[Guard[Any]]) -> None:
        self._guards = guards

    def running(self) -> list[Scope]:
        """For any thread: a set is copied in one step."""
        return [scope for guard in self._guards for scope in list(guard.attempts.running)]

    @property
    def in_hand(self) -> int:
        return sum(guard.in_hand for guard in self._guards)

    def drain(self) -> None:
        for guard in self._guards:
            guard.drain()

    def end(self) -> None:
        for guard in self._guards:
            guard.end()

    async def idle(self, within_s: float) -> bool:
        """Wait until nothing is in hand. False: something still was after this time."""
        return all(await asyncio.gather(*(guard.idle(within_s) for guard in self._guards)))

    def unrecorded(self) -> list[str]:
        return sorted(chain.from_iterable(guard.unrecorded for guard in self._guards))

    def account(self, name: str, more: int = 0) -> Stopped:
        """What became of the messages; `more` are on their way back."""
        finished = sum(guard.settling.finished for guard in self._guards)
        return Stopped(name, finished, sum(guard.settling.handed_back for guard in self._guards) + more)


async def _work(
    application: type[Any],
    loaded: Contract,
    work: list[tuple[Receive, Handler[Any, Any], int]],
    name: str,
    settings: Settings,
    lifespan: Callable[[Settings], AbstractAsyncContextManager[Any]] | None,
    tell: Listener,
    ending: "Ending",
) -> int:
    codec.install()
    on_signals(ending.set)
    async with AsyncExitStack() as closing:
        ledger = await ending.unless(open_ledger(settings))
        if ledger is None:
            return 0
        closing.push_async_callback(ledger.close)
        guards: list[Guard[Any]] = []
        crew = Crew(guards)
        watchdog = Watchdog(name, crew.running, partial(_release_from_thread, settings))
        watchdog.start()
        closing.callback(watchdog.rest)
        resources = Lifespan(None if lifespan is None else partial(lifespan, settings), ending.set)
        closing.push_async_callback(resources.close)
        if not await ending.unless(resources.open()):
            watchdog.end_by(2 * CLOSE_S, 0, "it was told to end")  # a lifespan may not let itself be cancelled
            return 0
        wire = Wire(settings, loaded, name, ending.set, ledger)
        closing.push_async_callback(wire.close)
        pruning = asyncio.ensure_future(_prune(ledger, settings.keep_s, ending.set))
        closing.callback(pruning.cancel)
        runtime = Runtime(
            name, loaded, ledger, wire.publisher(), settings, tell, ending.set, resources.value,
            single=sum(count for *_, count in work) == 1,
        )  # fmt: skip
        consumers = []
        for receive, handler, concurrency in work:
            guard = Guard[Any](handler, receive, runtime)
            guards.append(guard)
            for _ in range(concurrency):  # competing consumers: each handles a message at a time
                consumer = operation_of(application(wire).consumer, receive.operation)
                consumer(guard.take)
                consumers.append(consumer)
        closing.push_async_callback(_stop, consumers)
        on_signals(
            ending.set,
            at_once=lambda: watchdog.end_by(settings.drain_s + CUT_OFF_S + CLOSE_S, 0, "the drain is over"),
        )
        code, drained = 0, False
        try:
            if await ending.unless(_start(consumers)):
                tell(Ready(name, {receive.queue.name: count for receive, _, count in work}, ledger.place))
            await ending.wait()
            tell(Stopping(name, crew.in_hand))
            crew.drain()
            await wire.drain()
            drained = await crew.idle(settings.drain_s)
        except asyncio.CancelledError as error:
            if signals.count < 2:  # a handler has cancelled all tasks of the loop, those of the worker's own too
                watchdog.end_by(CUT_OFF_S + CLOSE_S, WorkerFault.exit_code, "it was cancelled")
                raise WorkerFault("the worker was cancelled by a task of a handler's; restart it") from error
            code = INTERRUPTED  # a second signal: the drain ends here
        except Exception as error:
            exit_code = getattr(error, "exit_code", WorkerFault.exit_code)
            watchdog.end_by(CUT_OFF_S + CLOSE_S, exit_code, describe(error))
            raise
        finally:
            ending.set()
            crew.drain()
            crew.end()
        if not drained and not await crew.idle(CUT_OFF_S):
            await _stop(consumers, within_s=CLOSE_S / 4)
            await _abandon(name, crew, ledger, tell, code)
        watchdog.end_by(2 * CLOSE_S, code, "it has stopped")  # a lifespan may not end
    for told in crew.unrecorded():
        log.warning("%s  ends before the end of  %s  could be recorded: it will be done again", name, told)
    watchdog.end_by(CLOSE_S, code, "it has stopped")  # a thread that a handler left behind holds the interpreter up
    tell(crew.account(name))
    return code


async def _start(consumers: list[Any]) -> bool:
    for consumer in consumers:  # one after the other: each declares the queues
        await consumer.start()
    return True


class Ending:
    """Why the worker ends: nothing, a signal, or an error; the first counts."""

    def __init__(self) -> None:
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self, error: BaseException | None = None) -> None:
        if self._told.done():
            return
        if error is not None:
            self._told.set_exception(error)
        else:
            self._told.set_result(None)

    async def wait(self) -> None:
        """Raises the error."""
        await self._told

    async def unless(self, step: Coroutine[Any, Any, R]) -> R | None:
        """What the step returns or raises; None if the worker is told to end first, and the step is cancelled then."""
        stepping = asyncio.ensure_future(step)
        try:
            both: list[asyncio.Future[Any]] = [stepping, self._told]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return stepping.result() if stepping.done() else None
        finally:
            stepping.cancel()
            await asyncio.gather(stepping, return_exceptions=True)


async def _stop(consumers: list[Any], within_s: float | None = None) -> None:
    """Cancel what the consumers still do. A handler may not let itself be cancelled."""
    stopping = [asyncio.ensure_future(consumer.stop()) for consumer in consumers]
    stopped, _ = await asyncio.wait(stopping, timeout=within_s)
    for consumer in stopped:
        if not consumer.cancelled() and (error := consumer.exception()) is not None:
            log.warning("a consumer did not stop well: %s", describe(error))


async def _abandon(name: str, crew: Crew, ledger: Ledger, tell: Listener, code: int) -> NoReturn:
    """End the process around handlers that do not end. The broker notices, and delivers their messages again."""
    scopes = crew.running()
    for scope in scopes:
        log.warning("%s  ends while it runs  %s: %s", name, scope.told, scope.where())
    tell(crew.account(name, more=len(scopes)))
    await _release(ledger, scopes)  # last: from here on another worker may begin them
    logging.shutdown()  # what the handlers of the log hold
    os._exit(code)


async def _release(ledger: Ledger, scopes: list[Scope]) -> None:
    with suppress(LedgerBusy, TimeoutError):  # the leases end by themselves
        async with asyncio.timeout(RELEASE_S):
            for scope in scopes:
                await ledger.release(scope.task_id, scope.fence)


def _release_from_thread(settings: Settings, scopes: list[Scope]) -> None:
    """The worker's own ledger belongs to its event loop."""

    async def release() -> None:
        async with asyncio.timeout(RELEASE_S):
            ledger = await open_ledger(settings)
        await _release(ledger, scopes)

    if scopes:
        asyncio.run(release())


async def _prune(ledger: Ledger, keep_s: float, fatal: Callable[[BaseException], object]) -> None:
    """Have the ledger forget what is old, again and again. Every worker does: it costs little, and none is special."""
    try:
        while True:
            with suppress(LedgerBusy):  # the next time will do
                await ledger.prune(keep_s)
            await asyncio.sleep(min(keep_s, PRUNE_EVERY_S))
    except Exception as error:  # noqa: BLE001  # the ledger is lost, for one: the worker can't go on either
        fatal(error)


def _concurrency(text: str) -> tuple[str | None, int]:
    name, given, number = text.rpartition("=")
    return name if given else None, count(number)


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of 1 to 100 printable characters")
    return text
