"""SIGTERM, SIGINT and SIGHUP: each asks the process to end, and each further one presses harder.

| signal                        | effect                                                                             |
|-------------------------------|------------------------------------------------------------------------------------|
| the first                     | the function given to `on_signals`; before that, the main task is cancelled        |
| another within SAME_S of it   | none: it is the same request, delivered twice                                      |
| the second                    | the main task is cancelled; the process ends after END_S at the latest             |
| the third                     | the process ends at once                                                           |
| the fourth                    | the process ends, whatever `end_by` still has to do                                |

Python's own handlers are used, not the loop's: they are there before the loop is, and they run while a coroutine
blocks it.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workqueue.process import children

if TYPE_CHECKING:  # it takes a while to import, and until the first handler is set a signal is the interpreter's
    import asyncio

INTERRUPTED = 130
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOBODYS = (signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler)
SAME_S = 0.5
"""A supervisor signals the process and then its group, a shell passes on the SIGHUP that the terminal sent already:
milliseconds apart, more on a busy machine. A person who presses Ctrl-C again has read a line in between."""
END_S = 5.0  # from the second signal on: time to hand back what is in hand


def _say(text: str) -> None:
    print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr)


def _end_by(within_s: float, exit_code: int, _: str) -> None:
    end = threading.Timer(within_s, os._exit, [exit_code])
    end.daemon = True
    end.start()


class Signals:
    """What the process has been asked. There is one, `signals`: handlers belong to the whole process."""

    def __init__(self) -> None:
        self.count = 0
        self._counted_s = -SAME_S
        self._first: Callable[[], object] | None = None
        self._at_once: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None
        self._listening, self._taken = False, set[signal.Signals]()
        self.say: Callable[[str], object] = _say
        self.end_by: Callable[[float, int, str], object] = _end_by
        """Ends the process after this time, with this code and for this reason, even while a coroutine blocks the loop.
        Called in a signal's handler."""

    def listen(self) -> None:
        """Take the signals from now on. For the main thread. A SIGHUP that was ignored (nohup) still is."""
        for number in ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)
                self._taken.add(number)
        if not self._listening:
            self._listening = True
            children.install()  # what a forked child is sent ends it, and is not told to its parent's loop
            # While the interpreter takes itself down, it has no handlers: a late signal would change the exit code.
            atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in ENDING])

    def take_back(self) -> list[str]:
        """Take those that would be ignored, or end the process at once: their names. For the main thread. A function
        that somebody has set may call the one before, which is ours."""
        lost = [number for number in sorted(self._taken) if signal.getsignal(number) in NOBODYS]
        for number in lost:
            signal.signal(number, self._receive)
        return [number.name for number in lost]

    def attach(self) -> bool:
        """Let signals reach the current task. False if one came before: then it need not begin."""
        import asyncio

        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        return self.count == 0

    def on_first(self, call: Callable[[], object], at_once: Callable[[], object] | None) -> None:
        self._first, self._at_once = call, at_once
        if self.count:
            call()

    def _receive(self, number: int, _: object) -> None:
        now_s = time.monotonic()
        if now_s - self._counted_s < SAME_S:
            return
        self._counted_s = now_s
        self.count += 1
        if self.count == 1:
            if self._at_once is not None:
                self._at_once()
            self._call(lambda: (self._first or self._cancel)())  # it may be given before the loop comes to this
            return
        again = f"{signal.Signals(number).name} again"
        if self.count == 2:
            self._call(lambda: self.say(f"{again}: hands back what it has, and ends within {END_S:g} s"))
            self._call(self._cancel)
            self.end_by(END_S, INTERRUPTED, again)
        elif self.count == 3:
            self.end_by(0.0, INTERRUPTED, again)
        else:
            os._exit(INTERRUPTED)

    def _call(self, what: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the process is about to end
                self._loop.call_soon_threadsafe(what)

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()


signals = Signals()


def on_signals(first: Callable[[], object], at_once: Callable[[], object] | None = None) -> None:
    """Call `first` at the first signal; at once if it has come already. The second cancels the main task.

    `at_once` is called in the signal's own handler, so even while a coroutine blocks the loop.
    """
    signals.on_first(first, at_once)
