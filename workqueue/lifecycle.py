"""From a command line to an exit code: flags, signals, the log, and one line for every error.

| exit code | means                                                    |
|-----------|----------------------------------------------------------|
| 0         | everything that was asked for happened                   |
| 1         | some tasks were refused, died or did not finish in time  |
| 2         | a bad flag, setting, contract or input                   |
| 3         | the broker or the ledger is out of reach                 |
| 70        | a fault of its own: the log has the traceback            |
| 130       | interrupted                                              |
"""

import argparse
import asyncio
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, NoReturn

from workqueue.application import project_folder
from workqueue.errors import WorkerFault, WorkQueueError, escaped
from workqueue.observe.lines import JsonFormat, json_line, listener
from workqueue.process import stderr
from workqueue.process.loops import new_event_loop
from workqueue.process.signals import INTERRUPTED, on_signals, signals
from workqueue.process.unheard import unheard
from workqueue.settings import Settings, misspelt
from workqueue.tasks.events import Listener

__all__ = [
    "Flags",
    "count",
    "load_settings",
    "on_signals",
    "prepare",
    "run",
    "say",
    "seconds",
]


class Flags(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def __init__(self, about: str | None) -> None:
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        say(f"{message}; see --help")
        sys.exit(2)


def count(text: str) -> int:
    """A flag's value: a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def seconds(text: str) -> float:
    """A flag's value: a number of seconds from 0 up."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return value


class Format(logging.Formatter):
    """What is not printable is escaped: a foreign text must not move a terminal's cursor, nor look like a line of ours.
    A traceback keeps its line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if line.isprintable():
            return line
        return "\n".join(map(escaped, line.split("\n"))) if record.exc_info else escaped(line)


def prepare() -> Listener:
    """The first thing that a script does: from here on signals, closed descriptors and stalled readers do no harm.

    Returns the log of what happens in a worker: text or JSON by WORKQUEUE_LOG_FORMAT, or `logging` where the script has
    set that up already."""
    signals.listen()
    signals.say = say
    stderr.open_missing()
    if not isinstance(sys.stderr, stderr.Stderr):
        sys.stderr = stderr.replace(sys.stderr, 2)
        if is_json():
            sys.stderr.form = _json
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that an ASCII terminal can't show ends nothing
    elif sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    configured = bool(logging.getLogger().handlers)
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(JsonFormat() if is_json() else Format("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[log], level=logging.INFO)
    # The wire reports every loss of a connection itself, in words that say what follows from it.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    logging.getLogger("aio_pika").setLevel(logging.CRITICAL)
    return listener("json" if is_json() else "text", configured=configured)


def load_settings(application: type[Any], variables: Collection[str]) -> Settings:
    """The settings of a process that runs this application; `variables` are the script's own WORKQUEUE_ ones."""
    for line in misspelt(own=variables):
        say(line)
    return Settings.load(project=project_folder(application))


def run(main: Callable[[], Coroutine[Any, Any, int]], *, told_early: int = INTERRUPTED) -> int:
    """Run `main` on a uvloop and return its exit code, or the one of the failure it raised.

    `told_early` is the exit code when a signal came before `main` could begin.
    """

    async def attached() -> int:
        asyncio.get_running_loop().set_exception_handler(unheard)
        return await main() if signals.attach() else told_early

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return _run_to_end(runner, attached)
    except WorkQueueError as error:
        say(error)
        return error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except Exception as error:  # one line and an exit code for it too
        logging.getLogger(__name__).error("a fault of its own", exc_info=error)
        say(f"a fault of its own: {type(error).__name__}: {error}")
        return WorkerFault.exit_code
    finally:
        if isinstance(sys.stderr, stderr.Stderr):
            sys.stderr.end()


def _run_to_end(runner: asyncio.Runner, main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """SystemExit and KeyboardInterrupt in any task leave the event loop by asyncio's rule: `sys.exit()` in a task that
    a handler has made. Its awaiter sees them, and everything else goes on here; so it does where the loop's own stop()
    was called."""
    running = runner.get_loop().create_task(main())

    async def end() -> int:
        return await running

    while True:
        try:
            return runner.run(end())
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            if running.done() or running.cancelling():
                raise
            what = "stop() of the loop" if isinstance(error, RuntimeError) else type(error).__name__
            logging.getLogger(__name__).warning("%s in a task of the program's own; goes on", what)


def say(what: object) -> None:
    """A line on standard error, in the name of the script. Foreign text in it can't move a terminal's cursor."""
    text = escaped(str(what))
    if is_json():
        sys.stderr.write(_json(text))
    else:
        print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr)


def _json(text: str) -> str:
    said = {"event": "log", "logger": os.path.basename(sys.argv[0]), "message": text}
    return json_line(time.time(), logging.ERROR, said)


def is_json() -> bool:
    """Whether the log is for programs. Asked before the settings can be read: what is wrong with them is said too."""
    return os.environ.get("WORKQUEUE_LOG_FORMAT") == "json"
