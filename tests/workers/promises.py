"""A worker whose handler does what the text of a Digest says, and every other task as the tests' worker does."""

import os
import sys

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Digest, DigestResult, NapResult, OddResult, ParcelResult, Task
from tests.workers import main
from workqueue.tasks.context import TaskContext
from workqueue.verdicts import GiveUp, RetryAfter
from workqueue.worker import run_worker


async def handle(task: Task, context: TaskContext[None]) -> NapResult | DigestResult | ParcelResult | OddResult:
    match task.payload:
        case Digest(text="give up"):
            raise GiveUp("it is of no use")
        case Digest(text="later") if context.attempt == 1:
            raise RetryAfter(0.5, "it is busy")  # later than the longest of the contract's delays
        case Digest(text="broken") if is_broken():
            raise RuntimeError("it is broken")
    return await main.handle(task, context)


def is_broken() -> bool:
    return os.path.exists(os.environ["BROKEN"])


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}, about=__doc__))
