"""What a command writes: what was asked for to standard output, whole or not without a word; talk to standard error."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

import typer

from workqueue.errors import OutputFailed, WorkQueueError, escaped


class Form(StrEnum):
    """How records are written to standard output."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[Form, typer.Option("-o", "--output", help="a table for people, or JSON for programs")]


class Unwritten(OutputFailed):
    """Standard output can't be written. No usage is wrong: what was asked for may have happened."""

    exit_code = 1

    def __init__(self, cause: str, text: str = "") -> None:
        super().__init__("standard output", cause)
        self.text = text


class ReaderGone(WorkQueueError):
    """Whoever reads standard output has read enough, as `head` has."""

    exit_code: ClassVar[int] = 0


def put(text: str) -> None:
    """Write it to standard output, all of it before this returns. Raises Unwritten, ReaderGone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise unwritten(error, text) from error


def unwritten(error: OSError, text: str = "") -> Unwritten | ReaderGone:
    """What an error of standard output means. Nothing goes there any more: the interpreter would try again at its
    end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return ReaderGone("nobody reads standard output")
    return Unwritten(error.strerror or str(error), text)


def told(write: Callable[[], None]) -> bool:
    """Write what was done. Where standard output can't be written, standard error has it, and this is False: the exit
    code is 1 then. A reader that is gone has read enough."""
    try:
        write()
    except ReaderGone:
        return True
    except Unwritten as error:
        say(f"{error}, which would say:")
        for line in error.text.splitlines():
            say(line.rstrip())
        return False
    return True


def say(what: str) -> None:
    """Talk, for people: standard output is for what was asked."""
    print(escaped(what), file=sys.stderr)


def write_json(form: Form, records: Iterable[Any], *, one: bool = False) -> None:
    """Dataclasses as JSON: an array, or with `one` an object, or each on a line. Raises Unwritten, ReaderGone."""
    made = [asdict(record) if is_dataclass(record) and not isinstance(record, type) else record for record in records]
    if form is Form.JSONL:
        put("".join(f"{json.dumps(each, default=_plain)}\n" for each in made))
    else:
        put(json.dumps(made[0] if one else made, default=_plain, indent=2) + "\n")


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)
