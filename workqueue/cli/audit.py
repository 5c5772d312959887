"""`workqueue audit`: what operators did."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from workqueue.cli.operate import (
    HERE,
    Folder,
    Form,
    Output,
    app,
    call,
    display,
    ledger_of,
    project_of,
    row,
    run,
    table,
    write_json,
)

commands = app()


@dataclass(frozen=True)
class Action:
    """What an operator did: `told` is how many, and what became of them."""

    at: datetime
    who: str
    what: str
    why: str
    told: dict[str, Any]


@commands.command()
def show(
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="so many, the newest")] = 50,
) -> int:
    """What operators did to dead letters: when, who, what, why, and how many. The newest last."""
    project = project_of(folder)

    async def ask() -> list[Action]:
        async with ledger_of(project, "audit") as ledger:
            notes = await ledger.board.notes(limit)
        return [
            Action(datetime.fromtimestamp(note.at, UTC), note.who, note.what, note.why, json.loads(note.told))
            for note in reversed(notes)
        ]

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
