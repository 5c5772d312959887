"""What a worker does beside its tasks for as long as it serves."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

Work = Callable[[], Awaitable[None]]
Fatal = Callable[[BaseException], object]


def begin(work: Work, fatal: Fatal, closing: AsyncExitStack) -> None:
    """Do it until this is closed. `fatal` is told what ends it: nobody else looks at it, and a worker without it would
    only seem to work."""
    closing.callback(asyncio.ensure_future(_do(work, fatal)).cancel)


def again(work: Work, every_s: float) -> Work:
    """It, at once, and so long after each time once more."""

    async def always() -> None:
        while True:
            await work()
            await asyncio.sleep(every_s)

    return always


async def _do(work: Work, fatal: Fatal) -> None:
    try:
        await work()
    except Exception as error:  # noqa: BLE001  # whatever it is, the worker is told
        fatal(error)
