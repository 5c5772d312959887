"""A worker: takes tasks from the queue and does them, one at a time.

Start as many as you like, anywhere, at any time; stop them with Ctrl-C or SIGTERM. No task is lost.
"""

if __name__ == "__main__":
    from workqueue.process.signals import signals

    signals.listen()  # first: all other imports take half a second, in which SIGTERM would be a crash

import asyncio
import errno
import hashlib
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_never

from generated.worker import Application
from generated.worker.handlers import run_worker
from generated.worker.messages.json import Checksum, ChecksumResult, Simulate, SimulateResult, Task
from workqueue import GiveUp, Settings, TaskContext, in_thread
from workqueue.errors import SettingInvalid

ROOT = "WORKQUEUE_ROOT"


@asynccontextmanager
async def resources(settings: Settings) -> AsyncIterator[Path]:
    """What the handlers get as `context.resources`. Here it could be a pool of connections; it is just a folder."""
    yield root()


def root() -> Path:
    """The folder that checksum tasks may read below: the current one by default. Raises SettingInvalid."""
    folder = os.environ.get(ROOT) or "."
    if not os.path.isdir(folder):
        raise SettingInvalid(ROOT, folder, "name a folder that exists")
    return Path(folder).resolve()


async def handle(task: Task, context: TaskContext[Path]) -> ChecksumResult | SimulateResult:
    """Do one task. What is returned is the task's result; what is raised fails the attempt, and it is tried again."""
    match task.payload:
        case Checksum() as job:
            return await in_thread(checksum, job, context.resources, context.settings)
        case Simulate() as job:
            await asyncio.sleep(job.seconds)
            if context.attempt <= job.failures:
                raise RuntimeError(f"told to fail {job.failures} times")
            return SimulateResult(kind="simulate", attempt=context.attempt)
        case _:
            assert_never(task.payload)


def checksum(job: Checksum, root: Path, settings: Settings) -> ChecksumResult:
    """Hash a regular file below `root`; never one of the ledger's: closing that would drop this process's locks."""
    try:
        path = (root / job.path).resolve()
        if not path.is_relative_to(root):
            raise GiveUp(f"{job.path} leads out of {root}, the folder that {ROOT} allows")
        if settings.is_ledger(str(path)):
            raise GiveUp(f"{job.path} belongs to the ledger")
        if not stat.S_ISREG(path.stat().st_mode):
            raise GiveUp(f"{job.path} is not a regular file")
        with open(open_below(root, path), "rb") as file:
            digest = hashlib.file_digest(file, job.algorithm)
            size = file.tell()
    except OSError as error:
        if error.errno == errno.EIO:
            raise  # the disk's fault, which may pass
        raise GiveUp(f"{job.path}: {error.strerror}") from error
    except RuntimeError as error:  # pathlib's word for a loop of links
        raise GiveUp(f"{job.path}: {error}") from error
    return ChecksumResult(kind="checksum", path=job.path, algorithm=job.algorithm, digest=digest.hexdigest(), size=size)


def open_below(root: Path, path: Path) -> int:
    """A descriptor of a resolved path. A link, or a pipe, that was put there since it was resolved is refused."""
    opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in path.relative_to(root).parts:
        try:
            inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened)
        finally:
            os.close(opened)
        opened = inner
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise GiveUp(f"{path} is not a regular file")
    return opened


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"process_task": handle}, about=__doc__, lifespan=resources, variables=[ROOT]))
