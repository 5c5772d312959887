"""A worker process: connect, take tasks until a signal, drain, report."""

import argparse
import asyncio
import logging
import os
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

from workqueue import codec, contract
from workqueue.amqp.wire import Wire
from workqueue.errors import ContractInvalid, WorkerFault
from workqueue.ledger import Ledger, LedgerBusy, open_ledger
from workqueue.lifecycle import Flags, Report, count, load_settings, on_signals, prepare, run
from workqueue.settings import Settings
from workqueue.signals import INTERRUPTED
from workqueue.tasks.policy import describe
from workqueue.tasks.processor import Guard, Handler
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
    operation: Callable[[Any], Any],
    handler: Handler[Any],
    about: str | None,
    variables: Collection[str] = (),
) -> int:
    """Run `handler` on the messages of a generated application's receive operation until SIGTERM or SIGINT.

    `operation` takes the application to that operation; `about` is what --help says; `variables` are the names of the
    script's own WORKQUEUE_ variables. Returns the exit code.
    """
    prepare()
    flags = Flags(about)
    flags.add_argument(
        "id", metavar="ID", type=_name, help="this worker's name in logs, results and the broker's lists"
    )
    flags.add_argument("--concurrency", type=count, default=1, metavar="N", help="tasks at a time (default 1)")
    given = flags.parse_args()

    async def work() -> int:
        settings = load_settings(application, variables)
        return await _work(application, operation, handler, given.id, given.concurrency, settings)

    return run(work, told_early=0)


async def _work(
    application: type[Any],
    operation: Callable[[Any], Any],
    handler: Handler[Any],
    name: str,
    concurrency: int,
    settings: Settings,
) -> int:
    loaded = contract.load(application.__module__.rpartition(".")[0])
    if len(loaded.receives) != 1:
        raise ContractInvalid(f"a worker needs one receive operation, the contract has {len(loaded.receives)}")
    (receive,) = loaded.receives.values()
    codec.install()
    ending = Ending()
    on_signals(ending.set)
    async with AsyncExitStack() as closing:
        ledger = await ending.unless(open_ledger(settings))
        if ledger is None:
            return 0
        closing.push_async_callback(ledger.close)
        wire = Wire(settings, loaded, name, ending.set, ledger)
        closing.push_async_callback(wire.close)
        pruning = asyncio.ensure_future(_prune(ledger, settings.keep_s))
        closing.callback(pruning.cancel)
        guard = Guard(
            handler, loaded, receive, ledger, wire.publisher(), name, settings, Report(), ending.set,
            single=concurrency == 1,
        )  # fmt: skip
        watchdog = Watchdog(name, lambda: guard.attempts.running, partial(_release_from_thread, settings))
        watchdog.start()
        closing.callback(watchdog.rest)
        apps = [application(wire) for _ in range(concurrency)]  # competing consumers: each handles a message at a time
        closing.push_async_callback(_stop, apps)
        on_signals(
            ending.set,
            at_once=lambda: watchdog.end_by(settings.drain_s + CUT_OFF_S + CLOSE_S, 0, "the drain is over"),
        )
        code, drained = 0, False
        try:
            if await ending.unless(_start(apps, operation, guard)):
                told = f"takes {concurrency} at a time from {receive.queue.name}, ledger {ledger.place}"
                log.info("%s  ready  %s", name, told)
            await ending.wait()
            log.info("%s  stops  finishes what it has in hand: %d", name, guard.in_hand)
            guard.drain()
            await wire.drain()
            drained = await guard.idle(settings.drain_s)
        except asyncio.CancelledError:  # a second signal: the drain ends here
            code = INTERRUPTED
        except Exception as error:
            exit_code = getattr(error, "exit_code", WorkerFault.exit_code)
            watchdog.end_by(CUT_OFF_S + CLOSE_S, exit_code, describe(error))
            raise
        finally:
            ending.set()
            guard.drain()
            guard.end()
        if not drained and not await guard.idle(CUT_OFF_S):
            await _stop(apps, within_s=CLOSE_S / 4)
            await _abandon(name, guard, ledger, code)
    for told in sorted(guard.unrecorded):
        log.warning("%s  ends before the end of  %s  could be recorded: it will be done again", name, told)
    watchdog.end_by(CLOSE_S, code, "it has stopped")  # a thread that a handler left behind holds the interpreter up
    log.info("%s  stopped  finished %d, handed back %d", name, guard.finished, guard.handed_back)
    return code


async def _start(apps: list[Any], operation: Callable[[Any], Any], guard: Guard[Any]) -> bool:
    for app in apps:
        operation(app)(guard.take)
        await app.start()
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


async def _stop(apps: list[Any], within_s: float | None = None) -> None:
    """Cancel what the consumers still do. A handler may not let itself be cancelled."""
    stopping = [asyncio.ensure_future(app.stop()) for app in apps]
    stopped, _ = await asyncio.wait(stopping, timeout=within_s)
    for app in stopped:
        if not app.cancelled() and (error := app.exception()) is not None:
            log.warning("a consumer did not stop well: %s", describe(error))


async def _abandon(name: str, guard: Guard[Any], ledger: Ledger, code: int) -> NoReturn:
    """End the process around handlers that do not end. The broker notices, and delivers their messages again."""
    scopes = list(guard.attempts.running)
    for scope in scopes:
        log.warning("%s  ends while it runs  %s: %s", name, scope.told, scope.where())
    log.info("%s  stopped  finished %d, handed back %d", name, guard.finished, guard.handed_back + len(scopes))
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


async def _prune(ledger: Ledger, keep_s: float) -> None:
    """Have the ledger forget what is old, again and again. Every worker does: it costs little, and none is special."""
    while True:
        with suppress(LedgerBusy):  # the next time will do
            await ledger.prune(keep_s)
        await asyncio.sleep(min(keep_s, PRUNE_EVERY_S))


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of 1 to 100 printable characters")
    return text
