"""The workers of a run: some numbers, each of which has a worker all the time."""

import asyncio
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from workqueue.testing.chaos.house import House
from workqueue.testing.evidence import Life
from workqueue.testing.processes import Worker, until

WORKERS = 3
START_S = 120.0
STOP_S = 180.0  # of a process that starts, or ends, on a machine with far too much to do
SIGNALS_APART_S = 0.001  # at the very same moment they would be one
STARVED_LOOK_S = 0.5
STARVED_SHARE = 0.5  # of that time on a processor's queue: the machine has too much to do, not the worker too little


class Workers:
    """`running` is what each number has now; `lives` are all that there were."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._rng = random.Random(f"workers {house.settings.seed}")
        self.lives: list[Life] = []
        self.running: dict[int, tuple[Life, Worker]] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Start them, and wait until all are ready. The first begins alone: where there are two versions it is of the
        older, and an upgrade finds the queues as that has declared them."""
        self._keepers = [asyncio.create_task(self._keep(1))]
        await until(self._ready, "the first worker is ready", within_s=START_S)
        self._keepers += [asyncio.create_task(self._keep(number + 1)) for number in range(1, WORKERS)]
        await until(lambda: len(self._ready()) == WORKERS, "all workers are ready", within_s=START_S)

    async def _keep(self, number: int) -> None:
        """Have a worker of this number all the time: when one has ended, the next one starts."""
        sites = self._house.sites
        while not self._closing:
            at_once = self._rng.randint(1, self._house.settings.concurrency)
            flags = ("--concurrency", str(at_once)) if at_once > 1 else ()
            site = sites[number % len(sites)]
            worker = await site.worker(f"worker{number}", *flags, ready=False, WORKQUEUE_LOG_FORMAT="json")
            life = Life(worker.name, worker.process.pid, worker.log, began=time.time(), concurrency=at_once)
            self.lives.append(life)
            self.running[number] = life, worker
            looked, queued = life.began, 0.0
            while worker.process.poll() is None:
                if life.ready is None and worker.is_ready():
                    life.ready = time.time()
                await asyncio.sleep(0.02)
                if (now := time.time()) - looked > STARVED_LOOK_S:
                    before_s, queued = queued, queued_s(life.pid, queued)
                    if queued - before_s > STARVED_SHARE * (now - looked):
                        life.frozen.append((looked, now))
                    looked = now
            life.ended, life.code = time.time(), worker.process.returncode
            if life.code == 3:  # no broker to start with
                await asyncio.sleep(0.5)

    def _ready(self) -> list[Life]:
        return [life for life, _ in self.running.values() if life.ready is not None and life.ended is None]

    async def term(self, number: int, *signals: signal.Signals) -> bool:
        """End a worker, by SIGTERM if nothing else is said. One that is starting has no handler for it yet. False: it
        was ending already."""
        life, worker = self.running[number]
        await until(lambda: life.ready or life.ended, f"{life.name} is ready", within_s=STOP_S)
        if life.ended is not None or life.killed is not None or life.termed is not None:
            return False
        life.termed = time.time()
        for one in signals or (signal.SIGTERM,):
            worker.signal(one)
            time.sleep(SIGNALS_APART_S)  # noqa: ASYNC251  # less than the event loop can be trusted with
        await until(lambda: life.ended, f"{life.name} ends after a signal, see {life.log}", within_s=STOP_S)
        return True

    async def finish(self) -> None:
        """End all of them, and start no more."""
        self._closing = True
        await asyncio.gather(*(self.term(number) for number in self.running))
        await asyncio.gather(*self._keepers)

    def end(self) -> None:
        """Start no more, whatever they do."""
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()


def queued_s(pid: int, otherwise_s: float) -> float:
    """How long a process's main thread has been ready to run, and did not, for want of a processor."""
    with suppress(OSError, IndexError):  # it has just ended; or it is not Linux
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return otherwise_s
