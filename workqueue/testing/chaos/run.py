"""One run of chaos: tasks on every operation of a contract at once, what happens to them, and what became of them."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

from workqueue.testing.account import Account, account
from workqueue.testing.chaos import faults
from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.house import SETTLE_S, House
from workqueue.testing.chaos.load import make_tasks
from workqueue.testing.chaos.payloads import operations_of
from workqueue.testing.chaos.plan import Fault, plan, usable
from workqueue.testing.chaos.producing import Producer
from workqueue.testing.chaos.settings import RunSettings
from workqueue.testing.chaos.workers import WORKERS, Workers
from workqueue.testing.evidence import Evidence, trail

PATIENCE_S = 60.0  # without anything ending, and beyond the longest delay, before the rest is called lost


class Chaos:
    """`run` gives the account; nothing is left running after it, however it ends. `operations` are those
    that there are tasks for; `hits` and `misses` how often each kind of fault had an effect, and had none."""

    evidence: Evidence

    def __init__(self, settings: RunSettings, say: Callable[[str], None] = print) -> None:
        """Raises ContractInvalid if nothing can be sent."""
        self._settings, self._say = settings, say
        operations = operations_of(settings)
        self._tasks = make_tasks(settings, [*operations])
        good = {task.operation: task for task in self._tasks}
        operations = {name: operation for name, operation in operations.items() if name in good}
        kinds = usable(settings.kinds, own=bool(settings.odd_ways), ledger=settings.ledger)
        self.operations = tuple(operations)
        self.plan = plan(settings.seed, settings.seconds, kinds, self.operations, WORKERS)
        self._book = Book(operations, settings.own)
        self._house = House(settings, operations)
        self._workers = Workers(self._house)
        self._producers = {name: Producer(one, self._house, self._book) for name, one in operations.items()}
        self._faults = faults.by_kind(self._house, self._workers, self._producers, self._book, good, settings.seed)
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()

    async def run(self) -> Account:
        for fault in self.plan:
            self._say(str(fault))
        async with AsyncExitStack() as closing:
            await self._house.open(closing)
            closing.callback(self._end_all)
            await self._workers.start()
            await asyncio.sleep(SETTLE_S)
            await self._feed()
            await asyncio.gather(*(producer.finish() for producer in self._producers.values()))
            stuck = await self._finish()
            await self._workers.finish()
            left_over = await self._house.depth()
            await self._house.take_letters(self._book)
            notes, lives = self._house.site.record(), self._workers.lives
            self.evidence = self._book.evidence(notes, lives, left_over=left_over, stuck=stuck)
        self.account = account(self.evidence)
        self.account.crashed += self._book.problems
        return self.account

    def describe(self) -> str:
        """The account as text, with the faults by kind."""
        lines = [f"  {kind:<33} {self.hits[kind]} times" for kind in self._faults if self.hits[kind]]
        lines += [
            f"  {kind:<33} {self.misses[kind]} times without effect" for kind in self._faults if self.misses[kind]
        ]
        return "\n".join([self._house.versions, *lines, str(self.account)])

    def keep_evidence(self) -> None:
        """Write what is known of each offending id to the folder, and leave there what helps to understand it."""
        folder = self._settings.folder
        (folder / "account").write_text(self.describe() + "\n")
        (folder / "offending").write_text("\n".join(trail(self.account.offending, self.evidence)) + "\n")
        shutil.rmtree(folder / "node" / "data", ignore_errors=True)

    def _end_all(self) -> None:
        self._workers.end()
        for producer in self._producers.values():
            producer.end()

    async def _feed(self) -> None:
        """Give the producers the tasks, evenly over the time, and have the faults happen meanwhile."""
        began, over = time.monotonic(), asyncio.Event()
        due = [
            (began + index * self._settings.seconds / len(self._tasks), task) for index, task in enumerate(self._tasks)
        ]
        async with asyncio.TaskGroup() as feeding:
            for name, producer in self._producers.items():
                own = [(at, task) for at, task in due if task.operation == name]
                feeding.create_task(producer.feed(own, over))
            async with asyncio.TaskGroup() as happening:
                for fault in self.plan:
                    happening.create_task(self._carry_out(fault, began))
            over.set()

    async def _carry_out(self, fault: Fault, began: float) -> None:
        await asyncio.sleep(began + fault.at_s - time.monotonic())
        hit = await self._faults[fault.kind](fault)
        (self.hits if hit else self.misses)[fault.kind] += 1
        what = "over" if hit else "had no effect"
        elapsed_s, given = time.monotonic() - began, len(self._book.given)
        self._say(f"{elapsed_s:6.1f} s  {fault.kind} {what}; {given} tasks given")

    async def _finish(self) -> bool:
        """Wait until everything that was sent is done or dead. True: nothing moved any more."""
        house, book = self._house, self._book
        last: tuple[int, ...] = ()
        moved, quiet = time.monotonic(), 0
        while time.monotonic() - moved < PATIENCE_S + house.longest_delay_s:
            await house.take_letters(book)
            notes, depth = house.site.record(), await house.depth()
            quiet = quiet + 1 if not book.missing(notes) and not depth else 0
            if quiet > 2 and not await house.in_hand():
                return False
            if last != (now := (len(notes), len(book.letters), depth)):
                last, moved = now, time.monotonic()
            await asyncio.sleep(0.3)
        return True
