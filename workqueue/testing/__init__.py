"""What tests stand on: a worker and a client on a broker in memory; or a broker and a ledger of their own, and the
project's scripts as real processes.

`MemoryQueue` and `run_task` need nothing but the package. The others are for the fixtures, a pytest plugin:
`-p workqueue.testing.fixtures` in the options. They need the extras generate and dev. Each is loaded when it is first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workqueue.testing.memory import MemoryQueue, run_task
    from workqueue.testing.processes import WAIT_S, Note, Produced, Worker, until
    from workqueue.testing.project import by_key, copy_project, hurried
    from workqueue.testing.scripts import MAIN, Operation, Scripts
    from workqueue.testing.site import RECORDER, Site
    from workqueue.testing.vhosts import vhost

HOMES = {
    "memory": ("MemoryQueue", "run_task"),
    "processes": ("WAIT_S", "Note", "Produced", "Worker", "until"),
    "project": ("by_key", "copy_project", "hurried"),
    "scripts": ("MAIN", "Operation", "Scripts"),
    "site": ("RECORDER", "Site"),
    "vhosts": ("vhost",),
}

__all__ = [
    "MAIN", "RECORDER", "WAIT_S", "MemoryQueue", "Note", "Operation", "Produced", "Scripts", "Site", "Worker",
    "by_key", "copy_project", "hurried", "run_task", "until", "vhost",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
