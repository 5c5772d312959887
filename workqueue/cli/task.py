"""`workqueue task ID`: one task's whole way."""

import json
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from workqueue.cli.operate import HERE, Folder, app, call, id_of, ledger_of, project_of, run
from workqueue.cli.output import Form, Output, write_json
from workqueue.cli.tables import ago, display, reached
from workqueue.errors import escaped
from workqueue.ops.story import Attempt, Removal, Return, Story, story

commands = app()


@commands.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="the task's")],
    folder: Folder = HERE,
    output: Output = Form.TABLE,
) -> int:
    """One task: when it was sent, every attempt that failed and why, where it is now, its result.

    Exit code 1 for a task that the ledger knows nothing of: it was never sent, or not recorded and not taken yet, or
    is forgotten since.
    """
    project = project_of(folder)
    task_id = id_of(id)

    async def ask() -> Story:
        async with ledger_of(project, "task") as ledger:
            return await story(ledger, task_id)

    found = run(ask)
    if output is Form.TABLE:
        display(rendered(found))
    else:
        write_json(output, [found], one=True)
    return 1 if found.state == "unknown" else 0


def rendered(found: Story) -> RenderableType:
    lines: list[tuple[str, Any]] = [("task", f"{found.id}  {found.kind or ''}"), ("state", _state(found))]
    if progress := reached(found.progress, found.text):
        lines.append(("progress", progress))
    if found.sent_at is not None:
        lines.append(("sent", f"{found.sent_at:%Y-%m-%d %H:%M:%S} UTC, {ago(found.sent_at)}"))
    told: list[Attempt | Return | Removal] = [*found.attempts, *found.returns, *found.removals]
    for one in sorted(told, key=lambda each: each.at):
        if isinstance(one, Return):
            lines.append(("sent back", "  ".join(filter(None, (one.at, one.by, one.why)))))
            continue
        if isinstance(one, Removal):
            word, sent_as = ("edited", f"sent as {one.sent_as}") if one.sent_as else ("dropped", "")
            lines.append((word, "  ".join(filter(None, (one.at, one.by, one.why, sent_as)))))
            continue
        lines.append((f"attempt {one.attempt}", f"{one.at}  {one.worker}  {one.error}"))
        lines += [("", line) for line in one.traceback.splitlines()]
    lines += [("death", f"{death.at}  {death.worker}  {death.error}") for death in found.deaths]
    if found.finished_at is not None:
        by = f" by {found.worker}" if found.worker and found.state != "cancelled" else ""
        lines.append((found.state, f"{found.finished_at:%Y-%m-%d %H:%M:%S} UTC{by}"))
    if found.result is not None:
        lines.append(("result", json.dumps(found.result, ensure_ascii=False)))
    width = max(len(name) for name, _ in lines)
    return Group(*(Text(f"{name:{width}}  {escaped(str(value))}") for name, value in lines))


def _state(found: Story) -> str:
    match found.state:
        case "unknown":
            return "unknown: the ledger has nothing of it"
        case "running":
            asked = f", asked to stop {found.cancel}" if found.cancel else ""
            why = f"; its handler does not run, and {found.worker} waits: {found.why}" if found.why else ""
            return f"running, attempt {found.attempt}, by {found.worker} since {ago(found.since)}{asked}{why}"
        case "retrying":
            return f"retrying after {found.attempt} failed attempts, next {_until(found)}: {found.error}"
        case "dead":
            return f"dead, {found.reason}: {found.error}{_way_out(found)}"
        case "cancelled":
            return f"cancelled {found.error}"
        case "waiting":
            return "waiting for a worker" + (f", last error: {found.error}" if found.error else "")
    return f"{found.state}, by attempt {found.attempt}"


def _way_out(found: Story) -> str:
    """Of a dead task; there is none where its letter was dropped."""
    if found.removal is None:
        return f"  (workqueue dead show {found.id})"
    return f"  (workqueue task {found.removal.sent_as})" if found.removal.sent_as else ""


def _until(found: Story) -> str:
    return "as soon as its delay is over" if found.next_at is None else f"not before {found.next_at:%H:%M:%S} UTC"


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue task", arguments)
