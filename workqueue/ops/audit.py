"""Who operates, and what the ledger keeps of that."""

import json
import os
import socket
from collections.abc import Mapping
from getpass import getuser

from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy


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
    try:
        await ledger.board.note(operator(), what, as_text(why), json.dumps(told))
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"its audit can't be written: {error}") from error
