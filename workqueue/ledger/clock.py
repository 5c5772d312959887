"""A clock that is never stepped, the same for all processes since the machine was booted."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

steady_s: Callable[[], float] = time.monotonic
if sys.platform == "linux":
    # It goes on while the machine sleeps, as the wall clock does. (A partial is quicker than a function.)
    steady_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME)

BOOT_LENGTH = 6  # of what names a boot: it only has to differ from the boots before it


def boot() -> str:
    """Names the boot that `steady_s` counts from; always the same where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:BOOT_LENGTH]
    except OSError:
        return "0" * BOOT_LENGTH


JUMP_S = 86_400.0  # a wall clock that is further ahead than has passed is doubted
SHORTEST_JUMP_S = 60.0
DOUBT_S = 3600.0  # for so long: a clock that is wrong when a machine starts is soon set right


@dataclass(frozen=True)
class LastLook:
    """The wall clock when it was last trusted, for those who delete what is old by it. `doubted_at_s` is when the doubt
    began that lasts, by the steady clock of `boot`."""

    wall_s: float
    boot: str
    steady_s: float
    doubted_at_s: float | None = None

    def next(self, wall_s: float, boot: str, steady_s: float, jump_s: float) -> Self:
        """What is known now. The clock may be trusted if nothing is doubted in it."""
        same = boot == self.boot
        passed_s = steady_s - self.steady_s if same else steady_s  # and the time between the two boots, not known
        since_s = self.doubted_at_s if same and self.doubted_at_s is not None else steady_s
        if wall_s - self.wall_s - passed_s <= jump_s or steady_s - since_s > DOUBT_S:
            return type(self)(wall_s, boot, steady_s)
        if same:
            return type(self)(self.wall_s, boot, self.steady_s, since_s)
        return type(self)(self.wall_s + steady_s, boot, steady_s, since_s)

    def __str__(self) -> str:
        return f"{self.wall_s!r} {self.boot} {self.steady_s!r} {'' if self.doubted_at_s is None else self.doubted_at_s}"

    @classmethod
    def read(cls, text: str) -> Self:
        wall_s, boot, steady_s, doubted_at_s = text.split(" ")
        return cls(float(wall_s), boot, float(steady_s), float(doubted_at_s) if doubted_at_s else None)
