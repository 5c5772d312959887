"""A worker's log: each event as a line of text for people, or of JSON for programs.

A line is written to standard error at once, and not by way of `logging`: that would be a sixth of the time that a
worker takes for a task in which nothing is done. A script that has set up `logging` before gets them there instead.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TextIO, get_args

from workqueue.errors import escaped
from workqueue.tasks import events
from workqueue.tasks.events import Event, Listener, Told

log = logging.getLogger("workqueue.events")

WORDS: dict[str, str] = {
    "taken": "is taken  {task}",
    "early": "is not due yet  {task}",
    "crashed": "its worker died, or lost its claim ({count})  {task}",
    "behind": "comes after a copy that tells more  {task}",
    "alone": "must run alone  {task}",
    "redelivered": "was delivered  {task}  {count} times without an ack",
    "returned": "sent back  {task}  for the {count}th time",
}
"""Why a message was delayed."""
LINE_BYTES = 4096 - 25  # what Linux writes to a pipe in one piece, less the time and the line's end
CUT = " ..."
BURIED = "  and a dead letter again; to have it tried, send that back with its headers"
NAMES: dict[type, str] = {
    kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    for kind in (*get_args(events.What), *get_args(events.OfWorker))
}
"""Of events, in JSON: HandedBack is `handed_back`."""
WARNINGS = (events.Retrying, events.Dead, events.Delayed, events.LostClaim)


def lines(told: Told) -> list[str]:
    """The event as text, without the time: its line, and a line for each of a traceback. Each is printable, whatever
    ids and errors others have chosen."""
    line = _line(told)
    found = [line if line.isprintable() else escaped(line)]
    trace = getattr(told.what, "trace", None) if isinstance(told, Event) else None
    return found + [escaped(f"{told.worker}      {step}") for step in trace] if trace else found


def _line(told: Told) -> str:
    if not isinstance(told, Event):
        return f"{told.worker}  {_of_worker(told)}"
    task = f"{told.kind}  {told.id}" if told.id else told.kind
    match told.what:
        case events.Done(attempt):
            said = f"done  {task}  attempt {attempt}" if attempt > 1 else f"done  {task}"
        case events.Started(attempt):
            return f"{told.worker}  running  {task}  attempt {attempt}"
        case events.Running():
            return f"{told.worker}  running  {task}  for {told.took_s:.0f} s"
        case events.Retrying(attempt, again_s, error):
            said = f"failed  {task}  attempt {attempt}, again in {again_s:g} s: {error}"
        case events.Dead(reason, error, queue):
            said = f"dead  {task}  in {queue}  {reason}: {error}"
        case events.Cancelled(why):
            said = f"cancelled  {task}  {why}"
        case events.Skipped(state, buried):
            said = f"{state} already  {task}" + (BURIED if buried else "")
        case events.Delayed(why, again_s, count):
            said = f"{WORDS[why].format(task=task, count=count)}, again in {again_s:g} s"
        case events.LostClaim(again_s):
            said = f"lost its claim  {task}, again in {again_s:g} s"
        case events.HandedBack():
            said = f"handed back  {task}"
    return f"{told.worker}  {said}  {1000 * told.took_s:.0f} ms"


def _of_worker(told: events.OfWorker) -> str:
    match told:
        case events.Ready(_, queues, ledger):
            takes = ", ".join(f"{count} at a time from {queue}" for queue, count in queues.items())
            return f"ready  takes {takes}, ledger {ledger}"
        case events.Paused(_, queue, who, why):
            return f"paused  takes nothing from {queue}, by {who}{f': {why}' if why else ''}"
        case events.Resumed(_, queue):
            return f"resumed  takes tasks from {queue} again"
        case events.Stopping(_, in_hand):
            return f"stops  finishes what it has in hand: {in_hand}"
        case events.Stopped(_, finished, handed_back):
            return f"stopped  finished {finished}, handed back {handed_back}"


def fields(told: Told) -> dict[str, Any]:
    """The event as JSON has it: its name, then what it says."""
    if not isinstance(told, Event):
        return {"event": NAMES[type(told)], **asdict(told)}
    what = told.what
    of_task = {"worker": told.worker, "operation": told.operation, "kind": told.kind, "id": told.id}
    more = {name: getattr(what, name) for name in what.__slots__ if name != "cause"}
    if told.span is not None:
        more["trace_id"], more["span_id"] = told.span
    return {"event": NAMES[type(what)], **of_task, "took_ms": round(1000 * told.took_s, 3), **more}


def level_of(told: Told) -> int:
    return logging.WARNING if isinstance(told, Event) and isinstance(told.what, WARNINGS) else logging.INFO


class TextLines:
    """Writes each event as text, with the time, in the form of the log."""

    def __init__(self, stream: TextIO) -> None:
        self._second, self._told = 0, ""
        self._stream = stream  # kept: a handler may put another one in the place of sys.stderr
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def __call__(self, told: Told) -> None:
        now_s = time.time()
        second = int(now_s)
        if second != self._second:
            self._second, self._told = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        head = f"{self._told},{int(1000 * (now_s - second)):03} "
        try:
            for line in lines(told):
                self._stream.write(f"{head}{cut(line, self._encoding)}\n")
        except (OSError, ValueError):  # nobody reads it any more: no reason to stop
            pass


def cut(line: str, encoding: str) -> str:
    """The line, or so much of it that workers that share a pipe can't write into each other's lines."""
    if len(line) <= LINE_BYTES // 10:  # a character is ten bytes at most, where it must be escaped
        return line
    told = line.encode(encoding, "backslashreplace")
    return line if len(told) <= LINE_BYTES else told[: LINE_BYTES - len(CUT)].decode(encoding, "ignore") + CUT


class JsonLines:
    """Writes each event as a JSON object on a line, with the time (Unix, in seconds) and the level."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, told: Told) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(json_line(time.time(), level_of(told), fields(told)))


def json_line(at: float, level: int, said: dict[str, Any]) -> str:
    head = {"time": round(at, 3), "level": logging.getLevelName(level).lower()}
    return json.dumps(head | said, default=str) + "\n"


class JsonFormat(logging.Formatter):
    """The other lines of a log whose events are JSON."""

    def format(self, record: logging.LogRecord) -> str:
        said = {"event": "log", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json_line(record.created, record.levelno, said).rstrip("\n")


def to_logging(told: Told) -> None:
    """The event as a record of the logger `workqueue.events`, with itself as the record's `event`."""
    level = level_of(told)
    if log.isEnabledFor(level):
        log.log(level, "%s", "\n".join(lines(told)), extra={"event": told})


def listener(form: str, *, configured: bool) -> Listener:
    """What the settings ask for. `configured`: the script has set up `logging` before."""
    if configured:
        return to_logging
    made: Callable[[TextIO], Listener] = JsonLines if form == "json" else TextLines
    return made(sys.stderr)
