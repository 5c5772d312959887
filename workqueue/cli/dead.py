"""`workqueue dead`: the dead letters, looked through, sent back to their tasks, or thrown away."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from workqueue.cli.letters import SAMPLES, filter_of, grouped, listed, opened, preview
from workqueue.cli.operate import (
    HERE,
    Folder,
    agreed,
    app,
    call,
    can_be_asked,
    fields_of,
    ledger_of,
    progress,
    project_of,
    run,
)
from workqueue.cli.output import Form, Output, put, say, told, write_json
from workqueue.cli.tables import display
from workqueue.errors import UsageInvalid, escaped
from workqueue.ops import letters
from workqueue.ops.audit import operator
from workqueue.ops.desk import Desk, Selection
from workqueue.ops.editing import carry_out, edit
from workqueue.ops.letters import REASONS, Filter, Letter, Opened, plain_id
from workqueue.ops.moving import Action, Moved
from workqueue.ops.project import Project

SHOWN = 50  # letters of a table, unless more are asked for

commands = app()

Queues = Annotated[list[str] | None, typer.Option("--queue", metavar="QUEUE", help="whose tasks (may be repeated)")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="REASON", help="why they died: failed, crashed, ... (repeated)")
]
Kinds = Annotated[list[str] | None, typer.Option("--kind", metavar="KIND", help="of this kind of task (repeated)")]
Error = Annotated[str | None, typer.Option("--error", metavar="REGEX", help="whose error this is found in")]
By = Annotated[str | None, typer.Option("--worker", metavar="NAME", help="whose last attempt this worker made")]
Under = Annotated[str | None, typer.Option("--contract", metavar="VERSION", help="sent, or buried, by this contract")]
Since = Annotated[str | None, typer.Option("--since", metavar="WHEN", help="dead since: a time, or 2h, 3d ago")]
Until = Annotated[str | None, typer.Option("--until", metavar="WHEN", help="dead before: a time, or 2h, 3d ago")]
Ids = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="these (repeated; - reads ids from a pipe)")]
All = Annotated[bool, typer.Option("--all", help="all of them, where no filter is given")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]
Dry = Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")]
Most = Annotated[int | None, typer.Option("--max", min=1, metavar="N", help="no more than so many, the oldest first")]
Expect = Annotated[int | None, typer.Option("--expect", min=0, metavar="N", help="do nothing unless just N match")]
Rate = Annotated[float | None, typer.Option("--rate", min=0.01, metavar="N", help="no more than N a second")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="for the audit in the ledger")]
Force = Annotated[
    bool, typer.Option("--force", help="also those that today's contract refuses, or that came back often")
]


@commands.command("groups")
def show_groups(
    folder: Folder = HERE, output: Output = Form.TABLE, queue: Queues = None, reason: Reasons = None,
    kind: Kinds = None, error: Error = None, worker: By = None, contract: Under = None, since: Since = None,
    until: Until = None, id: Ids = None,
) -> int:  # fmt: skip
    """How many died of what: letters of one kind, reason and error together. Exit code 1 where some did not come."""
    wanted = filter_of(queue, reason, kind, error, worker, contract, since, until, id)
    found, missed = _read(folder, wanted)
    made = letters.groups(found)
    if output is not Form.TABLE:
        write_json(output, made)
    else:
        display(grouped(made) if made else _none(wanted))
    return 1 if missed else 0


@commands.command("list")
def show_list(
    folder: Folder = HERE, output: Output = Form.TABLE, queue: Queues = None, reason: Reasons = None,
    kind: Kinds = None, error: Error = None, worker: By = None, contract: Under = None, since: Since = None,
    until: Until = None, id: Ids = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="so many, the newest")] = None,
) -> int:  # fmt: skip
    """The letters, the newest last. Exit code 1 where some did not come."""
    wanted = filter_of(queue, reason, kind, error, worker, contract, since, until, id)
    found, missed = _read(folder, wanted)
    last = found[-(limit or (SHOWN if output is Form.TABLE else len(found) or 1)) :]
    if output is not Form.TABLE:
        write_json(output, last)
    else:
        display(listed(last) if last else _none(wanted))
    if len(last) < len(found):
        say(f"the newest {len(last)} of {len(found)}; --limit shows more")
    return 1 if missed else 0


@commands.command("show")
def show_one(
    id: Annotated[str, typer.Argument(metavar="ID", help="the task's, or the key of the letter")],
    folder: Folder = HERE,
    output: Output = Form.TABLE,
) -> int:
    """All of a letter: its story, its headers, its body. Exit code 1 where there is none of this id."""
    project = project_of(folder)

    async def ask() -> list[Opened]:
        async with ledger_of(project) as ledger:
            with progress("reading") as tell:
                return await _find(Desk(project, ledger, _name(), tell), id)

    found = run(ask)
    if output is not Form.TABLE:
        write_json(output, found)
    else:
        display(Group(*map(opened, found)) if found else f"no dead letter {escaped(id)}")
    return 0 if found else 1


@commands.command()
def redrive(
    folder: Folder = HERE, queue: Queues = None, reason: Reasons = None, kind: Kinds = None, error: Error = None,
    worker: By = None, contract: Under = None, since: Since = None, until: Until = None, id: Ids = None,
    all: All = False, yes: Yes = False, dry_run: Dry = False, max: Most = None, expect: Expect = None,
    rate: Rate = None, why: Why = "", force: Force = False,
) -> int:  # fmt: skip
    """Send dead letters back to their tasks: each is tried anew, with its story kept.

    What matches is frozen before the first is moved. A letter is published and confirmed before it is taken from the
    dead letters; what was cut off can be asked for again, and doubles nothing. Left alone is what today's contract
    refuses, and what came back ten times; --force sends those too. Exit code 1 when some that were to be moved stay.
    """
    wanted = filter_of(queue, reason, kind, error, worker, contract, since, until, id)
    return _act("redrive", folder, wanted, all, yes, dry_run, max, expect, rate, why, force)


@commands.command()
def drop(
    folder: Folder = HERE, queue: Queues = None, reason: Reasons = None, kind: Kinds = None, error: Error = None,
    worker: By = None, contract: Under = None, since: Since = None, until: Until = None, id: Ids = None,
    all: All = False, yes: Yes = False, dry_run: Dry = False, max: Most = None, expect: Expect = None,
    rate: Rate = None, why: Why = "",
) -> int:  # fmt: skip
    """Throw dead letters away. The ledger keeps that the task is dead, and why; its body is gone for good."""
    wanted = filter_of(queue, reason, kind, error, worker, contract, since, until, id)
    return _act("drop", folder, wanted, all, yes, dry_run, max, expect, rate, why, False)


@commands.command("edit")
def mend(
    id: Annotated[str, typer.Argument(metavar="ID", help="the task's, or the key of the letter")],
    fields: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help="of the payload; null leaves one out")],
    folder: Folder = HERE,
    yes: Yes = False,
    dry_run: Dry = False,
    why: Why = "",
) -> int:
    """Mend a letter's payload, send it as a new task, and take the letter away.

    It is checked by the contract first. The new task's id is made of the old one and the new payload, so that an edit
    that was killed and is asked for again is the same task, and done once. Writes that id. Exit code 1 where there is
    no such letter, or several.
    """
    can_be_asked(yes or dry_run)
    project, changes = project_of(folder), fields_of(fields)

    async def look() -> list[Opened]:
        async with ledger_of(project, "dead edit", or_none=True) as ledger:
            with progress("reading") as tell:
                return await _find(Desk(project, ledger, _name(), tell), id)

    found = run(look)
    if len(found) != 1:
        several = f"{len(found)} dead letters are {id}; name one by its key, see workqueue dead show"
        say(several if found else f"there is no dead letter {id}")
        return 1
    wanted = edit(project, found[0], changes)
    say(f"{found[0].letter.id or found[0].letter.key} is sent as {wanted.id}: {json.dumps(wanted.payload)}")
    if dry_run:
        return 0
    if not (yes or agreed("send it?")):
        return 1

    async def act() -> None:
        async with ledger_of(project, "dead edit", or_none=True) as ledger:
            await carry_out(project, Desk(project, ledger, _name()), _name(), wanted, why=why)

    run(act)
    return 0 if told(lambda: put(f"{wanted.id}\n")) else 1


async def _find(desk: Desk, id: str) -> list[Opened]:
    return await desk.open(Filter(names=frozenset({plain_id(id)})))


def _check(project: Project, wanted: Filter) -> None:
    """A word that no letter can have is a mistake, and not "none". Raises UsageInvalid."""
    for flag, given, known in (("--queue", wanted.queues, project.receives), ("--reason", wanted.reasons, REASONS)):
        for word in given:
            if word not in known:
                raise UsageInvalid(f"{flag} {word!r}: there are {', '.join(known)}")


def _act(
    action: Action, folder: Path, wanted: Filter, everything: bool, yes: bool, dry_run: bool, most: int | None,
    expect: int | None, per_s: float | None, why: str, force: bool,
) -> int:  # fmt: skip
    if wanted.says_nothing and not everything:
        raise UsageInvalid("say which letters: a filter, or --all")
    can_be_asked(yes or dry_run)
    project = project_of(folder)
    _check(project, wanted)

    async def select() -> Selection:
        async with ledger_of(project, f"dead {action}", or_none=True) as ledger:
            with progress("reading") as tell:
                return await Desk(project, ledger, _name(), tell).select(action, wanted, most=most, force=force)

    async def move(selection: Selection, moved: Moved) -> None:
        async with ledger_of(project, f"dead {action}", or_none=True) as ledger:
            with progress("moving") as tell:
                await Desk(project, ledger, _name(), tell).move(selection, moved, per_s=per_s)

    selection = run(select)
    preview(selection)
    if expect is not None and selection.matched != expect:
        say(f"{selection.matched} letters match and {expect} were expected: nothing is done")
        return 1
    if dry_run or not selection.letters:
        missing = bool(wanted.ids) and not selection.matched
        return 1 if missing or (selection.refused and not dry_run) else 0
    if not (yes or agreed(f"{action} {len(selection.letters)} letters?")):
        return 1
    moved, known = Moved(action, operator(), why), False
    try:
        run(lambda: move(selection, moved))
    finally:  # Ctrl-C too: what was done until then was done
        known = _told(moved, len(selection.letters))
    if moved.ended_by is not None:
        raise moved.ended_by
    return 1 if moved.left or moved.unsure or selection.refused or not known else 0


def _told(moved: Moved, of: int) -> bool:
    """Whether standard output has it."""
    known = told(lambda: put(f"{moved.action}: {moved.moved} of {of} letters\n"))
    if moved.unsure:
        say(f"{moved.unsure} more, and these may be among the dead letters still: ask again, it doubles nothing")
    if moved.gone:
        say(f"{moved.gone} were not there any more: somebody else has moved them")
    for letter, problem in moved.left[:SAMPLES]:
        say(f"stays: {letter.id or letter.key}: {problem}")
    if len(moved.left) > SAMPLES:
        say(f"{len(moved.left)} stay in all")
    return known


def _read(folder: Path, wanted: Filter) -> tuple[list[Letter], int]:
    """Those that are meant, and how many could not be looked at."""
    project: Project = project_of(folder)
    _check(project, wanted)

    async def ask() -> tuple[list[Letter], int]:
        async with ledger_of(project) as ledger:
            with progress("reading") as tell:
                desk = Desk(project, ledger, _name(), tell)
                return await desk.letters(wanted), desk.missed

    return run(ask)


def _none(wanted: Filter) -> str:
    return "no dead letters" if wanted.says_nothing else "no dead letter is meant by these filters"


def _name() -> str:
    return f"desk-{os.getpid()}"


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue dead", arguments or ["--help"])
