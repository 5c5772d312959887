"""What the commands for operators share: where the project is, how records are shown, and which exit code follows."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
import uvloop
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from workqueue.dev.broker import find as find_broker
from workqueue.dev.programs import BrokerError
from workqueue.errors import IdInvalid, OutputFailed, UsageInvalid, WorkerFault, WorkQueueError, escaped
from workqueue.ledger import Ledger, open_ledger
from workqueue.ledger.none import NoLedger
from workqueue.ledger.whole import exists
from workqueue.ops.project import Project, find
from workqueue.process.unheard import unheard
from workqueue.settings import hide_password, misspelt
from workqueue.tasks.progress import ROUNDING

INTERRUPTED = 130
WIDE = 10_000  # columns, where nobody looks
ERROR_LEAST = 30  # of an error in a table, on a terminal that is narrow

T = TypeVar("T")

assert typer.BadParameter.__base__ is not None
UsageError: type[Exception] = typer.BadParameter.__base__  # click's, of which typer may have a copy of its own


class Form(StrEnum):
    """How records are written to standard output."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Folder = Annotated[Path, typer.Option("--project", metavar="FOLDER", help="the project's folder, with generated/")]
Output = Annotated[Form, typer.Option("-o", "--output", help="a table for people, or JSON for programs")]
HERE = Path()


def app() -> typer.Typer:
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=False
    )


def call(commands: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command of an app of typer's, and return its exit code; every failure is one line on standard error."""
    if sys.stdout is None:  # closed by who started it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    try:
        code = commands(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        problem: str = getattr(error, "format_message", error.__str__)()
        return failed(name, f"{problem.rstrip('.')}; see --help", 2)
    except WorkQueueError as error:
        return failed(name, str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever reads has read enough
            return 0
        return failed(name, str(OutputFailed("standard output", error.strerror or str(error))), OutputFailed.exit_code)
    return code if isinstance(code, int) else 0


def failed(name: str, problem: str, code: int) -> int:
    print(f"{name}: {escaped(problem)}", file=sys.stderr)
    return code


def say(what: str) -> None:
    """Talk, for people: standard output is for what was asked."""
    print(escaped(what), file=sys.stderr)


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

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main())
        except (WorkQueueError, UsageError, OSError):
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
    """The project's ledger. One that no worker has made yet is none, and is not made.

    Raises UsageInvalid where there is none and this `command` needs one (with `or_none` only if LEDGER_URL names one);
    LedgerUnreachable."""
    url = project.settings.ledger_url
    if url != "none" and not await exists(url):
        if command is not None:
            place = hide_password(url)
            raise UsageInvalid(f"{command} needs the ledger, and there is none at {place}: no worker has run with it")
        yield NoLedger()
        return
    if url == "none" and command is not None and not or_none:
        raise UsageInvalid(f"{command} needs a ledger, and LEDGER_URL is none: name the one that the workers use")
    ledger = await open_ledger(project.settings)
    try:
        yield ledger
    finally:
        await ledger.close()


def write_json(form: Form, records: Iterable[Any], *, one: bool = False) -> None:
    """Dataclasses as JSON: an array, or with `one` an object, or each on a line."""
    made = [asdict(record) if is_dataclass(record) and not isinstance(record, type) else record for record in records]
    if form is Form.JSONL:
        for each in made:
            print(json.dumps(each, default=_plain))
    else:
        print(json.dumps(made[0] if one else made, default=_plain, indent=2))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def console() -> Console:
    """Standard output. Colours only on a terminal, and not with NO_COLOR (https://no-color.org)."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDE)


def display(part: RenderableType) -> None:
    """Print it. Nothing is cut but the errors in a table's last column, and those on a terminal only: a line that is
    longer than a terminal is wide goes on in its next one."""
    written, parts = console(), part.renderables if isinstance(part, Group) else [part]
    if sys.stdout.isatty():
        written.width = max([written.width, *(_least(each) for each in parts if isinstance(each, Table))])
    written.print(Text(part) if isinstance(part, str) else part)


def _least(part: Table) -> int:
    """The width in which all columns but that of the errors are whole."""
    whole = Measurement.get(Console(width=WIDE), Console(width=WIDE).options, part).maximum
    last = part.columns[-1]
    if last.header != "error":
        return whole
    longest = max((len(str(cell)) for cell in last.cells), default=0)
    return whole - max(0, longest - ERROR_LEAST)


def table(*columns: str) -> Table:
    """Numbers stand right: a column whose name ends with a colon holds them."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        if name.endswith(":"):
            made.add_column(name.removesuffix(":"), justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="ellipsis", no_wrap=True)
    return made


def row(made: Table, *values: object) -> None:
    made.add_row(*(Text(escaped(shown(value))) for value in values))


def shown(value: object) -> str:
    match value:
        case None:
            return "?"
        case float():
            return f"{value:,.1f}"
        case int():
            return f"{value:,}"
        case datetime():
            return ago(value)
        case _:
            return str(value)


def reached(progress: float | None, text: str) -> str:
    """How far a task is, as its handler says. All is done at 100%, not before."""
    percent = "" if progress is None else f"{int(progress * 100 + ROUNDING)}%"
    return "  ".join(filter(None, (percent, text)))


def ago(at: datetime | None) -> str:
    return "?" if at is None else f"{span((datetime.now(UTC) - at).total_seconds())} ago"


def span(seconds: float) -> str:
    """A length of time, in the two largest units that say something."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            rest = int(seconds % length // part)
            return f"{int(seconds // length)} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{seconds:.0f} s"


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
