"""`workqueue plan`: the contract against the live broker."""

import json
import os
import shlex
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from workqueue.cli.operate import HERE, Folder, app, call, project_of, run
from workqueue.cli.output import Form, Output, put, write_json
from workqueue.cli.tables import display, row, table
from workqueue.errors import UsageInvalid, escaped
from workqueue.ops.plan import Plan, definitions, plan

commands = app()


@commands.command()
def show(
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    export: Annotated[
        str | None, typer.Option("--export", metavar="definitions", help="the queues for RabbitMQ")
    ] = None,
) -> int:
    """What the broker has of the contract's queues, and what it would take to make the rest so. No step is taken.

    Exit code 1 where something is missing, or differs. `--export definitions` writes the queues as RabbitMQ imports
    them, and asks no broker.
    """
    if export not in (None, "definitions"):
        raise UsageInvalid(f"--export {export!r}: there are definitions, and nothing else")
    project = project_of(folder)
    if export is not None:
        put(json.dumps(definitions(project), indent=2) + "\n")
        return 0
    found = run(lambda: plan(project, f"plan-{os.getpid()}"))
    if output is Form.TABLE:
        display(rendered(found))
    else:
        write_json(output, [found], one=True)
    return 0 if found.is_same else 1


def rendered(found: Plan) -> RenderableType:
    made = table("queue", "state", "argument", "contract", "broker")
    lines = []
    for queue in found.queues:
        first = queue.differences[0] if queue.differences else None
        stated = (first.name, _value(first.contract), _value(first.broker)) if first else ("", "", "")
        row(made, queue.queue, queue.state, *stated)
        for one in queue.differences[1:]:
            row(made, "", "", one.name, _value(one.contract), _value(one.broker))
        if queue.why is not None:
            lines.append(f"{queue.queue}: {queue.why}")
        if queue.state in ("policy", "low limit", "new queue"):
            lines.append(f"{queue.queue}, what it takes:")
            lines += [f"  {number}. {step}" for number, step in enumerate(queue.steps, 1)]
    where = f"{found.version} at {found.broker}"
    same = sum(queue.state == "same" for queue in found.queues)
    head = f"{where}: {same} of {len(found.queues)} queues are as the contract has them; {found.unseen}"
    return Group(made, Text(""), *(Text(escaped(line)) for line in [*lines, head]))


def _value(value: object) -> str:
    return "-" if value is None else shlex.quote(str(value)) if value == "" else str(value)


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue plan", arguments)
