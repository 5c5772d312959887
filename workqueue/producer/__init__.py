"""A producer process: send what the flags name, account for all of it, and follow it to its end if asked to."""

import argparse
import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

from workqueue import codec, contract
from workqueue.amqp.look import look
from workqueue.amqp.wire import Wire
from workqueue.errors import (
    BrokerUnreachable,
    InputInvalid,
    NotSent,
    OutputFailed,
    SettingInvalid,
    UsageInvalid,
    WorkQueueError,
)
from workqueue.extras import needed
from workqueue.ledger import Ledger, open_ledger
from workqueue.lifecycle import Flags, load_settings, on_signals, operation_of, package_of, prepare, run, say, seconds
from workqueue.producer.source import lines
from workqueue.producer.submit import Account, submit
from workqueue.settings import Settings

if TYPE_CHECKING:
    from workqueue.producer.follow import Follower

Tasks = Callable[[argparse.Namespace, Settings], Iterable[Any] | None]

KEEP_S = 60.0  # a ledger that forgets finished tasks sooner may do so before they are seen to be finished


def run_producer(
    application: type[Any],
    *,
    about: str | None = None,
    flags: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    tasks: Tasks | None = None,
    variables: Collection[str] = (),
) -> int:
    """Send tasks through a generated application's send operations: those of --jsonl, or what `tasks` makes of the
    flags and the settings.

    `flags` adds the script's own. `tasks` is called before anything is sent, and may raise UsageInvalid; it gives
    tasks of the generated models, one by one, or an InputInvalid in the place of one; or None, for the lines of
    --jsonl. A task goes to the operation
    that sends its model; where several do, --to says which. `about` is what --help says; `variables` are the names of
    the script's own WORKQUEUE_ variables. Returns the exit code.
    """
    prepare()
    parser = Flags(about)
    flags(parser)
    parser.add_argument("--jsonl", metavar="FILE", help="a task for each line; - is standard input")
    parser.add_argument("--to", metavar="OPERATION", help="the send operation, where the contract has several")
    parser.add_argument("--wait", action="store_true", help="follow the tasks until all are done or dead")
    parser.add_argument("--timeout", type=seconds, metavar="S", help="with --wait: at most S seconds after the sending")
    parser.add_argument("--results", metavar="FILE", help="with --wait: a line of JSON for each task")
    given = parser.parse_args()
    for flag in ("results", "timeout"):
        if getattr(given, flag) is not None and not given.wait:
            parser.error(f"--{flag} needs --wait")
    if tasks is None and not given.jsonl:
        parser.error("name what to send: --jsonl FILE")

    async def produce() -> int:
        loaded = contract.load(package_of(application))
        sends = _sends(loaded, given.to)
        settings = load_settings(application, variables)
        made = None if tasks is None else tasks(given, settings)
        wanted = _lines(application, sends, given.jsonl) if made is None else made
        return await _produce(application, loaded, sends, wanted, given, settings)

    return run(produce)


def _sends(loaded: contract.Contract, to: str | None) -> list[contract.Send]:
    """The send operations to use."""
    known = {send.operation: send for send in loaded.sends.values()}
    if to is None:
        return list(known.values())
    if to not in known:
        raise SettingInvalid("--to", to, f"no such send operation; the contract has {', '.join(known)}")
    return [known[to]]


def _lines(application: type[Any], sends: list[contract.Send], name: str | None) -> Iterable[Any]:
    if not name:
        raise UsageInvalid("name what to send: --jsonl FILE")
    if len(sends) > 1:
        names = ", ".join(send.operation for send in sends)
        raise UsageInvalid(f"name the operation that sends these lines, with --to: {names}")
    return lines(name, _model(application, sends[0]))


def _model(application: type[Any], send: contract.Send) -> type[Any]:
    models = import_module(f"{package_of(application)}.messages.json")
    found: type[Any] = getattr(models, send.message.name)
    return found


