"""Standard error that never blocks: a full pipe or a stopped terminal must not stop the event loop, or claims end.

A line is written at once where that is possible. Where it is not, a thread of its own writes it as soon as somebody
reads again; up to KEPT_BYTES are kept for that. Lines beyond are counted until all that is kept has been written, and
told in their place. The process can end with all of it unread.
"""

import io
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT_BYTES = 1_000_000  # some ten thousand lines
PIECE_BYTES = select.PIPE_BUF  # a pipe that polls as writable takes this much without blocking, and in one piece
LINE_END = ord("\n")
LAST_S = 1.0  # at the process's end: how long nothing may be read until what is kept is given up


class Stderr(io.TextIOBase):
    """A text stream, line buffered, on the file descriptor `fd`. No method blocks, or raises what the descriptor does:
    lines for a reader that is gone are dropped."""

    errors = "backslashreplace"
    encoding = "utf-8"
    form: Callable[[str], str] = staticmethod("{}\n".format)
    """How it tells of lines that were dropped."""

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        self._given, self.encoding = fd, encoding
        self._fd, self._must_poll = _without_blocking(fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._begun = ""
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._kept: deque[bytes] = deque()
        self._kept_bytes = self._dropped = 0
        self._lock = threading.RLock()
        self._writer: threading.Thread | None = None
        self._moved_s = 0.0

    def fileno(self) -> int:
        return self._given

    def isatty(self) -> bool:
        return os.isatty(self._given)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        given = len(text)
        if self._begun or text[-1:] != "\n":
            whole, ended, self._begun = (self._begun + text).rpartition("\n")
            text = whole + ended
        self._put(text)
        return given

    def flush(self) -> None:
        text, self._begun = self._begun, ""
        self._put(text)

    def end(self) -> None:
        """Wait until what is kept has been written, as long as somebody reads."""
        self.flush()
        self._moved_s = time.monotonic()
        while (writer := self._writer) is not None and time.monotonic() - self._moved_s < LAST_S:
            writer.join(0.02)

    def _put(self, text: str) -> None:
        rest = text.encode(self.encoding, self.errors)
        if rest and self._writer is None:
            rest = self._write(rest)
        if rest:
            self._keep(rest)

    def _write(self, data: bytes) -> bytes:
        """What of it can't be written now."""
        written = 0
        try:
            while written < len(data):
                if self._must_poll and not self._poll.poll(0):
                    break
                written += os.write(self._fd, _piece(data, written))
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more, or the disk is full: no reason to stop
            return b""
        return data[written:]

    def _keep(self, data: bytes) -> None:
        with self._lock:
            if self._dropped or self._kept_bytes + len(data) > KEPT_BYTES:  # one gap, told where it is
                self._dropped += data.count(b"\n")
                return
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._writer is None:
                self._writer = threading.Thread(target=self._deliver, name="stderr", daemon=True)
                self._writer.start()

    def _deliver(self) -> None:
        """Write what is kept, waiting for the reader."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while (data := self._next()) is not None:
            written = 0
            while written < len(data):
                poll.poll()
                try:
                    written += os.write(self._fd, _piece(data, written))
                    self._moved_s = time.monotonic()
                except BlockingIOError:
                    pass
                except OSError:
                    break

    def _next(self) -> bytes | None:
        with self._lock:
            if not self._kept and self._dropped:
                told, self._dropped = f"{self._dropped} lines were dropped: nobody read the log", 0
                return self.form(told).encode()
            if not self._kept:
                self._writer = None
                return None
            data = self._kept.popleft()
            self._kept_bytes -= len(data)
            return data


def _piece(data: bytes, begin: int) -> bytes:
    """What to write next: whole lines where one fits in, so that those of processes that share a pipe stay whole."""
    if not begin and len(data) <= PIECE_BYTES and data[-1] == LINE_END:
        return data
    piece = data[begin : begin + PIECE_BYTES]
    return piece[: piece.rfind(b"\n") + 1] or piece


def _without_blocking(fd: int) -> tuple[int, bool]:
    """A descriptor for the same file that doesn't block, and whether it must be polled before each write.

    A pipe or terminal is opened once more: O_NONBLOCK on `fd` itself would hold for every process that shares it. A
    socket can't be opened; and where the second open is refused, `fd` is polled. A regular file never blocks.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
        try:
            return os.open(f"/dev/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), False
        except OSError:
            return fd, True
    return fd, not stat.S_ISREG(kind)


def open_missing() -> None:
    """Open /dev/null for each standard descriptor that is closed, or the next file or socket becomes that one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def replace(stream: Any, fd: int) -> Stderr:
    """A stream that never blocks, in place of the interpreter's own (None where the descriptor was closed)."""
    if stream is not None:
        stream.flush()
    return Stderr(fd, getattr(stream, "encoding", None) or "utf-8")
