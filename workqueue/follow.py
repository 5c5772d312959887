"""What became of the tasks that were sent: the progress bar, the table per worker, the results file."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, TextIO
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from workqueue.errors import InputInvalid, NotSent, WorkQueueError
from workqueue.ledger import Ledger, LedgerBusy, Outcome

POLL_S = 0.2
LOOK_UP_S = 2.0
OVERLAP_S = 2.0  # an outcome may become visible a little after the time it carries


class Follower(AbstractContextManager["Follower"]):
    """Follows tasks through the ledger: one that `noting` saw is followed until it is done or dead, or not sent."""

    def __init__(self, ledger: Ledger, results: TextIO | None) -> None:
        self._ledger, self._results = ledger, results
        self._pending: set[UUID] = set()
        self._nothing_pending = asyncio.Event()
        self._workers: dict[str, list[int]] = {}
        self._since, self._began = time.time() - OVERLAP_S, time.monotonic()
        self._console = Console(stderr=True)
        columns = TextColumn("finished"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._bar = self._progress.add_task("", total=0)
        self.done = self.dead = 0

    def __enter__(self) -> "Follower":
        self._progress.start()
        self._watching = asyncio.ensure_future(self._watch())
        return self

    def __exit__(self, *_: Any) -> None:
        self._watching.cancel()
        self._progress.stop()

    def noting(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """The same tasks; each is followed from the moment it is read."""
        for task in tasks:
            if not isinstance(task, InputInvalid):
                self._pending.add(task.id)
            yield task

    def problem(self, error: WorkQueueError) -> None:
        """Print it as a line beside the progress bar, and follow a task that was not sent no longer."""
        if isinstance(error, NotSent):
            self._pending.discard(UUID(error.message_id))
        name = os.path.basename(sys.argv[0])
        self._console.print(f"{name}: {error}", markup=False, highlight=False, soft_wrap=True)

    async def finish(self) -> None:
        """Return when every task is finished; none is noted any more."""
        while self._pending:
            self._nothing_pending.clear()
            # Some were finished before this run, which sent them again: looked up by name, now and then.
            with suppress(LedgerBusy):
                self._take(await self._ledger.outcomes(list(self._pending)))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_UP_S):
                    await self._nothing_pending.wait()

    async def _watch(self) -> None:
        while True:
            with suppress(LedgerBusy):  # it is asked again
                self._take(await self._ledger.finished_since(self._since - OVERLAP_S))
            await asyncio.sleep(POLL_S)

    def _take(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.id in self._pending:
                self._pending.remove(outcome.id)
                self._record(outcome)
            self._since = max(self._since, outcome.finished_at)
        finished = self.done + self.dead
        if not self._pending:
            self._nothing_pending.set()
        self._progress.update(self._bar, completed=finished, total=finished + len(self._pending))

    def _record(self, outcome: Outcome) -> None:
        done = outcome.state == "done"
        self.done, self.dead = self.done + done, self.dead + (not done)
        counts = self._workers.setdefault(outcome.worker, [0, 0])
        counts[0 if done else 1] += 1
        if self._results is not None:
            line = {
                "id": str(outcome.id), "state": outcome.state, "worker": outcome.worker, "attempts": outcome.attempts,
                "result": json.loads(outcome.result) if outcome.result else None, "error": outcome.error,
            }  # fmt: skip
            self._results.write(json.dumps(line, ensure_ascii=False) + "\n")

    def print_table(self) -> None:
        """Who did what, on standard output."""
        elapsed_s = time.monotonic() - self._began
        table = Table("worker", "done", "dead", "share")
        for column in table.columns[1:]:
            column.justify = "right"
        for worker, (done, dead) in sorted(self._workers.items()):
            table.add_row(worker, str(done), str(dead), f"{(done + dead) / (self.done + self.dead):.0%}")
        table.caption = f"{self.done} done, {self.dead} dead, in {elapsed_s:.1f} s"
        Console().print(table)
