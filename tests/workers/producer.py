"""The producer of the tests' own contract: sends what it is given as lines of JSON."""

import argparse
import sys
from collections.abc import Iterator

from tests.generated.producer import Application
from tests.generated.producer.messages.json import Task
from workqueue.errors import InputInvalid
from workqueue.producer import run_producer
from workqueue.settings import Settings
from workqueue.source import lines


def tasks(given: argparse.Namespace, settings: Settings) -> Iterator[Task | InputInvalid]:
    return lines(given.jsonl, Task)


if __name__ == "__main__":
    sys.exit(run_producer(Application, lambda app: app.producer.send_errand, tasks, __doc__))
