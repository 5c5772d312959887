"""What a message tells of itself in its headers: its failed attempts, and why it was a dead letter.

| header       | on          | says                                                                       |
|--------------|-------------|----------------------------------------------------------------------------|
| x-attempts   | both        | the attempts that failed, the oldest first                                 |
| x-crashes    | a task      | how many workers died with it, where there is no ledger to count them      |
| x-waited-for | a task      | the number of failed attempts of which it let another copy tell first      |
| x-reason ... | a dead letter | the story: why it is one, since when, from which queue                   |
| x-burial     | a dead letter | the fence under which the ledger recorded it as dead                     |
| x-returns    | both        | how often it was a dead letter and was sent back                           |
| x-story      | both        | what it was a dead letter for before, the oldest first                     |
| x-sent-back  | a task      | by whom it was just sent back, and why; no copy has it                     |
"""

from collections.abc import Mapping
from typing import Any, get_args

from workqueue.tasks.policy import Reason

OURS = frozenset({"x-attempts", "x-crashes", "x-returns", "x-story", "x-burial"})
"""Those that are read again."""
STORIED = OURS | {"x-reason"}
"""Without any of these, a message tells nothing of an attempt or a burial before."""
SENT = frozenset({"x-contract", "x-burial"})
"""By which it is known that a producer sent a message, or that it was a dead letter."""
TOLD = ("x-reason", "x-error", "x-queue", "x-died-at", "x-traceback", "x-attempts", "x-waited-for")
"""The story of one burial."""
BROKER = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")
"""The broker's own record of a message; on a copy it would speak of another message."""

REASONS: tuple[Reason, ...] = get_args(Reason)
SENT_BACK = "x-sent-back"
"""Each of its two texts, see `sent_back`, is short: headers must fit into one frame."""
BURIALS = 10  # in x-story: headers must fit into one frame


def came_back(headers: Mapping[str, Any]) -> bool:
    """Whether this is a dead letter that somebody sent back to the tasks, with the headers that it had."""
    return headers.get("x-reason") in REASONS and isinstance(headers.get("x-died-at"), str)


def revived(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers with which a dead letter that came back is a task again: its story is history, its attempts begin
    anew."""
    earlier, attempts = headers.get("x-story"), headers.get("x-attempts")
    burial = {
        "reason": str(headers["x-reason"]),
        "error": str(headers.get("x-error", ""))[:200],
        "died_at": str(headers["x-died-at"]),
        "attempts": len(attempts) if isinstance(attempts, list) else 0,
    }
    kept = {name: value for name, value in headers.items() if name not in TOLD}
    stories = [*(earlier if isinstance(earlier, list) else []), burial][-BURIALS:]
    return {**kept, "x-returns": count(headers, "x-returns") + 1, "x-story": stories}


def sent_back(headers: Mapping[str, Any]) -> dict[str, str]:
    """By whom and why a dead letter was sent back, as the ledger's story of the task has it."""
    told = headers.get(SENT_BACK)
    told = told if isinstance(told, Mapping) else {}
    return {name: str(told.get(name, ""))[:200] for name in ("by", "why")}


def count(headers: Mapping[str, Any], name: str) -> int:
    """A number in a header; 0 where there is none, or something else: a foreign client may send anything."""
    value = headers.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def without_brokers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers that a copy keeps."""
    return {name: value for name, value in headers.items() if not name.startswith((*BROKER, SENT_BACK))}
