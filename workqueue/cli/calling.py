"""`workqueue cancel`, `pause`, `resume`, `purge`: what is not to be done, or not now."""

import os
from typing import Annotated
from uuid import UUID

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
from workqueue.cli.output import Form, Output, put, say, told, write_json
from workqueue.cli.tables import display, row, table
from workqueue.contract import Receive
from workqueue.errors import UsageInvalid, WorkQueueError
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
    wanted = ids_of(ids)
    project, found = project_of(folder), dict[UUID, Cancelled]()

    async def act() -> None:
        async with ledger_of(project, "cancel") as ledger:
            await cancel(ledger, wanted, found, why=why, within_s=within_s)

    try:
        run(act)
    except (WorkQueueError, KeyboardInterrupt):
        if found:
            if len(found) < len(wanted):
                say(f"{len(found)} of {len(wanted)} were called off, see below; ask again for the others")
            _show(list(found.values()), output)
        raise
    known = _show(list(found.values()), output)
    return 0 if known and all(one.state == "cancelled" for one in found.values()) else 1


def _show(found: list[Cancelled], output: Form) -> bool:
    """Whether standard output has it."""
    made = table("task", "state", "kind", "worker")
    for one in found:
        row(made, one.id, one.state, one.kind or "", one.worker or "")
    known = told(lambda: display(made) if output is Form.TABLE else write_json(output, found))
    for one in found:
        if one.state == "asked":
            say(f"{one.id} has not ended on {one.worker}, which was asked to stop it: its log says where it is")
        elif not one.known:
            say(f"the ledger knew nothing of {one.id}: it is not run, should it come")
    return known


@pausing.command()
def pause_queue(queue: Queue, folder: Folder = HERE, output: Output = Form.TABLE, why: Why = "") -> int:
    """Let no worker take a task from the queue, until `workqueue resume`; what they have in hand goes on.

    It outlasts restarts of workers and of the broker. Tasks are sent, and wait. Exit code 1 where somebody takes from
    it still after some seconds, or the broker can't be asked.
    """
    project = project_of(folder)
    _receive(project, queue)

    async def act() -> Paused:
        async with ledger_of(project, "pause") as ledger:
            return await pause(project, ledger, queue, f"pause-{os.getpid()}", why=why)

    return _shown(run(act), output)


@resuming.command()
def resume_queue(queue: Queue, folder: Folder = HERE, output: Output = Form.TABLE, why: Why = "") -> int:
    """Let workers take tasks from the queue again. Exit code 1 where one does not say so within some seconds."""
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

    What workers have in hand goes on, and its messages stay; so do dead letters, see `workqueue dead drop`. Exit code 1
    where something waits there after that.
    """
    can_be_asked(yes or dry_run)
    project = project_of(folder)
    receive, name, done = _receive(project, queue), f"purge-{os.getpid()}", Purged(queue)

    async def look() -> dict[str, int]:
        async with ledger_of(project, "purge", or_none=True) as ledger:
            return await waiting(project, ledger, receive, name)

    async def act() -> None:
        async with ledger_of(project, "purge", or_none=True) as ledger:
            with progress("purging") as tell:
                await purge(project, ledger, done, name, why=why, tell=tell)

    there = run(look)
    for each, count in there.items():
        say(f"{count:,} wait in {each}")
    if dry_run:
        return 0
    if any(there.values()) and not (yes or agreed(f"throw {sum(there.values()):,} away?")):
        return 1
    try:
        run(act)
    finally:
        known = told(lambda: put(f"purge: {done.purged} of {done.matched} messages\n"))
    if done.running:
        say(f"{done.running} stay: their tasks run, and go on")
    if done.ended_by is not None:
        raise done.ended_by
    if done.left > done.running:
        say(f"{done.left} wait there now: more has come, or came back")
    return 1 if done.left or not known else 0


def _shown(found: Paused, output: Form) -> int:
    word = "paused" if found.paused else "resumed"
    before = "" if found.changed else f" (it was {'already' if found.paused else 'not paused'})"
    text = f"{found.queue} is {word}{before}; workers that say so: {', '.join(found.obey) or 'none is seen'}"
    known = told(lambda: display(text) if output is Form.TABLE else write_json(output, [found], one=True))
    if found.others:
        say(f"not yet: {', '.join(found.others)}; one that died just now, or is of an earlier version, does not obey")
    elif found.paused and found.consumers is None:
        say("the broker does not answer: whether somebody takes from it still is not known")
    elif found.paused and found.consumers:
        gone = "".join(f"{name}, which is gone, or frozen; " for name in found.gone)
        say(
            f"{found.consumers} consumers take from it still, which tell the ledger nothing: {gone}workers of an "
            "earlier version, or without rights on its tables, or somebody else"
        )
    return 0 if found.is_so and known else 1


def _receive(project: Project, queue: str) -> Receive:
    """Raises UsageInvalid."""
    if queue not in project.receives:
        raise UsageInvalid(f"{queue!r} is no queue of this project's workers: {', '.join(project.receives)}")
    return project.receives[queue]


def main_cancel(arguments: list[str]) -> int:
    return call(cancelling, "workqueue cancel", arguments)


def main_pause(arguments: list[str]) -> int:
    return call(pausing, "workqueue pause", arguments)


def main_resume(arguments: list[str]) -> int:
    return call(resuming, "workqueue resume", arguments)


def main_purge(arguments: list[str]) -> int:
    return call(purging, "workqueue purge", arguments)