class Sender:
    """Sends each task by the operation of its model, and notes in `used` which those were."""

    def __init__(self, application: type[Any], app: Any, sends: list[contract.Send], used: set[str]) -> None:
        self.endpoints = {send.operation: operation_of(app.producer, send.operation) for send in sends}
        self._used = used
        self._models = ", ".join(f"{send.operation} sends {send.message.name}" for send in sends)
        self._names: dict[type[Any], list[str]] = {}
        for send in sends:
            self._names.setdefault(_model(application, send), []).append(send.operation)

    async def __call__(self, task: Any) -> None:
        """Raises NotSent, SendUnknown, BrokerUnreachable."""
        names = self._names.get(type(task), [])
        if len(names) != 1:
            way_out = f"it may be any of {', '.join(names)}: say which with --to" if names else self._models
            raise NotSent(str(getattr(task, "id", "")), f"{type(task).__name__}: {way_out}")
        self._used.add(names[0])
        try:
            await self.endpoints[names[0]](task)
        except RuntimeError as error:  # the kernel's, about codecs; it is a task that is refused
            raise NotSent(str(task.id), str(error).rpartition(" was refused: ")[2]) from error


async def _produce(
    application: type[Any],
    loaded: contract.Contract,
    sends: list[contract.Send],
    wanted: Iterable[Any],
    given: argparse.Namespace,
    settings: Settings,
) -> int:
    account = Account()
    codec.install()
    this = asyncio.current_task()
    assert this is not None
    on_signals(this.cancel)
    async with AsyncExitStack() as closing:
        try:
            ledger = await _ledger(settings, closing) if given.wait else None
            used: set[str] = set()  # the operations by which something was sent

            async def matter() -> str:
                assert ledger is not None
                return await _matter(settings, ledger, [send for send in sends if send.operation in used] or sends)

            follower = None if ledger is None else _follower(ledger, given.results, matter, closing)
            sending = (lambda body: None) if follower is None else follower.sending
            wire = Wire(settings, loaded, f"producer-{os.getpid()}", lambda error: None, ledger, sending)
            closing.push_async_callback(wire.close)
            sender, problem = Sender(application, application(wire), sends, used), _problem
            for endpoint in sender.endpoints.values():
                await endpoint.start()
        except asyncio.CancelledError:
            account.complete = False
            print(f"sent: {account}", file=sys.stderr)
            raise
        if follower is not None:
            closing.enter_context(follower)
            wanted, problem = follower.noting(wanted), follower.problem
        try:
            await submit(wanted, sender, window=settings.window, account=account, problem=problem)
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
    ledger: Ledger, results: str | None, matter: Callable[[], Awaitable[str]], closing: AsyncExitStack
) -> "Follower":
    with needed("--wait"):
        from workqueue.producer.follow import Follower  # with rich, which takes a while to import

    file = closing.enter_context(Results(results)) if results else None
    return Follower(ledger, file, matter)


async def _matter(settings: Settings, ledger: Ledger, sends: list[contract.Send]) -> str:
    """Why tasks may not finish, as far as the broker knows."""
    # By the queue's own argument: a sender's contract need not have the channel of the dead letters.
    queues = {send.queue.name: send.queue.arguments.get("x-dead-letter-routing-key") for send in sends}
    try:
        seen = await look(settings.amqp_uri, [*queues, *filter(None, queues.values())])
    except BrokerUnreachable as error:
        return f"no broker answers: {error.tried}: {error.cause}"
    said = []
    for queue, dead_letters in queues.items():
        if queue in seen and not seen[queue].consumers:
            said.append(f"no worker takes from {queue}, where {_many(seen[queue].messages, 'wait')}; start one")
        elif queue in seen and seen[queue].messages:
            consumers = seen[queue].consumers
            busy = "its consumer is busy" if consumers == 1 else f"its {consumers} consumers are busy"
            said.append(f"{_many(seen[queue].messages, 'wait')} in {queue}, and {busy}")
        elif queue in seen:
            said.append(
                f"none waits in {queue}: they run, or wait for another attempt; or the workers have another LEDGER_URL "
                f"than this producer ({ledger.place}), or forget too soon (WORKQUEUE_KEEP_S)"
            )
        if (dead := seen.get(dead_letters or "")) and dead.messages:
            lie = _many(dead.messages, "lie")
            said.append(f"{lie} in {dead_letters}: one that broke the workers' contract is in no ledger")
    return "; ".join(said) or "the broker tells nothing of its queue"


def _many(number: int, verb: str) -> str:
    return f"{number} {verb}{'s' if number == 1 else ''}"


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
