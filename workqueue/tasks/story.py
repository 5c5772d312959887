"""What a message tells of itself in its headers: its failed attempts, and why it was a dead letter."""

from collections.abc import Mapping
from typing import Any, get_args

from workqueue.codec import ERROR_LIMIT
from workqueue.tasks.policy import Reason
from workqueue.tasks.stack import ATTEMPT_LIMIT, TAIL_CHARACTERS

REASONS: tuple[Reason, ...] = get_args(Reason)
SENT_BACK = "x-sent-back"
REQUEST = "x-request"
"""On a task that was handed back without an answer from the ledger: the number of the wish for it. No copy keeps it."""
BURIALS = 10  # in x-story: headers must fit into one frame
TEXT_LIMIT = 200  # characters of each text of a burial, and of a sending back, for the same reason

AT = "2026-11-25T09:30:00.000Z"
ATTEMPT = {"worker": "w" * 255, "at": AT, "error": "e" * ATTEMPT_LIMIT}
BURIAL = {"reason": "failed", "error": "e" * TEXT_LIMIT, "died_at": AT, "attempts": 6}

# Every header that the runtime writes, with what it may write there. The contract must take it: `make generate` sees to
# that.

READ: Mapping[str, Any] = {
    "x-attempts": [ATTEMPT],  # that failed, the oldest first
    "x-crashes": 1,  # how many workers died with the task, where there is no ledger to count them
    "x-waited-for": 6,  # the number of failed attempts of which it let another copy tell first
    "x-burial": 2**31,  # the fence under which the ledger recorded it as dead
    "x-returns": 1,  # how often it was a dead letter and was sent back
    "x-story": [BURIAL] * BURIALS,  # what it was a dead letter for before, the oldest first
}
"""On a task and a dead letter. Those of a task are read again, and must be the contract's: a foreign client may send
anything."""
TOLD: Mapping[str, Any] = {
    "x-reason": "failed",
    "x-error": "e" * ERROR_LIMIT,
    "x-queue": "q" * 255,
    "x-died-at": AT,
    "x-traceback": "t" * TAIL_CHARACTERS,
    **{name: READ[name] for name in ("x-attempts", "x-crashes", "x-waited-for")},
}
"""On a dead letter: the story of one burial. A task that came back begins without them."""
BESIDE: Mapping[str, Any] = {"x-contract": "1.0.0", "x-dropped-headers": "n" * 1000}
"""On both: the contract of who wrote it, and what gave way where not all fitted into one frame."""
ON_TASK: Mapping[str, Any] = {**BESIDE, **READ, SENT_BACK: {"by": "b" * TEXT_LIMIT, "why": "w" * TEXT_LIMIT}}
"""The last one says by whom it was just sent back, and why; no copy has it."""
ON_LETTER: Mapping[str, Any] = {**BESIDE, **READ, **TOLD}

STORIED = READ.keys() | {"x-reason"}
"""Without any of these, a message tells nothing of an attempt or a burial before."""
SENT = frozenset({"x-contract", "x-burial"})
"""By which it is known that a producer sent a message, or that it was a dead letter."""
BROKER = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")
"""The broker's own record of a message; on a copy it would speak of another message."""


def came_back(headers: Mapping[str, Any]) -> bool:
    """Whether this is a dead letter that somebody sent back to the tasks, with the headers that it had."""
    return headers.get("x-reason") in REASONS and isinstance(headers.get("x-died-at"), str)


def revived(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers with which a dead letter that came back is a task again: its story is history, its attempts begin
    anew."""
    earlier, attempts = headers.get("x-story"), headers.get("x-attempts")
    burial = {
        "reason": str(headers["x-reason"]),
        "error": str(headers.get("x-error", ""))[:TEXT_LIMIT],
        "died_at": str(headers["x-died-at"]),
        "attempts": len(attempts) if isinstance(attempts, list) else 0,
    }
    kept = {name: value for name, value in headers.items() if name not in TOLD}
    stories = [*(earlier if isinstance(earlier, list) else []), burial][-BURIALS:]
    return {**kept, "x-returns": count(headers, "x-returns") + 1, "x-story": stories}


def is_letter_of(fence: int, headers: Mapping[str, Any]) -> bool:
    """Whether it is the dead letter that was buried with this claim, sent back. One of the version before names no
    burial."""
    return "x-returns" in headers and headers.get("x-burial", fence) == fence


def sent_back(headers: Mapping[str, Any]) -> dict[str, str]:
    """By whom and why a dead letter was sent back, as the ledger's story of the task has it."""
    told = headers.get(SENT_BACK)
    told = told if isinstance(told, Mapping) else {}
    return {name: str(told.get(name, ""))[:TEXT_LIMIT] for name in ("by", "why")}


def count(headers: Mapping[str, Any], name: str) -> int:
    """A number in a header; 0 where there is none, or something else: a foreign client may send anything."""
    value = headers.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def without_brokers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers that a copy keeps."""
    return {name: value for name, value in headers.items() if not name.startswith((*BROKER, SENT_BACK))}
