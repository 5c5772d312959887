"""From a command line to an exit code: flags, signals, the log, and one line for every error.

| exit code | means                                                    |
|-----------|----------------------------------------------------------|
| 0         | everything that was asked for happened                   |
| 1         | some tasks were refused or died                          |
| 2         | a bad flag, setting, contract or input                   |
| 3         | the broker or the ledger is out of reach                 |
| 70        | a fault of its own: the log has the traceback            |
| 130       | interrupted                                              |
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn

import uvloop

from workqueue.errors import WorkerFault, WorkQueueError

INTERRUPTED = 130


class Flags(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def __init__(self, about: str | None) -> None:
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        sys.exit(2)


def count(text: str) -> int:
    """A flag's value: a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


class Report:
    """Writes what is said of every task to standard error, each line with the time, in the form of the log.

    Not by way of the log: that is a sixth of the time that a worker takes for a task in which nothing is done.
    """

    def __init__(self) -> None:
        self._second, self._told = 0, ""

    def __call__(self, line: str) -> None:
        now_s = time.time()
        second = int(now_s)
        if second != self._second:
            self._second, self._told = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
            sys.stderr.write(f"{self._told},{int(1000 * (now_s - second)):03} {line}\n")


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run `main` on a uvloop and return its exit code, or the one of the failure it raised.

    That standard error is closed, or that its reader has gone, changes neither.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.INFO)
    # The wire reports every loss of a connection itself, in words that say what follows from it.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    logging.getLogger("aio_pika").setLevel(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return _run_to_end(runner, main)
    except WorkQueueError as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # one line and an exit code for it too
        logging.getLogger(__name__).error("%s", traceback.format_exc().rstrip())
        print(f"{os.path.basename(sys.argv[0])}: a fault of its own: {type(error).__name__}: {error}", file=sys.stderr)
        return WorkerFault.exit_code
    finally:
        try:
            sys.stderr.flush()
        except OSError:  # the interpreter would try again at its end, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _run_to_end(runner: asyncio.Runner, main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """SystemExit and KeyboardInterrupt in any task leave the event loop by asyncio's rule: `sys.exit()` in a task that
    a handler has made. Its awaiter sees them, and everything else goes on here."""
    running = runner.get_loop().create_task(main())

    async def end() -> int:
        return await running

    while True:
        try:
            return runner.run(end())
        except (SystemExit, KeyboardInterrupt) as error:
            if running.done() or running.cancelling():
                raise
            logging.getLogger(__name__).warning("%s in a task of the program's own; goes on", type(error).__name__)


def on_signals(first: Callable[[], object]) -> None:
    """Call `first` on the first SIGTERM or SIGINT; end the process at once on the second."""
    loop, seen = asyncio.get_running_loop(), []

    def receive(number: signal.Signals) -> None:
        seen.append(number)
        if len(seen) == 1:
            first()
        else:
            print(f"{os.path.basename(sys.argv[0])}: {number.name} again: ends now", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, receive, number)
