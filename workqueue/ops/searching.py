"""A search by somebody's regular expression that comes to an end: one like `(a+)+b` may not, in the life of the sun."""

import re
import signal
import threading
import time
from types import FrameType

from workqueue.errors import WorkQueueError

SEARCH_S = 5.0
"""Of processor time, for all texts together: 100,000 errors take an ordinary expression a quarter of that. Nothing else
goes on meanwhile, heartbeats neither, and what is looked through is held."""


class SearchEndless(WorkQueueError):
    """The regular expression takes too long."""

    exit_code = 2

    def __init__(self, pattern: str, limit_s: float) -> None:
        way_out = "a repetition within a repetition, such as (a+)+, does; name some of the text instead"
        super().__init__(f"the regular expression {pattern!r} takes more than {limit_s:g} s to search: {way_out}")
        self.pattern, self.limit_s = pattern, limit_s


class _TooLong(BaseException):
    """Raised by the signal, in the midst of the search: `re` lets handlers run."""


class Search:
    """Whether a text has what the pattern finds. All searches together take `limit_s` of processor time at most; in
    another thread than the main one, which has the signals, there is no limit."""

    def __init__(self, pattern: re.Pattern[str], limit_s: float = SEARCH_S) -> None:
        self._pattern, self._limit_s, self._left_s = pattern, limit_s, limit_s

    def finds(self, text: str) -> bool:
        """Raises SearchEndless."""
        if threading.current_thread() is not threading.main_thread():
            return self._pattern.search(text) is not None
        before, began_s = signal.signal(signal.SIGVTALRM, _stop), time.process_time()
        try:
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, self._left_s)
                return self._pattern.search(text) is not None
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _TooLong:
            raise SearchEndless(self._pattern.pattern, self._limit_s) from None
        finally:
            signal.signal(signal.SIGVTALRM, before)
            self._left_s = max(0.001, self._left_s - (time.process_time() - began_s))  # 0 would be no limit


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooLong
