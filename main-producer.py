"""A producer: sends tasks to the queue, and says of each whether the broker has it.

A JSON line is a payload, such as {"kind": "simulate", "seconds": 0.1}, or a whole task with its id. Sending the same
id again is safe, it is the same task: that is how a run that was interrupted is resumed.
"""

if __name__ == "__main__":
    from workqueue.process.signals import signals

    signals.listen()  # first: all other imports take half a second, in which SIGTERM would be a crash

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from generated.producer import Application
from generated.producer.messages.json import Checksum, Simulate, Task
from workqueue import Settings, envelope, run_producer
from workqueue.errors import InputInvalid, UsageInvalid
from workqueue.lifecycle import count, seconds
from workqueue.settings import DEFAULT_LEDGER


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checksum task for each regular file at or below it")
    parser.add_argument("--simulate", type=count, default=0, metavar="N", help="N simulated tasks ...")
    parser.add_argument("--seconds", type=seconds, default=0.0, metavar="S", help="... of S seconds each (default 0)")


def tasks(given: argparse.Namespace, settings: Settings) -> Iterable[Task | InputInvalid] | None:
    """What the flags ask for; None for the lines of --jsonl. Made one by one, so a million of them take no memory."""
    if sum(map(bool, (given.paths, given.jsonl, given.simulate))) != 1:
        raise UsageInvalid("name what to send: PATH..., or --jsonl FILE, or --simulate N")
    if given.jsonl:
        return None
    if given.paths:
        return checksums(files(given.paths, settings))
    return (Task(**envelope(), payload=Simulate(kind="simulate", seconds=given.seconds)) for _ in range(given.simulate))


def checksums(found: Iterable[Path | InputInvalid]) -> Iterator[Task | InputInvalid]:
    for path in found:
        if isinstance(path, InputInvalid):
            yield path
        else:
            yield Task(**envelope(), payload=Checksum(kind="checksum", path=str(path)))


def files(paths: Iterable[str], settings: Settings) -> Iterator[Path | InputInvalid]:
    """Every regular file that is one of `paths` or below one, resolved; links below a path are not followed.

    Left out below a path are the files of the ledger, and of any project's default one: workers must not open them.
    """
    for name in paths:
        problems: list[InputInvalid] = []

        def note(error: OSError, found: list[InputInvalid] = problems) -> None:
            found.append(InputInvalid(str(error.filename), f"can't be read ({error.strerror})"))

        try:
            path = Path(name).resolve()
            path.stat()
        except FileNotFoundError:
            yield InputInvalid(name, "there is no such file or folder")
            continue
        except (OSError, RuntimeError) as error:  # too long, a loop of links, a folder that may not be entered
            yield InputInvalid(name, f"can't be read ({getattr(error, 'strerror', None) or error})")
            continue
        if settings.is_ledger(str(path)):
            yield InputInvalid(name, "belongs to the ledger")
        elif path.is_file():
            yield (
                _unicode(path) if os.access(path, os.R_OK) else InputInvalid(name, "can't be read (permission denied)")
            )
        elif not path.is_dir():
            yield InputInvalid(name, "is not a regular file")
        else:
            for folder, folders, names in os.walk(path, onerror=note):
                ours = (DEFAULT_LEDGER.parts[0], *(name for name in folders if settings.is_ledger(f"{folder}/{name}")))
                folders[:] = sorted(name for name in folders if name not in ours)
                here = (Path(folder, name) for name in sorted(names) if not settings.is_ledger(f"{folder}/{name}"))
                yield from (_unicode(file) for file in here if file.is_file() and not file.is_symlink())
            yield from problems


def _unicode(file: Path) -> Path | InputInvalid:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return InputInvalid(ascii(str(file)), "has a name that is not UTF-8, which JSON can't say")
    return file


if __name__ == "__main__":
    theirs = ["WORKQUEUE_ROOT"]  # the workers', which may well be set here too
    sys.exit(run_producer(Application, about=__doc__, flags=flags, tasks=tasks, variables=theirs))
