"""Questions to a ledger that may be busy for a moment: with a task's completion, or a restart."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Ledger, LedgerBusy

PATIENCE_S = 10.0
AGAIN_S = 0.05

A = TypeVar("A")


async def asked(ledger: Ledger, call: Callable[[], Awaitable[A]]) -> A:
    """What it answers within some seconds. Raises LedgerUnreachable, LedgerLost."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except LedgerBusy as error:
            if time.monotonic() > until_s:
                raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error
        await asyncio.sleep(AGAIN_S)
