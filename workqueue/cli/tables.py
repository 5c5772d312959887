"""How records are shown to people: tables, lengths of time, and what gives way where a terminal is narrow."""

import sys
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from workqueue.cli.output import put
from workqueue.errors import escaped
from workqueue.ops.spans import span
from workqueue.tasks.progress import ROUNDING

WIDE = 1_000_000  # columns, where nobody looks
ERROR_LEAST = 30  # of an error in a table, on a terminal that is narrow


def console() -> Console:
    """Standard output. Colours only on a terminal, and not with NO_COLOR (https://no-color.org)."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDE)


def display(part: RenderableType) -> None:
    """Write it to standard output, see `rendered`. Raises Unwritten, ReaderGone."""
    put(rendered(part, console()))


def rendered(part: RenderableType, written: Console) -> str:
    """As this console shows it, with no spaces at the ends of rows. Nothing is cut but the errors in a table's last
    column, and those on a terminal only: a line that is longer than a terminal is wide goes on in its next one."""
    parts = part.renderables if isinstance(part, Group) else [part]
    tables = [each for each in parts if isinstance(each, Table)]
    if written.is_terminal:
        for each in tables:
            _cut_errors(each, written.width)
    written.width = max([written.width, *map(_width, tables)])
    return "".join(_text(each, written) for each in parts)


def _text(part: RenderableType, written: Console) -> str:
    with written.capture() as captured:
        written.print(Text(part) if isinstance(part, str) else part)
    if not isinstance(part, Table):
        return captured.get()
    return "".join(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines())


def _cut_errors(part: Table, width: int) -> None:
    """Leave to the errors what the other columns do not take, which are whole: where columns have to give way, all give
    the same, and short ones vanish."""
    last = part.columns[-1]
    if last.header == "error":
        last.max_width = ERROR_LEAST
        last.max_width += max(0, width - _width(part))


def _width(part: Table) -> int:
    """In which nothing of it gives way."""
    wide = Console(width=WIDE)
    return Measurement.get(wide, wide.options, part).maximum


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
