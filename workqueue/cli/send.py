"""`workqueue send`: one task by hand."""

import os
from importlib import import_module
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from workqueue.cli.operate import HERE, Folder, app, call, fields_of, project_of, run
from workqueue.cli.output import put, say, told
from workqueue.client import Client
from workqueue.client.results import Handle
from workqueue.contract import Send
from workqueue.errors import TaskDead, TaskInvalid, TaskUnfinished, UsageInvalid
from workqueue.ops.project import Project

commands = app()


@commands.command()
def send(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="of the task; - where the contract has just one")],
    fields: Annotated[list[str] | None, typer.Argument(metavar="FIELD=VALUE...", help="a text, or JSON")] = None,
    folder: Folder = HERE,
    to: Annotated[str | None, typer.Option("--to", metavar="OPERATION", help="the send operation, of several")] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="the same one is the same task")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="TEXT", help="the same one is the same task")] = None,
    wait: Annotated[float | None, typer.Option("--wait", min=0, metavar="S", help="so long for its result")] = None,
) -> int:  # fmt: skip
    """Send one task, checked by the contract, and write its id; with --wait its result, as JSON.

    A value is JSON where it is that, else a text: `path=/etc/hosts seconds=2 flags='["a"]' zip='"04109"'`. Exit code 1
    where it is refused, dies, or is not done in time.
    """
    project = project_of(folder)
    if wait is not None and not project.has_ledger:
        raise UsageInvalid("--wait needs a ledger, the one that the workers use, and LEDGER_URL is none")
    package, operation = _operation(project, kind, to)
    payload = fields_of(fields or [])
    if kind != "-":
        if operation.tag is None:
            raise UsageInvalid(f"the tasks of {operation.operation} have no kinds: give - in the place of {kind!r}")
        if operation.tag in payload:
            raise UsageInvalid(f"{operation.tag} is given twice: give - in the place of {kind!r}")
        payload = {operation.tag: kind, **payload}

    async def ask() -> int:
        application = import_module(package).Application
        async with Client(application, settings=project.settings, name=f"send-{os.getpid()}") as client:
            try:
                handle = await client.send(payload, to=operation.operation, id=id, key=key)
            except TaskInvalid as error:
                if 'is not of type "string"' not in error.reason:
                    raise
                way_out = "a text that could be JSON, as a number could, has quotes of its own: zip='\"04109\"'"
                raise TaskInvalid(error.message_id, f"{error.reason}; {way_out}") from error
            known = told(lambda: put(f"{handle.id}\n"))
            if wait is None:
                return 0 if known else 1
            return await _wait(handle, wait, known)

    return run(ask)


async def _wait(handle: Handle[Any], within_s: float, known: bool) -> int:
    """Write the task's result. `known` is whether standard output has the id: it has no more if it has not that."""
    try:
        result = await handle.result(timeout_s=within_s)
    except (TaskDead, TaskUnfinished) as error:
        say(str(error))
        return 1
    text = result.model_dump_json(by_alias=True, exclude_unset=True) if isinstance(result, BaseModel) else "null"
    if not known:
        say(text)
        return 1
    return 0 if told(lambda: put(f"{text}\n")) else 1


def _operation(project: Project, kind: str, to: str | None) -> tuple[str, Send]:
    """The only one, or the only one that sends this kind. Raises UsageInvalid where it is not clear which is meant."""
    known = {
        one.operation: (package, one) for package, each in project.contracts.items() for one in each.sends.values()
    }
    if to is None:
        found = [name for name, (_, one) in known.items() if len(known) == 1 or (one.tag and kind in one.kinds)]
        to = found[0] if len(found) == 1 else None
    if to in known:
        return known[to]
    names = ", ".join(known) or "none"
    said = "several operations send tasks" if to is None and known else f"--to {to or ''}".rstrip()
    raise UsageInvalid(f"{said}: name one by --to; the contract has {names}")


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue send", arguments)
