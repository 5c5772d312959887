"""`workqueue status`, `workqueue workers`: what waits, who works, and what each has in hand."""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from workqueue.cli.operate import HERE, Folder, app, call, ledger_of, project_of, run
from workqueue.cli.output import Form, Output, say, write_json
from workqueue.cli.tables import console, display, reached, row, shown, table
from workqueue.errors import BrokerUnreachable, LedgerUnreachable, WorkQueueError, escaped
from workqueue.ledger import Ledger
from workqueue.ledger.none import SilentLedger
from workqueue.ops.project import Project
from workqueue.ops.spans import span
from workqueue.ops.status import Status, status
from workqueue.ops.workers import Worker, workers

WATCH_S = 2.0
AT_MOST = 20  # tasks in hand that `status` lists, those that take longest

commands = app()
crew = app()


@commands.command()
def show(
    folder: Folder = HERE,
    output: Output = Form.TABLE,
    watch: Annotated[bool, typer.Option("--watch", help="again every two seconds, until Ctrl-C")] = False,
) -> int:
    """What waits in each queue, who works on it, and when it will be done.

    Looks at the broker passively: no message is taken, and no plugin is needed. What workers say of themselves is in
    the ledger, two seconds old at most. Exit code 3 where that is out of reach: what the broker tells is shown.
    """
    project = project_of(folder)
    if not watch:
        now = look(project)
        _write(now, output)
        return 0 if now.ledger_answers else LedgerUnreachable.exit_code
    if output is not Form.TABLE or not sys.stdout.isatty():
        while True:
            found = look_again(project)
            if isinstance(found, Status):
                _write(found, Form.TABLE if output is Form.TABLE else Form.JSONL)
            else:
                say(str(found))
            time.sleep(WATCH_S)
    else:
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                found = look_again(project)
                live.update(rendered(found) if isinstance(found, Status) else _note(str(found)), refresh=True)
                time.sleep(WATCH_S)


@crew.command()
def list_workers(folder: Folder = HERE, output: Output = Form.TABLE) -> int:
    """The workers that were heard of within the hour, and what each has in hand."""
    project = project_of(folder)

    async def ask() -> list[Worker]:
        async with ledger_of(project, "workers") as ledger:
            return await workers(ledger)

    found = run(ask)
    if output is Form.TABLE:
        display(Group(*_workers(found), *_in_hand(found)) if found else "no worker was heard of within the hour")
    else:
        write_json(output, found)
    return 0


def look_again(project: Project) -> Status | WorkQueueError:
    """The error while the broker or the ledger is out of reach, which is what one may be watching for."""
    try:
        return look(project)
    except (BrokerUnreachable, LedgerUnreachable) as error:
        return error


@asynccontextmanager
async def ledger_if_there(project: Project) -> AsyncIterator[Ledger]:
    """As `ledger_of`; where it is out of reach, what stands for it."""
    async with AsyncExitStack() as stack:
        try:
            ledger = await stack.enter_async_context(ledger_of(project))
        except LedgerUnreachable as error:
            ledger = SilentLedger(error.url, error.cause)
        yield ledger


def look(project: Project) -> Status:
    async def ask() -> Status:
        async with ledger_if_there(project) as ledger:
            return await status(project, ledger, f"status-{os.getpid()}")

    return run(ask)


def _write(found: Status, output: Form) -> None:
    if output is Form.TABLE:
        display(rendered(found))
    else:
        write_json(output, [found], one=True)


def rendered(found: Status) -> RenderableType:
    queues = table("queue", "ready:", "in hand:", "delayed:", "dead:", "consumers:", "workers:", "done/s:", "empty in:")
    for queue in found.queues:
        delayed = [count for count in queue.delayed.values() if count is not None]
        left = "paused" if queue.paused else "?" if queue.backlog_s is None else span(queue.backlog_s)
        row(
            queues, queue.queue, queue.ready, queue.in_hand, sum(delayed), queue.dead, queue.consumers, queue.workers,
            queue.rate, left,
        )  # fmt: skip
    notes = map(_note, found.notes)
    return Group(queues, *_deaths(found), *_workers(found.workers), *_in_hand(found.workers, AT_MOST), *notes)


def _note(said: str) -> Text:
    return Text(f"! {escaped(said)}", style="yellow")


def _deaths(found: Status) -> list[RenderableType]:
    if not found.deaths:
        return []
    made = table("died of", "kind", "tasks:", "last hour:", "newest")
    for one in found.deaths:
        row(made, one.reason, one.kind, one.count, one.hour, one.newest)
    return [made]


def _workers(found: tuple[Worker, ...] | list[Worker]) -> list[RenderableType]:
    if not found:
        return []
    made = table("worker", "host", "state", "seen", "in hand:", "done:", "failed:", "dead:", "done/s:", "contract")
    for worker in found:
        work = list(worker.queues.values())
        row(
            made, worker.name, f"{worker.host}:{worker.pid}", worker.state, f"{span(worker.seen_s)} ago",
            worker.all_held, sum(one.done for one in work), sum(one.failed for one in work),
            sum(one.dead for one in work), sum(one.rate for one in work), f"{worker.contract} {worker.digest}",
        )  # fmt: skip
    return [made]


def _in_hand(found: tuple[Worker, ...] | list[Worker], at_most: int | None = None) -> list[RenderableType]:
    """The oldest first."""
    every = [(one, worker) for worker in found for one in worker.in_hand]
    if not every:
        return []
    held = sorted(every, key=lambda each: each[0].since)[:at_most]
    told = [reached(one.progress, one.text) for one, _ in held]
    made = table("in hand", "kind", "attempt:", "since", "worker", *(["progress"] if any(told) else []))
    for one, worker in held:
        more = [reached(one.progress, one.text)] if any(told) else []
        row(made, one.id, one.kind, one.attempt, shown(one.since), worker.name, *more)
    left = len(every) - len(held)
    return [made, Text(f"and {left:,} more in hand: workqueue workers")] if left else [made]


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue status", arguments)


def main_workers(arguments: list[str]) -> int:
    return call(crew, "workqueue workers", arguments)
