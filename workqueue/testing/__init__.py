"""What tests stand on: a broker and a ledger of their own, and the project's scripts as real processes.

The fixtures are a pytest plugin: `-p workqueue.testing.fixtures` in the options. Needs the extras generate and dev.
"""

from workqueue.testing.processes import WAIT_S, Note, Produced, Worker, until
from workqueue.testing.project import by_key, copy_project, hurried
from workqueue.testing.scripts import MAIN, Operation, Scripts
from workqueue.testing.site import RECORDER, Site
from workqueue.testing.vhosts import vhost

__all__ = [
    "MAIN", "RECORDER", "WAIT_S", "Note", "Operation", "Produced", "Scripts", "Site", "Worker", "by_key",
    "copy_project", "hurried", "until", "vhost",
]  # fmt: skip
