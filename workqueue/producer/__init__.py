"""A producer process: send what the flags name, account for all of it, and follow it to its end if asked to."""

import argparse
import asyncio
import errno
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

from workqueue import contract
from workqueue.amqp.look import look
from workqueue.application import package_of
from workqueue.client import Client
from workqueue.client.submit import Account, Feed, submit
from workqueue.errors import (
    BrokerUnreachable,
    InputInvalid,
    OutputFailed,
    SettingInvalid,
    UsageInvalid,
)
from workqueue.extras import needed
from workqueue.ledger import Ledger, LedgerBusy
from workqueue.ledger.board import Pause
from workqueue.lifecycle import Flags, load_settings, on_signals, prepare, run, say, seconds
from workqueue.producer.source import lines
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
        return await _produce(application, sends, wanted, given, settings)

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
    models = import_module(f"{package_of(application)}.messages.json")
    return lines(name, getattr(models, sends[0].message.name))


async def _produce(
    application: type[Any],
    sends: list[contract.Send],
    wanted: Iterable[Any],
    given: argparse.Namespace,
    settings: Settings,
) -> int:
    account, follower = Account(), None
    this = asyncio.current_task()
    assert this is not None
    on_signals(this.cancel)
    client = Client(application, settings=_followed(settings, given.wait), name=f"producer-{os.getpid()}")
    async with AsyncExitStack() as closing:
        sending = Sending(client, sends, given.to)
        try:
            await closing.enter_async_context(client)
            if given.wait:
                follower = sending.follower = _follower(client, given.results, sending, settings, closing)
        except asyncio.CancelledError:
            account.complete = False
            print(f"sent: {account}", file=sys.stderr)
            raise
        if follower is not None:
            closing.enter_context(follower)
        try:
            await sending.send_all(wanted, account, settings.window)
            if follower is not None:
                await follower.finish(given.timeout)
        finally:
            print(f"sent: {account}", file=sys.stderr)
    if follower is not None:
        with _output("standard output"):
            follower.print_table()
            sys.stdout.flush()
    if account.unknown or account.unsent:
        return BrokerUnreachable.exit_code
    if account.unread:
        return InputInvalid.exit_code
    return (
        1
        if account.refused or (follower is not None and (follower.dead or follower.cancelled or follower.unfinished))
        else 0
    )


class Sending:
    """Sends tasks through a client, each told to a follower first, if there is one."""

    def __init__(self, client: Client, sends: list[contract.Send], to: str | None) -> None:
        self._client, self._sends, self._to = client, sends, to
        self._used: set[str] = set()
        self.follower: Follower | None = None

    @property
    def used(self) -> list[contract.Send]:
        """The operations by which something was sent; all, as long as nothing was."""
        return [send for send in self._sends if send.operation in self._used] or self._sends

    async def send_all(self, tasks: Iterable[Any], account: Account, window: int) -> None:
        follower = self.follower
        wanted, problem = (tasks, say) if follower is None else (follower.noting(tasks), follower.problem)
        await submit(Feed(wanted, ahead=2 * window), self.send, window=window, account=account, problem=problem)

    async def send(self, task: Any) -> None:
        """Raises NotSent, SendUnknown, BrokerUnreachable."""
        outgoing = self._client.sender.prepare(task, to=self._to)
        self._used.add(outgoing.operation)
        if self.follower is not None:
            self.follower.sending(outgoing)
        await self._client.sender.send(outgoing)


def _followed(settings: Settings, wait: bool) -> Settings:
    """The settings with a ledger where somebody will ask it, and without one else. Raises SettingInvalid for those
    with which nobody could follow a task to its end."""
    if not wait:
        return replace(settings, ledger_url="none")
    if settings.ledger_url == "none":
        raise SettingInvalid("LEDGER_URL", "none", "--wait needs a ledger, the one that the workers use")
    if settings.keep_s < KEEP_S:
        way_out = f"--wait may miss tasks that are forgotten so soon; use {KEEP_S:g} or more, here and for the workers"
        raise SettingInvalid("WORKQUEUE_KEEP_S", f"{settings.keep_s:g}", way_out)
    return settings


def _follower(
    client: Client, results: str | None, sending: Sending, settings: Settings, closing: AsyncExitStack
) -> "Follower":
    with needed("--wait"):
        from workqueue.producer.follow import Follower  # with rich, which takes a while to import

    ledger = client.ledger
    assert ledger is not None
    file = closing.enter_context(ResultsFile(results)) if results else None
    return Follower(ledger, file, lambda: _matter(settings, ledger, sending.used))


async def _matter(settings: Settings, ledger: Ledger, sends: list[contract.Send]) -> str:
    """Why tasks may not finish, as far as the broker knows."""
    # By the queue's own argument: a sender's contract need not have the channel of the dead letters.
    queues = {send.queue.name: send.queue.arguments.get("x-dead-letter-routing-key") for send in sends}
    try:
        seen = await look(settings, [*queues, *filter(None, queues.values())], "looks")
    except BrokerUnreachable as error:
        return f"no broker answers: {error.tried}: {error.cause}"
    pauses: list[Pause] = []
    with suppress(LedgerBusy):
        pauses = await ledger.board.pauses()
    paused, said = {one.queue: one for one in pauses}, []
    for queue, dead_letters in queues.items():
        if pause := paused.get(queue):
            said.append(f"{queue} is paused by {pause.who}{f': {pause.why}' if pause.why else ''}")
            continue
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
            said.append(f"{lie} in {dead_letters}: one that tells no id and payload is in no ledger")
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


class ResultsFile:
    """The file of --results. Raises SettingInvalid if it can't be opened, OutputFailed if it can't be written."""

    def __init__(self, name: str) -> None:
        self._name = name
        if name == "-":
            raise SettingInvalid("--results", name, "name a file: standard output has the table of the workers")
        try:
            # Without waiting for somebody to read it: a pipe that nobody reads is an error, and not a silence.
            opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
            os.set_blocking(opened, True)
            ours = [fd for fd in (1, 2) if os.path.sameopenfile(opened, fd)]
            if ours:  # /dev/stdout, in a file: what is there stays, and nobody writes over the other's lines
                os.dup2(ours[0], opened)
            elif stat.S_ISREG(os.fstat(opened).st_mode):
                os.truncate(opened, 0)
            self._file: TextIO = open(opened, "w", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise SettingInvalid("--results", name, f"name a file that can be written ({error.strerror})") from error

    def __enter__(self) -> "ResultsFile":
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
