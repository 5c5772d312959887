"""What a message tells of itself in its headers."""

from typing import Any

import pytest

from workqueue.tasks import story

LETTER: dict[str, Any] = {
    "x-reason": "failed", "x-error": "ValueError: no", "x-queue": "tasks", "x-died-at": "2026-11-25T09:30:00Z",
    "x-attempts": [{"worker": "w", "at": "2026-11-25T09:29:00Z", "error": "no"}] * 6, "x-burial": 7, "mine": "kept",
}  # fmt: skip


def test_a_dead_letter_is_known_by_its_story_and_a_task_is_none() -> None:
    assert story.came_back(LETTER)
    assert not story.came_back({"x-attempts": [], "x-contract": "1.0.0"})
    assert not story.came_back(story.revived(LETTER))


@pytest.mark.parametrize("reason", [None, 5, [], {}])
def test_a_header_of_somebody_elses_is_no_story(reason: Any) -> None:
    assert not story.came_back({**LETTER, "x-reason": reason})


def test_a_letter_that_came_back_begins_anew_and_its_story_is_kept() -> None:
    headers = story.revived(LETTER)
    assert headers == {
        "mine": "kept", "x-burial": 7, "x-returns": 1,
        "x-story": [{"reason": "failed", "error": "ValueError: no", "died_at": "2026-11-25T09:30:00Z", "attempts": 6}],
    }  # fmt: skip


def test_each_return_is_counted_and_the_latest_stories_are_kept() -> None:
    headers = LETTER
    for _ in range(story.BURIALS + 5):
        headers = story.revived({**headers, **{name: LETTER[name] for name in story.TOLD if name in LETTER}})
    assert headers["x-returns"] == story.BURIALS + 5
    assert len(headers["x-story"]) == story.BURIALS


@pytest.mark.parametrize("junk", [None, "x", -1, True, 1.5, {"a": 1}])
def test_counts_and_stories_that_are_junk_are_taken_for_none(junk: Any) -> None:
    headers = story.revived({**LETTER, "x-returns": junk, "x-story": junk, "x-attempts": junk, "x-error": junk})
    assert headers["x-returns"] == 1
    assert len(headers["x-story"]) == 1
    assert story.count({"x-crashes": junk}, "x-crashes") == 0


def test_a_copy_does_not_keep_what_the_broker_noted_of_the_message() -> None:
    noted = {"x-death": [1], "x-first-death-queue": "q", "x-delivery-count": 3, "x-acquired-count": 4, "mine": 1}
    assert story.without_brokers(noted) == {"mine": 1}
