"""Exceptions in an event loop that nobody awaits."""

import asyncio
from typing import Any


def unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler of a loop. At its end these are of connections that are just closed: their loss was told by
    who used them."""
    if "asyncio.run() shutdown" not in str(context.get("message")):
        loop.default_exception_handler(context)
