"""A regular expression that somebody gives for errors is searched for in bounded time."""

import asyncio
import re
import signal
import time

import pytest

from workqueue.ops.searching import Search, SearchEndless

LONG = "a" * 900 + "!"


def test_it_finds_what_the_pattern_finds() -> None:
    search = Search(re.compile("No such (file|folder)"))
    assert [search.finds(text) for text in ("x: No such folder", "no such file", "")] == [True, False, False]
    assert (signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_VIRTUAL)) == (signal.SIG_DFL, (0.0, 0.0))


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*$", "(a*)*c", "(?:a|aa)+$"])
def test_a_pattern_that_would_search_for_ever_is_one_line_that_says_so(pattern: str) -> None:
    before, began_s = signal.getsignal(signal.SIGVTALRM), time.process_time()
    with pytest.raises(SearchEndless, match=r"takes more than 0.2 s to search: .*, such as \(a\+\)\+") as told:
        Search(re.compile(pattern), 0.2).finds(LONG)
    assert (told.value.exit_code, pattern in str(told.value), "\n" in str(told.value)) == (2, True, False)
    assert time.process_time() - began_s < 2
    assert (signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_VIRTUAL)) == (before, (0.0, 0.0))


def test_many_searches_that_each_take_a_while_end_too() -> None:
    search = Search(re.compile("(a+)+b"), 0.3)
    with pytest.raises(SearchEndless):
        all(not search.finds("a" * 16) for _ in range(10_000))


def test_a_hundred_thousand_errors_are_well_below_the_limit() -> None:
    search = Search(re.compile("No such (file|folder)"))
    for _ in range(100_000):
        search.finds("reports/2026-11-27.csv: Permission denied")


async def test_in_another_thread_it_searches_as_well() -> None:
    assert await asyncio.to_thread(Search(re.compile("a+!")).finds, LONG)
