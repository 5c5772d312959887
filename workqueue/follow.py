"""What became of the tasks that were sent: the progress bar, the table per worker, the results file."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import islice
from typing import Any, TextIO
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from workqueue.errors import InputInvalid, NotSent, WorkQueueError
from workqueue.ledger import Ledger, LedgerBusy, Outcome

POLL_S = 0.2
LOOK_AT = 2000  # tasks: of the oldest, and of the others; some milliseconds in all


class Follower(AbstractContextManager["Follower"]):
    """Follows tasks through the ledger: one that `noting` saw is followed until it is done or dead, or not sent."""

    def __init__(self, ledger: Ledger, results: TextIO | None) -> None:
        self._ledger, self._results = ledger, results
        self._pending: dict[UUID, None] = {}  # in the order in which they were noted
        self._all_noted = False
        self._workers: dict[str, list[int]] = {}
        self._began = time.monotonic()
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
                self._pending[task.id] = None
            yield task

    def problem(self, error: WorkQueueError) -> None:
        """Print it as a line beside the progress bar, and follow a task that was not sent no longer."""
        if isinstance(error, NotSent):
            self._pending.pop(UUID(error.message_id), None)
        name = os.path.basename(sys.argv[0])
        self._console.print(f"{name}: {error}", markup=False, highlight=False, soft_wrap=True)

    async def finish(self) -> None:
        """Return when every task is finished; none is noted any more."""
        self._all_noted = True
        await self._watching

    async def _watch(self) -> None:
        start = LOOK_AT
        while True:
            # The oldest are the next to finish, most often; the others have their turn, one stretch after the other.
            # Each list is made in one go, by no step of Python: tasks are noted in another thread.
            oldest = list(islice(self._pending, LOOK_AT))
            others = list(islice(self._pending, start, start + LOOK_AT))
            with suppress(LedgerBusy):  # it is asked again
                for outcome in await self._ledger.outcomes(oldest + others):
                    if outcome.id in self._pending:
                        del self._pending[outcome.id]
                        self._record(outcome)
                start = start + LOOK_AT if others else LOOK_AT
            finished = self.done + self.dead
            self._progress.update(self._bar, completed=finished, total=finished + len(self._pending))
            if self._all_noted and not self._pending:
                return
            await asyncio.sleep(POLL_S)

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
