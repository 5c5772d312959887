"""Faults of processes: workers and producers that are killed, frozen, told to end."""

import asyncio
import signal
import time
from collections.abc import Mapping

from workqueue.testing.chaos.plan import Fault
from workqueue.testing.chaos.producing import Producer
from workqueue.testing.chaos.workers import Workers


class Processes:
    def __init__(self, workers: Workers, producers: Mapping[str, Producer]) -> None:
        self._workers, self._producers = workers, producers
        self.by_kind = {
            "worker killed": self._kill_worker,
            "worker frozen": self._freeze_worker,
            "workers restarted in turn": self._roll_workers,
            "SIGTERM twice": self._term_twice,
            "SIGHUP": self._hang_up,
            "log stalled": self._stall_log,
            "producer killed": self._kill_producer,
        }

    async def _kill_worker(self, fault: Fault) -> bool:
        life, worker = self._workers.running[fault.worker]
        if life.ended is not None or worker.process.poll() is not None:
            return False
        worker.process.kill()
        life.killed = time.time()
        return True

    async def _freeze_worker(self, fault: Fault) -> bool:
        life, worker = self._workers.running[fault.worker]
        since = time.time()
        worker.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            worker.signal(signal.SIGCONT)
            life.frozen.append((since, time.time()))
        return life.ended is None

    async def _roll_workers(self, fault: Fault) -> bool:
        for number in sorted(self._workers.running):
            await self._workers.term(number)
        return True

    async def _term_twice(self, fault: Fault) -> bool:
        return await self._workers.term(fault.worker, signal.SIGTERM, signal.SIGTERM)

    async def _hang_up(self, fault: Fault) -> bool:
        return await self._workers.term(fault.worker, signal.SIGHUP)

    async def _stall_log(self, fault: Fault) -> bool:
        life, worker = self._workers.running[fault.worker]
        worker.read.clear()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            worker.read.set()
        return life.ended is None

    async def _kill_producer(self, fault: Fault) -> bool:
        return await self._producers[fault.operation].kill()
