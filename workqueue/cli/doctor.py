"""`workqueue doctor`: what is wrong with an installation."""

import os

from rich.console import Group
from rich.text import Text

from workqueue.cli.operate import HERE, Folder, app, call, project_of, run
from workqueue.cli.output import Form, Output, write_json
from workqueue.cli.status import ledger_if_there
from workqueue.cli.tables import display
from workqueue.errors import LedgerUnreachable, escaped
from workqueue.ledger.none import SilentLedger
from workqueue.ops.doctor import Finding, doctor

commands = app()
MARKS = {"ok": "ok", "warning": "!", "fault": "!!", "unseen": "?"}
STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "unseen": "dim"}


@commands.command()
def show(folder: Folder = HERE, output: Output = Form.TABLE) -> int:
    """What is wrong with this installation: broker, queues, workers, ledger, clocks, each with the way out.

    Looks, and tries the broker in two queues of its own. `!!` is a fault, `!` may be meant so, `?` can't be told from
    here. Exit code 1 where there is a fault or a warning, 3 where broker or ledger is out of reach.
    """
    project = project_of(folder)

    async def ask() -> tuple[list[Finding], bool]:
        async with ledger_if_there(project) as ledger:
            return await doctor(project, ledger, f"doctor-{os.getpid()}"), isinstance(ledger, SilentLedger)

    found, is_silent = run(ask)
    if output is Form.TABLE:
        display(Group(*map(_line, found)))
    else:
        write_json(output, found)
    if is_silent:
        return LedgerUnreachable.exit_code
    return 1 if any(one.state in ("warning", "fault") for one in found) else 0


def _line(found: Finding) -> Text:
    way_out = f"\n    {escaped(found.way_out)}" if found.way_out else ""
    mark = f"{MARKS[found.state]:3} "
    return Text.assemble((mark, STYLES[found.state]), f"{escaped(found.about)}: {escaped(found.said)}{way_out}")


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue doctor", arguments)
