"""Whether a ledger may be opened: not while it is being filled from another one, and not once it was moved.

Closed, its schema has a major version that no program has, so that those of earlier versions refuse it, too; beside
that stands the other ledger. One that was moved refuses every change of its tasks as well, whoever has it open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Self

CLOSED = 0
"""The major version of a ledger that is closed."""
MOVED_TO, FILLED_FROM = "moved_to", "filled_from"


class Mark(NamedTuple):
    """Another ledger, and since when (Unix time)."""

    identity: int
    at: float
    place: str

    def __str__(self) -> str:
        return f"{self.identity} {self.at!r} {self.place}"

    @classmethod
    def read(cls, text: str) -> Self:
        identity, at, place = text.split(" ", 2)
        return cls(int(identity), float(at), place)

    @property
    def day(self) -> str:
        return f"{datetime.fromtimestamp(self.at, UTC):%Y-%m-%d}"


@dataclass(frozen=True)
class Door:
    """What a ledger's `workqueue_meta` says of it."""

    minor: int
    moved_to: Mark | None
    filled_from: Mark | None

    @classmethod
    def read(cls, meta: Mapping[str, str]) -> Self:
        moved, filled = meta.get(MOVED_TO), meta.get(FILLED_FROM)
        minor = int(meta["schema_version"].partition(".")[2])
        return cls(minor, Mark.read(moved) if moved else None, Mark.read(filled) if filled else None)

    @property
    def why(self) -> str | None:
        """Why it is closed; None: it is not."""
        if self.moved_to is not None:
            return moved(self.moved_to)
        if self.filled_from is not None:
            return (
                f"is being filled from {self.filled_from.place} since {self.filled_from.day}, and not complete: run "
                "`workqueue ledger copy` again"
            )
        return None


def moved(to: Mark) -> str:
    return f"was moved to {to.place} on {to.day}; set LEDGER_URL to that"
