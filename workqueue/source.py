"""Where tasks to send come from: files below paths, and lines of JSON. Bad input becomes a value, not an end."""

import errno
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from uuid_utils.compat import uuid7

from workqueue.codec import ModelCodec, Undecodable, for_model
from workqueue.errors import InputInvalid
from workqueue.settings import DEFAULT_LEDGER

M = TypeVar("M", bound=BaseModel)

SKIP_BYTES = 100_000  # read at a time of a line that is too long


def envelope() -> dict[str, Any]:
    """What the producer adds to a payload to make it a task: an id, and the time.

    The id begins with the time (RFC 9562, section 5.7), so that tasks which are done at about the same time are
    neighbours in the ledger's tree, however large that is.
    """
    return {"id": uuid7(), "created_at": datetime.now(UTC)}


def files(paths: Iterable[str], ledger: str | None = None) -> Iterator[Path | InputInvalid]:
    """Every regular file that is one of `paths` or below one, resolved; links below a path are not followed.

    Left out below a path are the files of the SQLite ledger at `ledger`, and of any project's default one: a worker
    that opened and closed its own would lose its locks on it.
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
        if is_ledger(str(path), ledger):
            yield InputInvalid(name, "belongs to the ledger")
        elif path.is_file():
            yield (
                _unicode(path) if os.access(path, os.R_OK) else InputInvalid(name, "can't be read (permission denied)")
            )
        elif not path.is_dir():
            yield InputInvalid(name, "is not a regular file")
        else:
            for folder, folders, names in os.walk(path, onerror=note):
                ours = (DEFAULT_LEDGER.parts[0], *(name for name in folders if is_ledger(f"{folder}/{name}", ledger)))
                folders[:] = sorted(name for name in folders if name not in ours)
                here = (Path(folder, name) for name in sorted(names) if not is_ledger(f"{folder}/{name}", ledger))
                yield from (_unicode(file) for file in here if file.is_file() and not file.is_symlink())
            yield from problems


def is_ledger(path: str, ledger: str | None) -> bool:
    """Whether a file is the SQLite ledger at `ledger`, or one of those that SQLite and the locks have beside it."""
    if ledger is None or not path.startswith(ledger):
        return False
    rest = path.removeprefix(ledger)
    return rest in ("", "-wal", "-shm", "-journal", ".holders") or rest.startswith(".holders/")


def _unicode(file: Path) -> Path | InputInvalid:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return InputInvalid(ascii(str(file)), "has a name that is not UTF-8, which JSON can't say")
    return file


def lines(name: str, model: type[M]) -> Iterator[M | InputInvalid]:
    """A task for each line of a file (`-` is standard input) that is not empty: a payload, or a task with its id."""
    codec = for_model(model)
    try:
        if name == "-" and sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        # Not sys.stdin: the interpreter can't end while a thread waits in that.
        opened = open(0 if name == "-" else name, "rb", closefd=name != "-")  # noqa: SIM115  # in the with below
        with opened as file:
            for number, line, size in _numbered(file, codec.max_bytes):
                where = f"{name}:{number}"
                if size > codec.max_bytes:
                    yield InputInvalid(where, f"{size} bytes, the contract's limit is {codec.max_bytes}")
                elif line:
                    yield _line(where, line, codec, model)
    except OSError as error:
        yield InputInvalid(name, f"can't be read ({error.strerror})")


def _numbered(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """Each line with its number and size. Of one that is too long only so much is ever in memory."""
    for number in count(1):
        line = file.readline(max_bytes + len(BOM_UTF8) + len(b"\r\n"))
        if not line:
            return
        ended = line.endswith(b"\n")
        if number == 1:
            line = line.removeprefix(BOM_UTF8)
        line = line.strip()
        size = len(line)
        while not ended and (more := file.readline(SKIP_BYTES)):
            ended, size = more.endswith(b"\n"), size + len(more.rstrip(b"\r\n"))
        yield number, line, size


def _line(where: str, line: bytes, codec: ModelCodec[M], model: type[M]) -> M | InputInvalid:
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return InputInvalid(where, f"not JSON: {error}")
    task = None
    if not isinstance(value, dict) or "payload" in value:
        task = codec.from_value(value)
    # A kind may have fields of the envelope's names: what is no whole task, and has other fields too, is a payload.
    if task is None or (isinstance(task, Undecodable) and isinstance(value, dict) and value.keys() - _names(model)):
        added = envelope()
        value = {"id": str(added["id"]), "created_at": added["created_at"].isoformat(), "payload": value}
        task = codec.from_value(value)
    return InputInvalid(where, task.error) if isinstance(task, Undecodable) else task


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a message, by their names in JSON."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
