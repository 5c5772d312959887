"""Why a worker ends."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

R = TypeVar("R")


class Ending:
    """Why the worker ends: nothing, a signal, or an error; the first counts."""

    def __init__(self) -> None:
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self, error: BaseException | None = None) -> None:
        if self._told.done():
            return
        if error is not None:
            self._told.set_exception(error)
        else:
            self._told.set_result(None)

    async def wait(self) -> None:
        """Raises the error. Whoever gives up waiting ends nothing for the others."""
        await asyncio.shield(self._told)

    async def unless(self, step: Awaitable[R]) -> R | None:
        """What the step returns or raises; None if the worker is told to end first, and the step is cancelled then."""
        stepping = asyncio.ensure_future(step)
        try:
            both: list[asyncio.Future[Any]] = [stepping, self._told]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return stepping.result() if stepping.done() else None
        finally:
            stepping.cancel()
            await asyncio.gather(stepping, return_exceptions=True)
