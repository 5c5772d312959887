"""The policy's decisions, each a row of the table in its module."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_handlers import ExitsWhenAsked
from workqueue.amqp.connection import RECONNECT_CAP_S, RECONNECT_FIRST_S, reconnect_delay_s
from workqueue.contract import Queue, Rung
from workqueue.ledger import Claimed, Conflict, Crash, Finished, Taken
from workqueue.tasks.policy import (
    CONFLICT,
    LONGEST_S,
    TRY,
    Bury,
    Retry,
    Skip,
    Try,
    Wait,
    after_failure,
    before_attempt,
    rung_of,
    without_ledger,
)
from workqueue.tasks.stack import ATTEMPT_LIMIT, describe
from workqueue.verdicts import GiveUp, RetryAfter

RUNGS = tuple(Rung(Queue(f"wait-{s}", True, False, False, {}), s) for s in (0.5, 4.0, 60.0))


SHORT, MIDDLE, LONG = RUNGS
CRASH, ALONE = Crash("w", "2026-11-26T00:00:00Z"), Crash("w", "2026-11-26T00:00:00Z", alone=True)
LIMIT = 3
KILLED = Bury("crashed", "3 workers died, or lost their claim, while they had it and nothing else")

BEFORE = {
    "a new task": (Claimed(1, ()), 0, 0, TRY),
    "one that has failed, and says so": (Claimed(3, (), attempts=2), 2, 0, TRY),
    "one whose other copy tells of more": (Claimed(3, (), attempts=2), 1, 0, Wait(MIDDLE, "behind")),
    "one that has waited for that copy": (Claimed(3, (), attempts=2), 1, 2, TRY),
    "one whose other copy is on the last rung": (Claimed(9, (), attempts=7), 1, 0, Wait(LONG, "behind")),
    "a death that is just noticed": (Claimed(2, (CRASH,), noticed=True), 0, 0, Wait(SHORT, "crashed", 1)),
    "the second": (Claimed(3, (CRASH,) * 2, noticed=True), 0, 0, Wait(MIDDLE, "crashed", 2)),
    "one death, which was waited for": (Claimed(2, (CRASH,)), 0, 0, TRY),
    "two": (Claimed(3, (CRASH,) * 2), 0, 0, Try(alone=True)),
    "many, none of them alone": (Claimed(9, (CRASH,) * 8), 0, 0, Try(alone=True)),
    "as many as the limit, alone": (Claimed(4, (ALONE,) * 3, noticed=True), 0, 0, KILLED),
    "one fewer": (Claimed(4, (CRASH, ALONE, ALONE)), 0, 0, Try(alone=True)),
    "another worker's, for a moment": (Taken(0.1), 0, 0, Wait(SHORT, "taken")),
    "its next attempt is not due": (Taken(3.0, waits=True), 0, 0, Wait(MIDDLE, "early")),
    "for longer": (Taken(3.0), 0, 0, Wait(MIDDLE, "taken")),
    "as many attempts as the message tells of": (Taken(0.1, attempts=2), 2, 0, Wait(SHORT, "taken")),
    "its other copy tells of more, so that it comes later": (Taken(0.1, attempts=2), 1, 0, Wait(MIDDLE, "taken")),
    "and there is no longer rung": (Taken(50.0, attempts=2), 1, 0, Wait(LONG, "taken")),
    "done": (Finished("done", 1), 0, 0, Skip("done")),
    "dead": (Finished("dead", 1), 0, 0, Skip("dead")),
    "another payload": (Conflict(), 0, 0, CONFLICT),
}


@pytest.mark.parametrize(("answer", "told", "waited_for", "decision"), BEFORE.values(), ids=BEFORE)
def test_what_is_done_before_an_attempt_follows_from_what_the_ledger_answers(
    answer: Claimed | Taken | Finished | Conflict, told: int, waited_for: int, decision: object
) -> None:
    assert before_attempt(answer, told, waited_for, RUNGS, LIMIT) == decision


@pytest.mark.parametrize(
    ("deaths", "new", "decision"),
    [
        (0, False, TRY),
        (1, True, Wait(SHORT, "crashed", 1)),
        (1, False, Try(alone=True)),
        (2, True, Wait(MIDDLE, "crashed", 2)),
        (3, True, Bury("crashed", "3 workers died, or lost their connection, while they had it")),
        (4, False, Bury("crashed", "4 workers died, or lost their connection, while they had it")),
    ],
)
def test_without_a_ledger_it_follows_from_the_brokers_count(deaths: int, new: bool, decision: object) -> None:
    assert without_ledger(deaths, new, RUNGS, LIMIT) == decision


def test_a_task_that_keeps_failing_climbs_every_rung_and_is_then_buried() -> None:
    decisions = [after_failure(attempt, ValueError("no"), RUNGS) for attempt in (1, 2, 3, 4, 5)]
    assert decisions[:3] == [Retry(rung, rung.delay_s) for rung in RUNGS]
    assert decisions[3:] == [Bury("failed", "ValueError: no")] * 2


@pytest.mark.parametrize(("asked_s", "rung"), [(0, 0), (0.5, 0), (0.51, 1), (4, 1), (5, 2), (60, 2), (1e9, 2)])
@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_wish_for_later_is_rounded_up_to_a_rung_and_down_to_the_longest(
    attempt: int, asked_s: float, rung: int
) -> None:
    delay_s = max(RUNGS[rung].delay_s, min(asked_s, LONGEST_S))  # the ledger holds it back where no rung is as long
    assert after_failure(attempt, RetryAfter(asked_s, "busy"), RUNGS) == Retry(RUNGS[rung], delay_s)
    assert rung_of(asked_s, RUNGS) == RUNGS[rung]


def test_retry_after_does_not_add_an_attempt() -> None:
    assert after_failure(len(RUNGS) + 1, RetryAfter(0.1, "busy"), RUNGS) == Bury("failed", "busy")


def test_a_delay_that_can_be_read_no_more_is_a_plain_failure() -> None:
    assert after_failure(1, ExitsWhenAsked("busy"), RUNGS) == after_failure(1, ValueError("busy"), RUNGS)


@pytest.mark.parametrize("attempt", [1, 3, 4])
def test_giving_up_is_final_at_any_attempt(attempt: int) -> None:
    assert after_failure(attempt, GiveUp("no such file"), RUNGS) == Bury("gave-up", "no such file")


@given(st.text(max_size=2000), st.sampled_from([ValueError, GiveUp, TimeoutError]))
def test_an_error_in_words_is_one_short_line(text: str, kind: type[Exception]) -> None:
    told = describe(kind(text))
    assert len(told) <= ATTEMPT_LIMIT
    assert len(told.splitlines()) <= 1
    assert kind is GiveUp or told.startswith(kind.__name__)


def test_an_error_in_words_can_be_sent_whatever_it_is_about() -> None:
    assert describe(ValueError("no such file: a\udcff")).encode()


def test_an_error_without_text_is_told_by_its_type() -> None:
    assert describe(ZeroDivisionError()) == "ZeroDivisionError"
    assert describe(ValueError("a\n  b\tc")) == "ValueError: a b c"


@given(st.integers(0, 10**9), st.floats(0, 1, exclude_max=True))
def test_the_wait_for_a_broker_stays_between_half_and_all_of_a_doubling_ceiling(failures: int, chance: float) -> None:
    delay_s = reconnect_delay_s(failures, lambda: chance)
    ceiling_s = min(RECONNECT_CAP_S, RECONNECT_FIRST_S * 2 ** min(failures, 20))
    assert ceiling_s / 2 <= delay_s <= ceiling_s


def test_the_waits_for_a_broker_grow_and_differ_between_processes() -> None:
    waits = [reconnect_delay_s(failures, lambda: 0.5) for failures in range(12)]
    assert waits == sorted(waits)
    assert waits[0] < 0.2
    assert reconnect_delay_s(3, lambda: 0.1) != reconnect_delay_s(3, lambda: 0.9)
