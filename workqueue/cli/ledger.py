"""`workqueue ledger`: all that is in a ledger, moved to another one."""

from typing import Annotated

import typer

from workqueue.cli.operate import app, call, progress, run
from workqueue.cli.output import Form, Output, say, told, write_json
from workqueue.cli.tables import display
from workqueue.ops.copying import Copied, copy, reopen, reopen_lost

commands = app()

Source = Annotated[str, typer.Argument(metavar="FROM", help="as LEDGER_URL has it: sqlite:PATH, postgresql://...")]
Target = Annotated[str, typer.Argument(metavar="TO", help="the same; made where it does not exist")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="for the audit in the ledger")]
Force = Annotated[
    bool, typer.Option("--force", help="also while others have it open, who have told nothing and hold no claim")
]


@commands.command("copy")
def copy_ledger(
    source: Source, target: Target, output: Output = Form.TABLE, why: Why = "", force: Force = False
) -> int:
    """Move to another ledger: close the one, and copy its tasks, its audit and its pauses to the other.

    Stop all that use it first. It is closed for good, for earlier versions too, and says where it was moved; the other
    one is closed until the copy is complete. A task that the other one knows stays as it is there, unless it was only
    sent, or waits while it was done here. Killed, and asked for again, it goes on. `workqueue ledger reopen` undoes it.
    It asks no broker. Exit code 1 while somebody works with FROM: then nothing is done.
    """

    async def act() -> Copied:
        with progress("copying") as tell:
            return await copy(source, target, why=why, force=force, tell=tell)

    done = run(act)
    if done.again:
        say(f"{done.source} was closed by an earlier copy to the same ledger: this one has gone on with it")
    text = f"ledger copy: {done.copied:,} copied, {done.kept:,} kept, {done.replaced:,} replaced"
    known = told(lambda: display(text) if output is Form.TABLE else write_json(output, [done], one=True))
    say(f"{done.source} is closed; start workers and applications with the LEDGER_URL of {done.target}")
    return 0 if known else 1


@commands.command("reopen")
def reopen_ledger(
    source: Source,
    target: Target,
    why: Why = "",
    force: Force = False,
    lost: Annotated[
        bool, typer.Option("--lost", help="TO exists no more, and nobody can say what was done in it")
    ] = False,
) -> int:
    """Undo a copy of FROM to TO, complete or not, before any task was claimed in TO.

    TO is closed for good, so that a copy begins with another one. Exit code 1 while somebody works with TO, 2 where
    tasks were claimed or ended in it.
    """
    opened, closed = run(
        lambda: reopen_lost(source, target, why=why) if lost else reopen(source, target, why=why, force=force)
    )
    known = told(lambda: display(f"{opened} is open again"))
    say(f"{closed} is not to be used any more")
    if lost:
        say("a task that was done there since may be done again")
    return 0 if known else 1


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue ledger", arguments or ["--help"])
