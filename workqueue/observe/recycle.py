"""Ends a worker that has done enough, or grown too large, for its supervisor to start it anew."""

import logging
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from workqueue.tasks.events import Event, Listener, Told, is_run

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the memory: each is a system call
MIB = 2**20


class Recycle:
    """A listener in front of another one. Once handlers have ended `max_tasks` times, or the process holds `max_mib` of
    memory after one of them, `end` is called, once: the worker drains, and exits with 0."""

    def __init__(
        self, tell: Listener, end: Callable[[], object], *, max_tasks: int | None, max_mib: int | None
    ) -> None:
        self._tell, self._end, self._max_tasks, self._max_mib = tell, end, max_tasks, max_mib
        self._ended, self._over, self._looked_s = 0, False, 0.0

    def __call__(self, told: Told) -> None:
        self._tell(told)
        if isinstance(told, Event) and is_run(told.what) and not self._over:
            self._ended += 1
            if why := self._reason():
                self._over = True
                log.info("%s  has enough: %s", told.worker, why)
                self._end()

    def _reason(self) -> str | None:
        if self._max_tasks is not None and self._ended >= self._max_tasks:
            return f"{self._ended} runs of a handler, of --max-tasks {self._max_tasks}"
        if self._max_mib is None or time.monotonic() - self._looked_s < LOOK_S:
            return None
        self._looked_s = time.monotonic()
        held = resident_mib()
        return f"{held} MiB of memory, of --max-memory {self._max_mib}" if held >= self._max_mib else None


def resident_mib() -> int:
    """What the process holds in memory now; elsewhere than on Linux the most that it ever held."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // MIB
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // MIB if sys.platform == "darwin" else most // 1024
