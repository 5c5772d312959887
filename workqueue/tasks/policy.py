"""What happens before and after an attempt: pure decisions, no I/O, no clock, no broker.

Before:

| what is known of the task                                      | decision                                          |
|----------------------------------------------------------------|---------------------------------------------------|
| it is done, dead, or cancelled                                 | Skip                                              |
| somebody else has a claim on it, or its next attempt is not due | Wait as long                                      |
| its id is known with another payload                           | Bury, "conflict"                                  |
| `crash_limit` workers died while they had nothing else in hand | Bury, "crashed"                                   |
| the claim before this one ended without a word                 | Wait, longer each time                            |
| more attempts failed than this copy of the message tells of    | Wait once, for the copy that has the whole story  |
| two claims or more ended without a word                        | Try it, alone in the process                      |
| any other                                                      | Try it                                            |

After:

| what the attempt came to                        | decision                                                    |
|-------------------------------------------------|-------------------------------------------------------------|
| it failed and a rung is left                    | Retry on the next rung, with one attempt more in its history |
| RetryAfter(s) and a rung is left                | the same, but on a rung of at least s (the longest, again and |
|                                                 | again, if none is: the ledger knows when it is due)           |
| it failed and no rung is left                   | Bury, "failed"                                              |
| GiveUp                                          | Bury, "gave-up"                                             |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workqueue.contract import Rung
from workqueue.ledger import Claimed, Conflict, Finished, Taken
from workqueue.tasks.stack import describe
from workqueue.verdicts import GiveUp, RetryAfter, delay_of

Reason = Literal["undecodable", "invalid", "failed", "gave-up", "crashed", "conflict"]
"""Why a message is a dead letter."""
Because = Literal["taken", "early", "crashed", "behind", "alone", "redelivered", "returned"]
"""Why a message comes later though no attempt failed: another worker has it; its next attempt is not due; a worker died
with it; another copy of it tells more; it must run alone and can't now; the broker has delivered it too often; it was a
dead letter too often."""

LONGEST_S = 366 * 86_400.0  # that a handler may ask for
ALONE_FROM = 2  # deaths of a worker that had the task: one may have been any of its neighbours' fault


@dataclass(frozen=True)
class Try:
    """Try the task now; `alone`: while nothing else runs in this process, so that a death tells whose fault it is."""

    alone: bool = False


TRY = Try()


@dataclass(frozen=True)
class Skip:
    """Nothing is left to do: the task is done, dead or cancelled."""

    state: Literal["done", "dead", "cancelled"]


@dataclass(frozen=True)
class Wait:
    """Come back later; no attempt is counted. `count` is of deaths, where those are why."""

    rung: Rung
    why: Because
    count: int = 0


@dataclass(frozen=True)
class Retry:
    """Wait on `rung`, then try again, no sooner than `delay_s` from now: that is more where no rung is as long."""

    rung: Rung
    delay_s: float


@dataclass(frozen=True)
class Bury:
    """No further attempt: a dead letter, with the class of its reason and the error in words."""

    reason: Reason
    error: str


CONFLICT = Bury("conflict", "its id is known with another payload; a task of its own needs an id of its own")


def before_attempt(
    answer: Claimed | Taken | Finished | Conflict, told: int, waited_for: int, rungs: Sequence[Rung], crash_limit: int
) -> Try | Skip | Wait | Bury:
    """Decide by what the ledger answered to a claim. `told` are the failed attempts that the message tells of,
    `waited_for` those of which it has let another copy tell first; `rungs` go from short to long."""
    if isinstance(answer, Claimed):
        known = answer.crashes or answer.attempts
        return _of_claim(answer, max(told, waited_for), rungs, crash_limit) if known else TRY
    if isinstance(answer, Finished):
        return Skip(answer.state)
    if isinstance(answer, Conflict):
        return CONFLICT
    rung = rung_of(answer.left_s, rungs)
    if answer.attempts > told:  # another copy has the whole story: that one is to come first
        rung = rungs[min(rungs.index(rung) + 1, len(rungs) - 1)]
    return Wait(rung, "early" if answer.waits else "taken")


def _of_claim(claim: Claimed, told: int, rungs: Sequence[Rung], crash_limit: int) -> Try | Wait | Bury:
    crashes = claim.crashes or ()
    if sum(crash.alone for crash in crashes) >= crash_limit:
        return Bury("crashed", f"{crash_limit} workers died, or lost their claim, while they had it and nothing else")
    if claim.noticed:
        return after_crash(len(crashes), rungs)
    if claim.attempts > told:  # the other copy is on this rung, or just came from it
        return Wait(rungs[min(claim.attempts, len(rungs)) - 1], "behind")
    return Try(alone=len(crashes) >= ALONE_FROM)


def without_ledger(deaths: int, new: bool, rungs: Sequence[Rung], crash_limit: int) -> Try | Wait | Bury:
    """The same where only the broker counts: `deaths` are deliveries that ended without an ack, which a lost
    connection does too; `new`: the last of them was this message's last delivery."""
    if deaths >= crash_limit:
        return Bury("crashed", f"{deaths} workers died, or lost their connection, while they had it")
    return after_crash(deaths, rungs) if new else Try(alone=deaths > 0) if deaths else TRY


def after_crash(deaths: int, rungs: Sequence[Rung]) -> Wait:
    """The pause after the `deaths`th worker that died with a task."""
    return Wait(rungs[min(deaths, len(rungs)) - 1], "crashed", deaths)


def after_failure(attempt: int, error: BaseException, rungs: Sequence[Rung]) -> Retry | Bury:
    """Decide on a failed attempt, the `attempt`th of this task counted from 1. `rungs` go from short to long."""
    if isinstance(error, GiveUp):
        return Bury("gave-up", describe(error))
    if attempt > len(rungs):
        return Bury("failed", describe(error))
    if isinstance(error, RetryAfter) and (asked_s := delay_of(error)) is not None:
        rung = rung_of(asked_s, rungs)
        return Retry(rung, max(rung.delay_s, min(asked_s, LONGEST_S)))
    return Retry(rungs[attempt - 1], rungs[attempt - 1].delay_s)


def rung_of(delay_s: float, rungs: Sequence[Rung]) -> Rung:
    """The shortest rung of at least `delay_s`, else the longest."""
    return next((rung for rung in rungs if rung.delay_s >= delay_s), rungs[-1])
