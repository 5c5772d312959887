"""What became of the tasks that were sent: the progress bar, the table per worker, the results file."""

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from workqueue.client.sending import Outgoing
from workqueue.client.waiting import LOOK_AT, Turns
from workqueue.errors import InputInvalid, NotSent, WorkQueueError, escaped
from workqueue.ledger import Ledger, LedgerBusy, Outcome
from workqueue.tasks.policy import CONFLICT

POLL_S = 0.2
HINT_S = 10.0  # without any progress, until it says what may be the matter; then after twice as long, and so on
NAMED = 5  # ids of tasks that did not finish, of each kind


class Lines(Protocol):
    """Where lines go: a file, say."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class Follower(AbstractContextManager["Follower"]):
    """Follows tasks through the ledger: one that `noting` saw is followed until it is done or dead, or not sent.

    `matter` says in words why none may finish; it is asked when none has for a while.
    """

    def __init__(
        self, ledger: Ledger, results: Lines | None, matter: Callable[[], Awaitable[str]] | None = None
    ) -> None:
        self._ledger, self._results, self._matter = ledger, results, matter
        self._pending: dict[UUID, str] = {}  # with their kinds, in the order in which they were noted
        self._digests: dict[UUID, bytes] = {}  # of the payloads that were sent
        self._all_noted, self._deadline_s = False, float("inf")
        self._moved_s, self._hint_s = time.monotonic(), HINT_S
        self._workers: dict[str, list[int]] = {}
        self._began = time.monotonic()
        self._console = Console(stderr=True)
        columns = TextColumn("finished"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        # Not in a file or a pipe: a bar that can't move leaves an empty line there.
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._bar = self._progress.add_task("", total=0)
        self.done = self.dead = self.cancelled = 0

    @property
    def _finished(self) -> int:
        return self.done + self.dead + self.cancelled

    @property
    def unfinished(self) -> int:
        return len(self._pending)

    def __enter__(self) -> "Follower":
        self._progress.start()
        self._watching = asyncio.ensure_future(self._watch())
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._watching.cancel() and not self._watching.cancelled():
            self._watching.exception()  # `finish` raised it, unless sending failed before that
        self._progress.stop()

    def noting(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """The same tasks; each is followed from the moment it is read."""
        for task in tasks:
            if not isinstance(task, InputInvalid):
                self._pending[task.id] = "task"
            yield task

    def sending(self, outgoing: Outgoing) -> None:
        """Note what is sent under a task's id, to tell its outcome from that of another payload under the same id."""
        self._pending[outgoing.id] = sys.intern(outgoing.kind)
        self._digests[outgoing.id] = outgoing.digest

    def problem(self, error: WorkQueueError) -> None:
        """Print it as a line beside the progress bar, and follow a task that was not sent no longer."""
        if isinstance(error, NotSent):
            self._pending.pop(UUID(error.message_id), None)
            self._digests.pop(UUID(error.message_id), None)
        self._say(str(error))

    async def finish(self, within_s: float | None = None) -> None:
        """Return when every task is finished, or after this time; none is noted any more."""
        if within_s is not None:
            self._deadline_s = time.monotonic() + within_s
        self._all_noted = True
        await self._watching
        for kind, ids in sorted(self._left().items()):
            named = ", ".join(map(str, ids[:NAMED])) + f", and {len(ids) - NAMED} more" * (len(ids) > NAMED)
            self._say(f"{_tasks(len(ids))} of kind {kind} did not finish within {within_s:g} s: {named}")

    async def _watch(self) -> None:
        turns = Turns(LOOK_AT)
        while True:
            now_s, before, busy = time.monotonic(), self._finished, ""
            turn = turns.next(self._pending)
            # Before it is sent, what the ledger knows of an id may be of another payload.
            sent = [task_id for task_id in turn if task_id in self._digests]
            try:
                for outcome in await self._ledger.outcomes(sent):
                    if outcome.id in self._pending:
                        del self._pending[outcome.id]
                        self._record(self._own(outcome))
            except LedgerBusy as error:  # it is asked again
                busy = f"the ledger does not answer: {error}"
            finished = self._finished
            if finished > before or not turn:
                self._moved_s, self._hint_s = now_s, HINT_S
                if self._results is not None:
                    self._results.flush()
            self._progress.update(self._bar, completed=finished, total=finished + len(self._pending))
            if self._all_noted and (not self._pending or now_s >= self._deadline_s):
                return
            if now_s - self._moved_s >= self._hint_s:
                await self._hint(now_s - self._moved_s, busy)
            await asyncio.sleep(max(0.0, min(POLL_S, self._deadline_s - now_s)))

    async def _hint(self, waited_s: float, busy: str) -> None:
        self._hint_s = 2 * waited_s
        why = busy or (await self._matter() if self._matter is not None else "")
        self._say(f"waits for {_tasks(len(self._pending))}, and none has finished for {waited_s:.0f} s: {why}")

    def _own(self, outcome: Outcome) -> Outcome:
        """What became of the payload that was sent here."""
        if outcome.digest in (None, b"", self._digests.pop(outcome.id)):
            return outcome
        self._say(f"task {outcome.id}: {CONFLICT.error}")
        error = f"{CONFLICT.reason}: {CONFLICT.error}"
        return replace(outcome, state="dead", attempts=0, result=None, error=error)

    def _left(self) -> dict[str, list[UUID]]:
        left: dict[str, list[UUID]] = defaultdict(list)
        for task_id, kind in self._pending.items():
            left[kind].append(task_id)
        return left

    def _say(self, text: str) -> None:
        line = escaped(f"{os.path.basename(sys.argv[0])}: {text}")
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _record(self, outcome: Outcome) -> None:
        if outcome.state == "cancelled":  # by nobody's work
            self.cancelled += 1
        else:
            done = outcome.state == "done"
            self.done, self.dead = self.done + done, self.dead + (not done)
            counts = self._workers.setdefault(outcome.worker, [0, 0])
            counts[0 if done else 1] += 1
        if self._results is not None:
            said, _, _ = (outcome.error or "").partition("\n")  # below it is the traceback
            line = {
                "id": str(outcome.id), "state": outcome.state, "worker": outcome.worker, "attempts": outcome.attempts,
                "result": json.loads(outcome.result) if outcome.result else None, "error": said or None,
            }  # fmt: skip
            self._results.write(json.dumps(line, ensure_ascii=False) + "\n")

    def print_table(self) -> None:
        """Who did what, on standard output."""
        elapsed_s = time.monotonic() - self._began
        table = Table("worker", "done", "dead", "share")
        for column in table.columns[1:]:
            column.justify = "right"
        for worker, (done, dead) in sorted(self._workers.items()):
            table.add_row(Text(escaped(worker)), str(done), str(dead), f"{(done + dead) / (self.done + self.dead):.0%}")
        more = f", {self.cancelled} cancelled" * bool(self.cancelled)
        more += f", {self.unfinished} unfinished" * bool(self.unfinished)
        table.caption = f"{self.done} done, {self.dead} dead{more}, in {elapsed_s:.1f} s"
        console = Console()
        with console.capture() as printed:  # by itself it ends the process when the reader of its output has gone
            console.print(table)
        sys.stdout.write(printed.get())


def _tasks(count: int) -> str:
    return f"{count} task" + "s" * (count != 1)
