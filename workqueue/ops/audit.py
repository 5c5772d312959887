"""Who operates, and what the ledger keeps of that."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from typing import Any

from workqueue.client.asking import asked
from workqueue.ledger import Ledger


@dataclass(frozen=True)
class Action:
    """What an operator did: `told` is how many, and what became of them."""

    at: datetime
    who: str
    what: str
    why: str
    told: dict[str, Any]


def operator() -> str:
    """Who does this, and where."""
    try:
        user = getuser()
    except (KeyError, OSError, ImportError):  # in a container a number may be all there is
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def as_text(given: str) -> str:
    """What somebody gave as a reason: bytes that are no text are shown as such."""
    return given.encode("utf-8", "backslashreplace").decode()


async def note(ledger: Ledger, what: str, why: str, told: Mapping[str, object]) -> None:
    """Keep in the ledger that somebody did this. Raises LedgerUnreachable."""
    await asked(ledger, lambda: ledger.board.note(operator(), what, as_text(why), json.dumps(told)))


async def actions(ledger: Ledger, newest: int) -> list[Action]:
    """The newest so many, the newest last. Raises LedgerUnreachable."""
    notes = await asked(ledger, lambda: ledger.board.notes(newest))
    return [
        Action(datetime.fromtimestamp(one.at, UTC), one.who, one.what, one.why, json.loads(one.told))
        for one in reversed(notes)
    ]
