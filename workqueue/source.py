"""Where tasks to send come from: files below paths, and lines of JSON. Bad input becomes a value, not an end."""

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from uuid_utils.compat import uuid7

from workqueue.codec import ModelCodec, Undecodable, for_model
from workqueue.errors import InputInvalid

M = TypeVar("M", bound=BaseModel)


def envelope() -> dict[str, Any]:
    """What the producer adds to a payload to make it a task: an id, and the time.

    The id begins with the time (RFC 9562, section 5.7), so that tasks which are done at about the same time are
    neighbours in the ledger's tree, however large that is.
    """
    return {"id": uuid7(), "created_at": datetime.now(UTC)}


def files(paths: Iterable[str]) -> Iterator[Path | InputInvalid]:
    """Every regular file that is one of `paths` or below one, resolved; links below a path are not followed."""
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
        if path.is_file():
            yield path if os.access(path, os.R_OK) else InputInvalid(name, "can't be read (permission denied)")
        elif not path.is_dir():
            yield InputInvalid(name, "is not a regular file")
        else:
            for folder, folders, names in os.walk(path, onerror=note):
                folders.sort()
                here = (Path(folder, name) for name in sorted(names))
                yield from (_unicode(file) for file in here if file.is_file() and not file.is_symlink())
            yield from problems


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
        # Not sys.stdin: the interpreter can't end while a thread waits in that.
        opened = open(0 if name == "-" else name, "rb", closefd=name != "-")  # noqa: SIM115  # in the with below
    except OSError as error:
        yield InputInvalid(name, f"can't be read ({error.strerror})")
        return
    with opened as file:
        yield from (_line(f"{name}:{number}", line, codec) for number, line in _numbered(file))


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    return ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip())


def _line(where: str, line: bytes, codec: ModelCodec[M]) -> M | InputInvalid:
    if len(line) > codec.max_bytes:
        return InputInvalid(where, f"{len(line)} bytes, the contract's limit is {codec.max_bytes}")
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return InputInvalid(where, f"not JSON: {error}")
    if isinstance(value, dict) and "payload" not in value:
        added = envelope()
        value = {"id": str(added["id"]), "created_at": added["created_at"].isoformat(), "payload": value}
    task = codec.from_value(value)
    return InputInvalid(where, task.error) if isinstance(task, Undecodable) else task
