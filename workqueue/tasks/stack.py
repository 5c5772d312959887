"""Where code is, and where it failed, in a few lines that are safe to print. Everything here is total: a handler's
exceptions may be of any kind, and their text may fail too."""

import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from workqueue.errors import escaped
from workqueue.verdicts import HandlerBroke, Verdict

ATTEMPT_LIMIT = 500  # characters of one error in a story of attempts: seven of them must fit into the headers
INNERMOST = 5  # frames that tell where a handler is
LINES = 60  # of a traceback in the log
LINE_CHARACTERS = 1000  # of each: an error may quote what it got, all of it
TAIL_CHARACTERS = 2000  # of a traceback in a dead letter: the last lines name the place and the error

CALLS_OF_HANDLERS = {
    ("run", str(Path(__file__).with_name("attempt.py"))),
    ("_call_in_thread", str(Path(__file__).with_name("attempt.py"))),
    ("in_own_thread", str(Path(__file__).with_name("threads.py"))),
}
OURS = f"{Path(__file__).parent.parent}/"


def describe(error: BaseException) -> str:
    """An error in one line: its type, unless it says in words of ours what happened, and its text. Never raises."""
    try:
        text = " ".join(str(error)[: 10 * ATTEMPT_LIMIT].split())
    except BaseException as broken:  # noqa: BLE001  # a handler's exception may be of any kind
        text = f"(its text can't be read: str() raises {type_name(broken)})"
    if not isinstance(error, (Verdict, HandlerBroke)):
        text = f"{type_name(error)}: {text}" if text else type_name(error)
    return escaped(text)[:ATTEMPT_LIMIT]


def type_name(error: BaseException) -> str:
    """Its class may have a metaclass that does not tell the name."""
    name: str = type.__getattribute__(type(error), "__name__")
    return name


def traceback_lines(error: BaseException) -> list[str]:
    """The traceback from the handler on, with that of each cause, at most the last LINES of it."""
    if isinstance(error, HandlerBroke) and error.__cause__ is not None:
        error = error.__cause__
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
        _leave_out_ours(told, set())
        lines = [escaped(line[:LINE_CHARACTERS]) for part in told.format() for line in part.splitlines()]
    except BaseException:  # noqa: BLE001  # of an exception whose own attributes fail
        return [describe(error)]
    return lines if len(lines) <= LINES else ["...", *lines[1 - LINES :]]


def traceback_tail(error: BaseException) -> str:
    """The last lines of the traceback, at most TAIL_CHARACTERS."""
    return "\n".join(traceback_lines(error))[-TAIL_CHARACTERS:]


def where(frames: Iterable[FrameType]) -> str:
    """The place of the innermost of these frames, which come innermost first, and of those that led there."""
    places: list[str] = []
    for frame in frames:
        if len(places) == INNERMOST:
            break
        places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
    return escaped(" < ".join(places)) or "nowhere in Python"


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """From a frame that is running to those that led to it, up to our own call of the handler."""
    while frame is not None and not _is_call_of_handler(frame):
        yield frame
        frame = frame.f_back


def awaited(coroutine: Any) -> list[FrameType]:
    """The frames of a suspended coroutine, innermost first, up to our own call of the handler."""
    frames: list[FrameType] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            frames = [] if _is_call_of_handler(frame) else [frame, *frames]
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return frames


def _is_call_of_handler(frame: FrameType) -> bool:
    code = frame.f_code
    return (code.co_name, code.co_filename) in CALLS_OF_HANDLERS


def _leave_out_ours(told: traceback.TracebackException, seen: set[int]) -> None:
    """Drop the frames of ours above the handler, here and in all that `told` refers to."""
    if id(told) in seen:
        return
    seen.add(id(told))
    calls = [at for at, frame in enumerate(told.stack) if (frame.name, frame.filename) in CALLS_OF_HANDLERS]
    if calls:
        after = range(calls[0], len(told.stack))
        first = next((at for at in after if not told.stack[at].filename.startswith(OURS)), len(told.stack))
        del told.stack[:first]
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            _leave_out_ours(other, seen)
