"""A producer process: send what the flags name, account for all of it, and follow it to its end if asked to."""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, TextIO

from workqueue import codec, contract
from workqueue.amqp.wire import Wire
from workqueue.errors import BrokerUnreachable, InputInvalid, NotSent, SettingInvalid, WorkQueueError
from workqueue.ledger import open_ledger
from workqueue.lifecycle import Flags, count, on_signals, prepare, run
from workqueue.settings import Settings
from workqueue.submit import Account, submit

Tasks = Callable[[argparse.Namespace], Iterable[Any]]


def run_producer(application: type[Any], operation: Callable[[Any], Any], tasks: Tasks, about: str | None) -> int:
    """Send the tasks that `tasks` makes of the flags through a generated application's send operation.

    `operation` takes the application to that operation; `about` is what --help says. Returns the exit code.
    """
    prepare()
    flags = Flags(about)
    flags.add_argument("paths", nargs="*", metavar="PATH", help="a checksum task for each regular file at or below it")
    flags.add_argument("--jsonl", metavar="FILE", help="a task for each line; - is standard input")
    flags.add_argument("--simulate", type=count, default=0, metavar="N", help="N simulated tasks ...")
    flags.add_argument("--seconds", type=_seconds, default=0.0, metavar="S", help="... of S seconds each (default 0)")
    flags.add_argument("--wait", action="store_true", help="follow the tasks until all are done or dead")
    flags.add_argument("--results", metavar="FILE", help="with --wait: a line of JSON for each task")
    given = flags.parse_args()
    if sum(map(bool, (given.paths, given.jsonl, given.simulate))) != 1:
        flags.error("name what to send: PATH..., or --jsonl FILE, or --simulate N")
    if given.results and not given.wait:
        flags.error("--results needs --wait")
    return run(lambda: _produce(application, operation, tasks, given))


async def _produce(
    application: type[Any], operation: Callable[[Any], Any], tasks: Tasks, given: argparse.Namespace
) -> int:
    settings, account = Settings.load(), Account()
    loaded = contract.load(application.__module__.rpartition(".")[0])
    codec.install()
    this = asyncio.current_task()
    assert this is not None
    on_signals(this.cancel)
    async with AsyncExitStack() as closing:
        results = _open(given.results, closing) if given.results else None
        wire = Wire(settings, loaded, f"producer-{os.getpid()}", lambda error: None)
        closing.push_async_callback(wire.close)
        app = application(wire)
        await app.start()
        send, wanted, problem, follower = _honest(operation(app)), tasks(given), _print, None
        if given.wait:
            from workqueue.follow import Follower  # with rich, which takes a while to import

            ledger = await open_ledger(settings)
            closing.push_async_callback(ledger.close)
            follower = closing.enter_context(Follower(ledger, results))
            wanted, problem = follower.noting(wanted), follower.problem
        try:
            await submit(wanted, send, window=settings.window, account=account, problem=problem)
            if follower is not None:
                await follower.finish()
        finally:
            print(f"sent: {account}", file=sys.stderr)
    if follower is not None:
        follower.print_table()
    if account.unknown:
        return BrokerUnreachable.exit_code
    if account.unread:
        return InputInvalid.exit_code
    return 1 if account.refused or (follower is not None and follower.dead) else 0


def _honest(send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """The kernel reports a task that can't be encoded as a RuntimeError about codecs; it is a task that is refused."""

    async def wrapped(task: Any) -> None:
        try:
            await send(task)
        except RuntimeError as error:
            raise NotSent(str(task.id), str(error).rpartition(" was refused: ")[2]) from error

    return wrapped


def _open(name: str, closing: AsyncExitStack) -> TextIO:
    try:
        return closing.enter_context(open(name, "w", encoding="utf-8"))
    except OSError as error:
        raise SettingInvalid("--results", name, f"name a file that can be written ({error.strerror})") from error


def _print(error: WorkQueueError) -> None:
    print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return seconds
