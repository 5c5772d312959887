"""`workqueue tasks`: the tasks that the ledger knows."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from workqueue.cli.operate import HERE, Folder, app, call, ledger_of, project_of, run
from workqueue.cli.output import Form, Output, say, write_json
from workqueue.cli.tables import display, row, table
from workqueue.ops.spans import span
from workqueue.ops.tasks import State, Task, tasks

MOST = 10**9

commands = app()


@commands.command()
def show(
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    state: Annotated[State, typer.Option("--state", help="that they are in now")] = State.WAITING,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="of this kind")] = None,
    older_than_s: Annotated[
        int | None, typer.Option("--older-than", min=0, max=MOST, metavar="SECONDS", help="in that state for longer")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MOST, metavar="N", help="so many, the oldest")] = 100,
) -> int:
    """The tasks that the ledger knows, by state, the oldest first: those that wait, unless another state is asked for.

    One waits since it was sent, since its next attempt was due, or since the lease of its last claim ended: so long
    somebody could have begun it. One whose worker died with it waits, too. One runs since its worker took it, and is
    done, dead or cancelled since then. What was sent, and neither recorded nor taken yet, is not known.
    """
    project = project_of(folder)

    async def ask() -> list[Task]:
        async with ledger_of(project, "tasks") as ledger:
            return await tasks(ledger, state, limit + 1, kind=kind, older_than_s=older_than_s)

    found = run(ask)
    first = found[:limit]
    if output is not Form.TABLE:
        write_json(output, first)
    else:
        display(listed(first) if first else _none(state, is_narrowed=kind is not None or older_than_s is not None))
    if len(found) > limit:
        say(f"the oldest {limit}, and there are more; --limit shows them")
    return 0


def listed(found: Sequence[Task]) -> Table:
    """What none of them has is left out."""
    now = datetime.now(UTC)
    last = {
        "worker": [one.worker or "" for one in found],
        "next": [f"in {span((one.next_at - now).total_seconds())}" if one.next_at else "" for one in found],
        "error": [": ".join(filter(None, (one.reason, one.error))) for one in found],
    }
    told = [name for name, values in last.items() if any(values)]
    made = table("id", "kind", "state", "attempts:", "since", *told)
    for at, one in enumerate(found):
        since = "" if one.next_at else one.since
        row(made, one.id, one.kind or "", one.state, one.attempts, since, *(last[name][at] for name in told))
    return made


def _none(state: State, *, is_narrowed: bool) -> str:
    return f"no task that is meant by these options is {state}" if is_narrowed else f"no task is {state}"


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue tasks", arguments)
