"""A producer: sends tasks to the queue, and says of each whether the broker has it.

A JSON line is a payload, such as {"kind": "simulate", "seconds": 0.1}, or a whole task with its id. Sending the same
id again is safe, it is the same task: that is how a run that was interrupted is resumed.
"""

if __name__ == "__main__":
    from workqueue.signals import signals

    signals.listen()  # first: all other imports take half a second, in which SIGTERM would be a crash

import argparse
import sys
from collections.abc import Iterator

from generated.producer import Application
from generated.producer.messages.json import Checksum, Simulate, Task
from workqueue.errors import InputInvalid
from workqueue.producer import run_producer
from workqueue.settings import Settings
from workqueue.source import envelope, files, lines


def tasks(given: argparse.Namespace, settings: Settings) -> Iterator[Task | InputInvalid]:
    """What the flags ask for. Made one by one as they are sent, so a million of them take no memory."""
    for path in files(given.paths, settings.ledger_file):
        yield (
            path
            if isinstance(path, InputInvalid)
            else Task(**envelope(), payload=Checksum(kind="checksum", path=str(path)))
        )
    if given.jsonl:
        yield from lines(given.jsonl, Task)
    for _ in range(given.simulate):
        yield Task(**envelope(), payload=Simulate(kind="simulate", seconds=given.seconds))


if __name__ == "__main__":
    sys.exit(run_producer(Application, lambda app: app.producer.submit_task, tasks, __doc__))
