"""What tasks died of, as the ledger remembers it: by reason and kind, without a look at the dead letters."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from workqueue.ledger import board
from workqueue.tasks import story


@dataclass(frozen=True)
class Deaths:
    """Tasks of one kind (empty: not known) that died of one reason: how many the ledger remembers, how many of them
    died within the last hour, and when the last did.

    One whose letter was thrown away since is counted still. A letter that never was a task, since its body is not the
    contract's, is not."""

    reason: str
    kind: str
    count: int
    hour: int
    newest: datetime


def by_reason(found: Iterable[board.Deaths]) -> list[Deaths]:
    """The most first. What the ledger has without a reason, from earlier versions, has failed."""
    together: dict[tuple[str, str], list[board.Deaths]] = {}
    for one in found:
        reason = one.word if one.word in story.REASONS else "failed"
        together.setdefault((reason, one.kind), []).append(one)
    made = [
        Deaths(
            reason, kind, sum(one.tasks for one in some), sum(one.hour for one in some),
            datetime.fromtimestamp(max(one.newest for one in some), UTC),
        )
        for (reason, kind), some in together.items()
    ]  # fmt: skip
    return sorted(made, key=lambda one: (-one.count, one.reason, one.kind))
