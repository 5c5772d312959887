"""`workqueue audit`: what operators did."""

from typing import Annotated

import typer

from workqueue.cli.operate import HERE, Folder, app, call, ledger_of, project_of, run
from workqueue.cli.output import Form, Output, write_json
from workqueue.cli.tables import display, row, table
from workqueue.ops.audit import Action, actions

commands = app()


@commands.command()
def show(
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="so many, the newest")] = 50,
) -> int:
    """What operators did: when, who, what, why, and how many. The newest last."""
    project = project_of(folder)

    async def ask() -> list[Action]:
        async with ledger_of(project, "audit") as ledger:
            return await actions(ledger, limit)

    found = run(ask)
    if output is not Form.TABLE:
        write_json(output, found)
        return 0
    made = table("when", "who", "what", "why", "")
    for one in found:
        said = ", ".join(f"{name} {value}" for name, value in one.told.items())
        row(made, one.at.isoformat(timespec="seconds"), one.who, one.what, one.why, said)
    display(made if found else "nothing was done")
    return 0


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue audit", arguments)
