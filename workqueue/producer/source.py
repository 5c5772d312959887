"""Where tasks to send come from: lines of JSON. Bad input becomes a value, not an end."""

import errno
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import BinaryIO, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from workqueue.client.sending import envelope
from workqueue.codec import ModelCodec, Undecodable, for_model
from workqueue.errors import InputInvalid

M = TypeVar("M", bound=BaseModel)

SKIP_BYTES = 100_000  # read at a time of a line that is too long


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
