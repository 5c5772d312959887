"""`workqueue cancel`, `pause`, `resume`, `purge`: what is not to be done, or not now."""

import os
import sys
from typing import Annotated
from uuid import UUID

import typer

from workqueue.cli.operate import (
    HERE,
    Folder,
    Form,
    Output,
    agreed,
    app,
    call,
    can_be_asked,
    display,
    ledger_of,
    progress,
    project_of,
    row,
    run,
    say,
    table,
    write_json,
)
from workqueue.client import as_uuid
from workqueue.contract import Receive
from workqueue.errors import IdInvalid, UsageInvalid
from workqueue.ops.cancelling import Cancelled, cancel
from workqueue.ops.pausing import Paused, pause, resume
from workqueue.ops.project import Project
from workqueue.ops.purging import Purged, purge, waiting

STOP_S = 5.0

cancelling, pausing, resuming, purging = app(), app(), app(), app()

Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="of tasks")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="kept with it, and in the audit")]


@cancelling.command()
def cancel_tasks(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="the tasks'; - reads ids from a pipe")],
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    why: Why = "",
    within_s: Annotated[float, typer.Option("--wait", min=0, metavar="S", help="for those that run to stop")] = STOP_S,
) -> int:
    """Call tasks off: no attempt at them begins any more, and one that runs is stopped.

    A task that waits is cancelled at once, and one that the ledger does not know should it come. The worker of one that
    runs cancels its handler within two seconds; a handler that returns meanwhile has done it. Exit code 1 where one is
    not cancelled: it was done or dead before, or it runs still and is asked to stop.
    """
    wanted = [id_of(id) for given in ids for id in (sys.stdin.read().split() if given == "-" else [given])]
    project = project_of(folder)

    async def act() -> list[Cancelled]:
        async with ledger_of(project, "cancel") as ledger:
            return await cancel(ledger, wanted, why=why, within_s=within_s)

    found = run(act)
    if output is Form.TABLE:
        made = table("task", "state", "kind", "worker")
        for one in found:
            row(made, one.id, one.state, one.kind or "", one.worker or "")
        display(made if found else "no task was named")
    else:
        write_json(output, found)
    for one in found:
        if one.state == "asked":
            say(f"{one.id} runs still on {one.worker}, which was asked to stop it; its log says where it is")
    return 0 if all(one.state == "cancelled" for one in found) else 1


@pausing.command()
def pause_queue(queue: Queue, folder: Folder = HERE, output: Output = Form.TABLE, why: Why = "") -> int:
    """Let no worker take a task from the queue, until `workqueue resume`; what they have in hand goes on.

    It outlasts restarts of workers and of the broker. Tasks are sent, and wait. Exit code 1 where a worker that is seen
    does not say within some seconds that it has stopped.
    """
    project = project_of(folder)
    _receive(project, queue)

    async def act() -> Paused:
        async with ledger_of(project, "pause") as ledger:
            return await pause(ledger, queue, why=why)

    return _shown(run(act), output)


@resuming.command()
def resume_queue(queue: Queue, folder: Folder = HERE, output: Output = Form.TABLE, why: Why = "") -> int:
    """Let workers take tasks from the queue again. Exit code 1 as for `workqueue pause`."""
    project = project_of(folder)
    _receive(project, queue)

    async def act() -> Paused:
        async with ledger_of(project, "resume") as ledger:
            return await resume(ledger, queue, why=why)

    return _shown(run(act), output)


@purging.command()
def purge_queue(
    queue: Queue,
    folder: Folder = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
    why: Why = "",
) -> int:
    """Throw away all that waits in the queue, and in its delays; each task is cancelled, as `workqueue task` tells.

    What workers have in hand goes on; dead letters stay, see `workqueue dead drop`. Exit code 1 where something stays.
    """
    can_be_asked(yes or dry_run)
    project = project_of(folder)
    receive, name = _receive(project, queue), f"purge-{os.getpid()}"

    async def look() -> dict[str, int]:
        async with ledger_of(project, "purge", or_none=True) as ledger:
            return await waiting(project, ledger, receive, name)

    async def act() -> Purged:
        async with ledger_of(project, "purge", or_none=True) as ledger:
            with progress("purging") as tell:
                return await purge(project, ledger, receive, name, why=why, tell=tell)

    there = run(look)
    for each, count in there.items():
        say(f"{count:,} wait in {each}")
    if dry_run:
        return 0
    if any(there.values()) and not (yes or agreed(f"throw {sum(there.values()):,} away?")):
        return 1
    done = run(act)
    print(f"purge: {done.purged} of {done.matched} messages")
    if done.running:
        say(f"{done.running} of them were copies of tasks that run, and go on")
    if done.ended_by is not None:
        raise done.ended_by
    return 0


def _shown(found: Paused, output: Form) -> int:
    word = "paused" if found.paused else "resumed"
    if output is Form.TABLE:
        before = "" if found.changed else f" (it was {'already' if found.paused else 'not paused'})"
        display(f"{found.queue} is {word}{before}; workers that say so: {', '.join(found.obey) or 'none is seen'}")
    else:
        write_json(output, [found], one=True)
    if found.others:
        say(f"not yet: {', '.join(found.others)}; a worker of an earlier version does not know of pauses")
    return 1 if found.others else 0


def _receive(project: Project, queue: str) -> Receive:
    """Raises UsageInvalid."""
    if queue not in project.receives:
        raise UsageInvalid(f"{queue!r} is no queue of this project's workers: {', '.join(project.receives)}")
    return project.receives[queue]


def id_of(text: str) -> UUID:
    """Raises UsageInvalid."""
    try:
        return as_uuid(text)
    except IdInvalid as error:
        raise UsageInvalid(f"{text!r} is no id of a task, which is a UUID") from error


def main_cancel(arguments: list[str]) -> int:
    return call(cancelling, "workqueue cancel", arguments)


def main_pause(arguments: list[str]) -> int:
    return call(pausing, "workqueue pause", arguments)


def main_resume(arguments: list[str]) -> int:
    return call(resuming, "workqueue resume", arguments)


def main_purge(arguments: list[str]) -> int:
    return call(purging, "workqueue purge", arguments)
