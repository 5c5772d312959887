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
    try:
        return await patiently(call, PATIENCE_S)
    except LedgerBusy as error:
        raise LedgerUnreachable(ledger.place, f"it does not answer: {error}") from error


async def patiently(call: Callable[[], Awaitable[A]], within_s: float) -> A:
    """What a ledger answers within this time. Raises LedgerBusy, LedgerLost."""
    until_s = time.monotonic() + within_s
    while True:
        try:
            return await call()
        except LedgerBusy:
            if time.monotonic() > until_s:
                raise
        await asyncio.sleep(AGAIN_S)
