"""`workqueue forget ID...`: tasks erased, with all that is kept of them."""

import os
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from workqueue.cli.operate import (
    HERE,
    Folder,
    agreed,
    app,
    call,
    can_be_asked,
    ids_of,
    ledger_of,
    progress,
    project_of,
    run,
)
from workqueue.cli.output import Form, Output, say, told, write_json
from workqueue.cli.tables import display, row, table
from workqueue.ledger import Ledger
from workqueue.ops.desk import Desk
from workqueue.ops.forgetting import Forgotten, forget, look

commands = app()

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="for the audit in the ledger: the request's number")]


@commands.command()
def forget_tasks(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="the tasks'; - reads ids from a pipe")],
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what is there, and do nothing")] = False,
    why: Why = "",
) -> int:
    """Erase tasks: what the ledger keeps of them, results and errors included, and their dead letters.

    The audit keeps that so many were erased, by whom and why, and no id. A copy of a message that comes later is a new
    task, and is run. Killed, and asked for again, it goes on. Exit code 1 for a task that waits or runs, which is left
    alone: cancel it first.
    """
    can_be_asked(yes or dry_run)
    wanted = ids_of(ids)
    project, name = project_of(folder), f"forget-{os.getpid()}"

    async def at_the_desk(act: Callable[[Ledger, Desk], Awaitable[list[Forgotten]]]) -> list[Forgotten]:
        async with ledger_of(project, "forget") as ledger:
            with progress("reading") as tell:
                return await act(ledger, Desk(project, ledger, name, tell))

    there = run(lambda: at_the_desk(lambda ledger, desk: look(ledger, desk, wanted)))
    gone = [one for one in there if not one.is_open]
    if not dry_run and gone:
        if not (yes or agreed(f"erase {len(gone)} tasks, and their {sum(one.letters for one in gone)} dead letters?")):
            return 1
        there = run(lambda: at_the_desk(lambda ledger, desk: forget(ledger, desk, wanted, why=why)))
    made = table("task", "state", "in the ledger", "letters:")
    for one in there:
        row(made, one.id, one.state, "erased" if one.row else "", one.letters)
    known = told(lambda: display(made) if output is Form.TABLE else write_json(output, there))
    _explain(there)
    return 0 if known and not any(one.is_open for one in there) else 1


def _explain(there: list[Forgotten]) -> None:
    for one in there:
        if one.is_open:
            say(f"{one.id} is {one.state}, and is left alone: workqueue cancel {one.id}")
        elif one.state == "unknown" and not one.letters:
            say(f"nothing is kept of {one.id}; its message waits in a queue still, if no worker has taken it")
        elif one.state == "cancelled" and one.row:
            say(f"if no worker has taken the message of {one.id} from its queue since it was cancelled, it is run")
    if any(one.row for one in there):
        say("a copy of a message that comes later is a new task, and is run")


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue forget", arguments)
