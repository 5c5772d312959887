"""A producer process: send what the flags name, account for all of it, and follow it to its end if asked to."""

import argparse
import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from workqueue import codec, contract
from workqueue.amqp.look import look
from workqueue.amqp.wire import Wire
from workqueue.errors import BrokerUnreachable, InputInvalid, NotSent, OutputFailed, SettingInvalid, WorkQueueError
from workqueue.ledger import Ledger, open_ledger
from workqueue.lifecycle import Flags, count, load_settings, on_signals, prepare, run, say
from workqueue.settings import Settings
from workqueue.submit import Account, submit

if TYPE_CHECKING:
    from workqueue.follow import Follower

Tasks = Callable[[argparse.Namespace, Settings], Iterable[Any]]

KEEP_S = 60.0  # a ledger that forgets finished tasks sooner may do so before they are seen to be finished


def run_producer(
    application: type[Any],
    operation: Callable[[Any], Any],
    tasks: Tasks,
    about: str | None,
    variables: Collection[str] = (),
) -> int:
    """Send the tasks that `tasks` makes of the flags through a generated application's send operation.

    `operation` takes the application to that operation; `about` is what --help says; `variables` are the names of the
    script's own WORKQUEUE_ variables. Returns the exit code.
    """
    prepare()
    flags = Flags(about)
    flags.add_argument("paths", nargs="*", metavar="PATH", help="a checksum task for each regular file at or below it")
    flags.add_argument("--jsonl", metavar="FILE", help="a task for each line; - is standard input")
    flags.add_argument("--simulate", type=count, default=0, metavar="N", help="N simulated tasks ...")
    flags.add_argument("--seconds", type=_seconds, default=0.0, metavar="S", help="... of S seconds each (default 0)")
    flags.add_argument("--wait", action="store_true", help="follow the tasks until all are done or dead")
    flags.add_argument("--timeout", type=_seconds, metavar="S", help="with --wait: at most S seconds after the sending")
    flags.add_argument("--results", metavar="FILE", help="with --wait: a line of JSON for each task")
    given = flags.parse_args()
    if sum(map(bool, (given.paths, given.jsonl, given.simulate))) != 1:
        flags.error("name what to send: PATH..., or --jsonl FILE, or --simulate N")
    for flag in ("results", "timeout"):
        if getattr(given, flag) is not None and not given.wait:
            flags.error(f"--{flag} needs --wait")
    return run(lambda: _produce(application, operation, tasks, given, variables))


async def _produce(
    application: type[Any],
    operation: Callable[[Any], Any],
    tasks: Tasks,
    given: argparse.Namespace,
    variables: Collection[str],
) -> int:
    settings, account = load_settings(application, variables), Account()
    loaded = contract.load(application.__module__.rpartition(".")[0])
    codec.install()
    this = asyncio.current_task()
    assert this is not None
    on_signals(this.cancel)
    async with AsyncExitStack() as closing:
        try:
            ledger = await _ledger(settings, closing) if given.wait else None
            wire = Wire(settings, loaded, f"producer-{os.getpid()}", lambda error: None, ledger)
            closing.push_async_callback(wire.close)
            app, problem, wanted = application(wire), _problem, tasks(given, settings)
            follower = None if ledger is None else _follower(settings, ledger, given.results, loaded, closing)
            await app.start()
        except asyncio.CancelledError:
            account.complete = False
            print(f"sent: {account}", file=sys.stderr)
            raise
        if follower is not None:
            closing.enter_context(follower)
            wanted, problem = follower.noting(wanted), follower.problem
        try:
            send = _honest(operation(app))
            await submit(wanted, send, window=settings.window, account=account, problem=problem)
            if follower is not None:
                await follower.finish(given.timeout)
        finally:
            print(f"sent: {account}", file=sys.stderr)
    if follower is not None:
        with _output("standard output"):
            follower.print_table()
            sys.stdout.flush()
    if account.unknown:
        return BrokerUnreachable.exit_code
    if account.unread:
        return InputInvalid.exit_code
    return 1 if account.refused or (follower is not None and (follower.dead or follower.unfinished)) else 0


