"""What a handler raises that knows what should happen next, and how a failure of its own is told."""


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


class GiveUp(Verdict):
    """Trying again is of no use: the task becomes a dead letter now, with this reason."""
