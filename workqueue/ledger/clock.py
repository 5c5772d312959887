"""A clock that is never stepped, the same for all processes since the machine was booted."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
