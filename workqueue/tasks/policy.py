"""What happens after an attempt: pure decisions, no I/O, no clock, no broker.

| what the attempt came to                        | decision                                                    |
|-------------------------------------------------|-------------------------------------------------------------|
| it failed and a rung is left                    | Retry on the next rung, with one attempt more in its history |
| RetryAfter(s) and a rung is left                | the same, but on a rung of at least s (the longest, if none)  |
| it failed and no rung is left                   | Bury, "failed"                                              |
| GiveUp                                          | Bury, "gave-up"                                             |
| workers died with it as often as the limit says | Bury, "crashed"                                             |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workqueue.contract import Rung
from workqueue.errors import GiveUp, HandlerBroke, RetryAfter, Verdict

Reason = Literal["undecodable", "invalid", "failed", "gave-up", "crashed"]

ERROR_LIMIT = 500  # characters of an error in a task's history: seven of them must fit into a message's headers


@dataclass(frozen=True)
class Retry:
    """Wait on `rung`, then try again."""

    rung: Rung


@dataclass(frozen=True)
class Bury:
    """No further attempt: a dead letter, with the class of its reason and the error in words."""

    reason: Reason
    error: str


def after_failure(attempt: int, error: BaseException, rungs: Sequence[Rung]) -> Retry | Bury:
    """Decide on a failed attempt, the `attempt`th of this task counted from 1. `rungs` go from short to long."""
    if isinstance(error, GiveUp):
        return Bury("gave-up", describe(error))
    if attempt > len(rungs):
        return Bury("failed", describe(error))
    if isinstance(error, RetryAfter):
        return Retry(rung_of(error.delay_s, rungs))
    return Retry(rungs[attempt - 1])


def rung_of(delay_s: float, rungs: Sequence[Rung]) -> Rung:
    """The shortest rung of at least `delay_s`, else the longest."""
    return next((rung for rung in rungs if rung.delay_s >= delay_s), rungs[-1])


def describe(error: BaseException) -> str:
    """An error in one line: its type, unless it says in words of ours what happened, and its text. Never raises."""
    try:
        text = " ".join(str(error)[: 10 * ERROR_LIMIT].split())
    except BaseException as broken:  # noqa: BLE001  # a handler's exception may be of any kind
        text = f"(its text can't be read: str() raises {type(broken).__name__})"
    if not isinstance(error, (Verdict, HandlerBroke)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return printable(text)[:ERROR_LIMIT]


def printable(text: str) -> str:
    """The text with an escape for every character that could do something to a terminal, line ends included."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
