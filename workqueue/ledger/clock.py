"""A clock that is never stepped, the same for all processes since the machine was booted."""

import sys
import time
from pathlib import Path

if sys.platform == "linux":
    # It goes on while the machine sleeps, as the wall clock does.
    def steady_s() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    steady_s = time.monotonic


def boot() -> str:
    """Names the boot that `steady_s` counts from; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""
