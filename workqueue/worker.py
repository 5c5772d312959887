"""A worker process: connect, take tasks until a signal, drain, report."""

import argparse
import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from workqueue import codec, contract
from workqueue.amqp.wire import Wire
from workqueue.errors import ContractInvalid
from workqueue.ledger import Ledger, LedgerBusy, open_ledger
from workqueue.lifecycle import Flags, Report, count, load_settings, on_signals, prepare, run
from workqueue.settings import Settings, hide_password
from workqueue.signals import INTERRUPTED
from workqueue.tasks.processor import Guard, Handler

log = logging.getLogger(__name__)

R = TypeVar("R")

PRUNE_EVERY_S = 1800.0
CUT_OFF_S = 3.0  # for handing back what was cut off at the end of a drain; what takes longer is left to the broker


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
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(error: BaseException | None = None) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    on_signals(end)
    async with AsyncExitStack() as closing:
        ledger = await _unless(ended, open_ledger(settings))
        if ledger is None:
            return 0
        closing.push_async_callback(ledger.close)
        wire = Wire(settings, loaded, name, end)
        closing.push_async_callback(wire.close)
        pruning = asyncio.ensure_future(_prune(ledger, settings.keep_s))
        closing.callback(pruning.cancel)
        guard = Guard(handler, loaded, receive, ledger, wire.publisher(), name, settings, Report(), end)

        async def start() -> bool:
            for _ in range(concurrency):  # each a competing consumer of its own: one handles a message at a time
                app = application(wire)
                operation(app)(guard.take)
                closing.push_async_callback(app.stop)
                await app.start()
            return True

        if await _unless(ended, start()):
            place = hide_password(settings.ledger_url)
            log.info("%s  ready  takes %d at a time from %s, ledger %s", name, concurrency, receive.queue.name, place)
        await ended
        log.info("%s  stops  finishes what it has in hand: %d", name, guard.in_hand)
        try:
            await wire.drain()
            drained, code = await guard.idle(settings.drain_s), 0
        except asyncio.CancelledError:  # a second signal: the drain ends here
            drained, code = False, INTERRUPTED
        if not drained:
            guard.cut_off()
            await guard.idle(CUT_OFF_S)
    log.info("%s  stopped  finished %d, handed back %d", name, guard.finished, guard.handed_back)
    return code


async def _unless(ended: asyncio.Future[None], step: Coroutine[Any, Any, R]) -> R | None:
    """What the step returns or raises; None if the worker is told to end first, and the step is cancelled then."""
    stepping = asyncio.ensure_future(step)
    try:
        both: list[asyncio.Future[Any]] = [stepping, ended]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return stepping.result() if stepping.done() else None
    finally:
        stepping.cancel()
        await asyncio.gather(stepping, return_exceptions=True)


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
