"""What a handler raises that knows what should happen next, and how a failure of its own is told."""

import math
from numbers import Real


class HandlerBroke(Exception):
    """The attempt failed in a way that is told in words of ours. Its cause is what the handler raised."""


class Verdict(Exception):
    """Raised by a handler that knows what should happen next. Any other exception is a plain failure."""


class RetryAfter(Verdict):
    """This attempt failed; the next one is no sooner than `delay_s` from now, rounded up to a delay of the contract.

    Longer than the longest of those it waits there again and again, since the ledger knows when it is due; with
    LEDGER_URL=none the longest is all there is.

    A `delay_s` that is no number of seconds makes it a plain failure, which says so.
    """

    def __init__(self, delay_s: float, reason: str) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


def delay_of(error: RetryAfter) -> float | None:
    """None: it is no number of seconds. Never raises: in a subclass it may be anything."""
    try:
        delay_s = float(error.delay_s) if isinstance(error.delay_s, Real) else math.nan
    except BaseException:  # noqa: BLE001  # a handler's exception may be of any kind
        return None
    return delay_s if 0 <= delay_s < math.inf else None


class GiveUp(Verdict):
    """Trying again is of no use: the task becomes a dead letter now, with this reason."""