async def _ledger(settings: Settings, closing: AsyncExitStack) -> Ledger:
    """Raises SettingInvalid for settings with which nobody could follow a task to its end."""
    if settings.ledger_url == "none":
        raise SettingInvalid("LEDGER_URL", "none", "--wait needs a ledger, the one that the workers use")
    if settings.keep_s < KEEP_S:
        way_out = f"--wait may miss tasks that are forgotten so soon; use {KEEP_S:g} or more, here and for the workers"
        raise SettingInvalid("WORKQUEUE_KEEP_S", f"{settings.keep_s:g}", way_out)
    ledger = await open_ledger(settings)
    closing.push_async_callback(ledger.close)
    return ledger


def _follower(
    settings: Settings, ledger: Ledger, results: str | None, loaded: contract.Contract, closing: AsyncExitStack
) -> "Follower":
    from workqueue.follow import Follower  # with rich, which takes a while to import

    file = closing.enter_context(Results(results)) if results else None
    return Follower(ledger, file, lambda: _matter(settings, ledger, loaded))


async def _matter(settings: Settings, ledger: Ledger, loaded: contract.Contract) -> str:
    """Why tasks may not finish, as far as the broker knows."""
    # By the queue's own argument: a sender's contract need not have the channel of the dead letters.
    queues = {send.queue.name: send.queue.arguments.get("x-dead-letter-routing-key") for send in loaded.sends.values()}
    try:
        seen = await look(settings.amqp_uri, [*queues, *filter(None, queues.values())])
    except BrokerUnreachable as error:
        return f"no broker answers: {error.tried}: {error.cause}"
    said = []
    for queue, dead_letters in queues.items():
        if queue in seen and not seen[queue].consumers:
            said.append(f"no worker takes from {queue}, where {seen[queue].messages} wait; start one")
        elif queue in seen and seen[queue].messages:
            said.append(f"{seen[queue].messages} wait in {queue}, and its {seen[queue].consumers} consumers are busy")
        elif queue in seen:
            said.append(
                f"none waits in {queue}: they run, or wait for another attempt; or the workers have another LEDGER_URL "
                f"than this producer ({ledger.place}), or forget too soon (WORKQUEUE_KEEP_S)"
            )
        if (dead := seen.get(dead_letters or "")) and dead.messages:
            said.append(f"{dead.messages} lie in {dead_letters}: one that broke the workers' contract is in no ledger")
    return "; ".join(said) or "the broker tells nothing of its queue"


def _honest(send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """The kernel reports a task that can't be encoded as a RuntimeError about codecs; it is a task that is refused."""

    async def wrapped(task: Any) -> None:
        try:
            await send(task)
        except RuntimeError as error:
            raise NotSent(str(task.id), str(error).rpartition(" was refused: ")[2]) from error

    return wrapped


@contextmanager
def _output(name: str) -> Iterator[None]:
    """Turns a failure to write into one line; a reader that has gone, as `head` has, is none."""
    try:
        yield
    except OSError as error:
        if name == "standard output":  # or the interpreter would try again at its end, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            raise OutputFailed(name, error.strerror or str(error)) from error


class Results:
    """The file of --results. Raises SettingInvalid if it can't be opened, OutputFailed if it can't be written."""

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            # Without waiting for somebody to read it: a pipe that nobody reads is an error, and not a silence.
            opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o666)
            os.set_blocking(opened, True)
            self._file: TextIO = open(opened, "w", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise SettingInvalid("--results", name, f"name a file that can be written ({error.strerror})") from error

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        with suppress(OSError):  # what was written was flushed before, and a failure of that was told
            self._file.close()

    def write(self, line: str) -> None:
        with _output(self._name):
            self._file.write(line)

    def flush(self) -> None:
        with _output(self._name):
            self._file.flush()


def _problem(error: WorkQueueError) -> None:
    say(error)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return seconds
