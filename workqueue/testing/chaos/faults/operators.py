"""What operators do meanwhile, by the commands that they have: tasks are called off, a queue is paused."""

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.house import House
from workqueue.testing.chaos.load import ALWAYS, Task, make_task, nap
from workqueue.testing.chaos.plan import Fault
from workqueue.testing.chaos.producing import Producer

CALLED_OFF = 6  # tasks at a time
TRIES = 20
AGAIN_S = 1.0


class Operators:
    """See `Messages`."""

    def __init__(
        self, house: House, producers: Mapping[str, Producer], book: Book, good: Mapping[str, Task], rng: random.Random
    ) -> None:
        self._house, self._producers, self._book, self._good, self._rng = house, producers, book, good, rng
        self._pausing: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.by_kind = {"tasks called off": self._call_off, "queue paused": self._pause}

    async def _call_off(self, fault: Fault) -> bool:
        """Tasks that were sent just now, or are about to be: some wait, and some run or wait for their next try."""
        tasks = [self._task(fault) for _ in range(CALLED_OFF)]
        self._book.called_off.update(dict.fromkeys(task.id for task in tasks))
        self._producers[fault.operation].more.extend(tasks)
        await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        told = await self._ask("cancel", *(task.id for task in tasks))
        for one in told or ():
            if one["state"] == "cancelled":
                self._book.called_off[one["id"]] = time.time()
        return told is not None

    def _task(self, fault: Fault) -> Task:
        settings = self._house.settings
        if not settings.own:
            return make_task(self._rng, json.loads(self._good[fault.operation].line)["payload"], fault.operation)
        payload = nap(self._rng.uniform(0.0, 1.0), self._rng.choice([0, 1, ALWAYS]), settings.nap)
        return make_task(self._rng, payload, fault.operation)

    async def _pause(self, fault: Fault) -> bool:
        queue = self._house.at[fault.operation].queue
        async with self._pausing[queue], self._book.unusable():  # the word of one that resumes is not the other's
            paused = await self._ask("pause", queue)
            since = time.time()
            await asyncio.sleep(fault.seconds)
            till = time.time()
            while await self._ask("resume", queue) is None:
                pass
        if paused is not None and not paused["others"] and paused["consumers"] == 0:
            self._book.paused.append((fault.operation, (since, till)))
        return paused is not None

    async def _ask(self, *arguments: str) -> Any:
        """What the command answers, which goes by the same network as all do; None: it never could."""
        for _ in range(TRIES):
            done = await self._house.site.workqueue(*arguments, "--why", "chaos", "-o", "json")
            if done.code in (0, 1):
                return json.loads(done.out)
            await asyncio.sleep(AGAIN_S)
        return None
