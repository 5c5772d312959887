"""Standard output that takes each text whole, or says why not.

Where it is unbuffered (PYTHONUNBUFFERED) the interpreter forgets what a single write of the system has left, and a pipe
whose reader is slow takes less than all of a long text when a signal comes meanwhile.
"""

import io
import os
from typing import Any


class Whole(io.RawIOBase):
    """An unbuffered binary stream on the file descriptor `fd`, which stays open. A write returns when all is written;
    raises what the descriptor does, with some of it written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        return size


def whole(stream: Any) -> Any:
    """The interpreter's own stream, or, where that is unbuffered, one in its place that is as prompt and forgets
    nothing."""
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(stream.buffer, io.FileIO):
        return stream
    raw: Any = Whole(stream.fileno())
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)
