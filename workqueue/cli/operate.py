"""What the commands for operators share: where the project is, how a command is run, and which exit code follows."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import Progress

from workqueue.amqp.look import look
from workqueue.amqp.shared import same_ledger
from workqueue.cli.output import ReaderGone, say, unwritten
from workqueue.dev.broker import find as find_broker
from workqueue.dev.programs import BrokerError
from workqueue.errors import BrokerUnreachable, IdInvalid, UsageInvalid, WorkerFault, WorkQueueError, escaped
from workqueue.ledger import Ledger, open_ledger
from workqueue.ledger.none import AbsentLedger
from workqueue.ledger.whole import exists
from workqueue.ops.project import Project, find
from workqueue.process.loops import new_event_loop
from workqueue.process.unheard import unheard
from workqueue.settings import hide_password, misspelt

INTERRUPTED = 130
ASK_S = 3.0  # the broker, which ledger the workers have: who needs it for nothing else waits no longer for it

T = TypeVar("T")

assert typer.BadParameter.__base__ is not None
UsageError: type[Exception] = typer.BadParameter.__base__  # click's, of which typer may have a copy of its own


Folder = Annotated[Path, typer.Option("--project", metavar="FOLDER", help="the project's folder, with generated/")]
HERE = Path()


def app() -> typer.Typer:
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=False
    )


def call(commands: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command of an app of typer's, and return its exit code; every failure is one line on standard error."""
    if sys.stdout is None:  # closed by what started it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    try:
        code = commands(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        problem: str = getattr(error, "format_message", error.__str__)()
        return failed(name, f"{problem.rstrip('.')}; see --help", 2)
    except ReaderGone:
        return 0
    except WorkQueueError as error:
        return failed(name, str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        if error.filename is not None:
            return failed(name, f"{error.filename}: {error.strerror}", 2)
        lost = unwritten(error)  # standard output, where the help goes
        return 0 if isinstance(lost, ReaderGone) else failed(name, str(lost), lost.exit_code)
    return code if isinstance(code, int) else 0


def failed(name: str, problem: str, code: int) -> int:
    print(f"{name}: {escaped(problem)}", file=sys.stderr)
    return code


def can_be_asked(need_not: bool) -> None:
    """Raises UsageInvalid."""
    if not (need_not or (sys.stdin is not None and sys.stdin.isatty())):
        raise UsageInvalid("nobody can be asked, there is no terminal: look with --dry-run, and say --yes")


def agreed(question: str) -> bool:
    answer = typer.confirm(question, err=True)
    if not answer:
        say("nothing is done")
    return answer


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run it on an event loop; Ctrl-C ends it."""

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(unheard)
        return await work()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            return runner.run(main())
        except (WorkQueueError, UsageError):
            raise
        except Exception as error:
            raise WorkerFault(f"a fault of its own: {type(error).__name__}: {error}") from error


def project_of(folder: Path) -> Project:
    """The project of a folder, at the broker of AMQP_URI, else where one answers: at RabbitMQ's default address, or the
    folder's own. Raises ProjectMissing, ContractInvalid, SettingInvalid."""
    environment: Mapping[str, str] = os.environ
    for line in misspelt():
        say(line)
    if not environment.get("AMQP_URI"):
        try:
            found = find_broker(folder / ".broker")
        except BrokerError:
            found = None
        if found is not None:
            environment = {**environment, "AMQP_URI": found[0]}
    return find(folder, environment)


@asynccontextmanager
async def ledger_of(project: Project, command: str | None = None, *, or_none: bool = False) -> AsyncIterator[Ledger]:
    """The project's ledger. One that is not there is not made: an AbsentLedger stands for it.

    Where this `command` needs one (with `or_none` only if LEDGER_URL names one), raises UsageInvalid if there is none,
    and LedgerDiffers if the workers have another, as far as the broker tells. Raises LedgerUnreachable."""
    url = project.settings.ledger_url
    if url == "none" and command is not None and not or_none:
        raise UsageInvalid(f"{command} needs a ledger, and LEDGER_URL is none: name the one that the workers use")
    ledger = await open_ledger(project.settings) if await exists(url) else AbsentLedger(url)
    try:
        if command is not None:
            await _ask(project, ledger, f"{command}-{os.getpid()}")
        if command is not None and isinstance(ledger, AbsentLedger):
            place = hide_password(url)
            raise UsageInvalid(f"{command} needs the ledger, and there is none at {place} now: a worker makes it")
        yield ledger
    finally:
        await ledger.close()


async def _ask(project: Project, ledger: Ledger, name: str) -> None:
    """Ask the broker whether the workers have this ledger. Raises LedgerDiffers, and nothing where nobody answers: who
    needs a broker, for letters for one, asks it again with that."""
    with suppress(BrokerUnreachable, TimeoutError):
        async with asyncio.timeout(ASK_S):
            await look(project.settings, (), name, *same_ledger(ledger, project.receives, name))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], object]]:
    """A bar on standard error, where somebody looks."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def field_of(text: str) -> tuple[str, Any]:
    """FIELD=VALUE: JSON where it is that, else a text. Raises UsageInvalid."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageInvalid(f"{text!r} is no FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def fields_of(given: list[str]) -> dict[str, Any]:
    """Raises UsageInvalid."""
    found: dict[str, Any] = {}
    for name, value in map(field_of, given):
        if name in found:
            raise UsageInvalid(f"{name} is given twice")
        found[name] = value
    return found


def ids_of(given: list[str]) -> list[UUID]:
    """Those that are named, and with `-` those on standard input. Raises UsageInvalid."""
    found = [id_of(id) for word in given for id in (sys.stdin.read().split() if word == "-" else [word])]
    if not found:
        raise UsageInvalid("standard input has no id")
    return list(dict.fromkeys(found))


def id_of(text: str) -> UUID:
    """Raises UsageInvalid."""
    from workqueue.client import as_uuid  # which a command that is given no id starts without

    try:
        return as_uuid(text)
    except IdInvalid as error:
        raise UsageInvalid(f"{text!r} is no id of a task, which is a UUID") from error
