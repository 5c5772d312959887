"""Who runs in this process: any number of tasks side by side, or one alone.

A process that dies takes every task in it along, and nobody can tell which one did it. A task that is under suspicion
therefore runs alone: a death then speaks against it and nothing else.
"""

import asyncio
import time
from contextlib import suppress


class Closed(Exception):
    """The process drains: nothing begins any more."""


class Room:
    """For the tasks of one event loop. Each `enter` or `enter_alone` that returned (True) is followed by a `leave`.

    Those who had to wait for one that was alone, or waited to be, have as long for themselves after it: many such, one
    after the other, would keep all others out for good.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._alone = asyncio.Lock()  # held by the one that runs alone, or waits for the others to leave
        self._held_s, self._kept_out, self._others_until_s = 0.0, False, 0.0
        self._changed = asyncio.Event()
        self._closed = False

    async def enter(self) -> None:
        """Run beside others; waits while one runs alone, or waits to. Raises Closed."""
        while self._alone.locked() and not self._closed:
            self._kept_out = True
            await self._wait()
        if self._closed:
            raise Closed
        self._inside += 1

    async def enter_alone(self, within_s: float) -> bool:
        """Run with nobody beside: no other enters until `leave`. False: others did not leave in time, or it is their
        turn; they go on, and nothing is held. Raises Closed."""
        try:
            async with asyncio.timeout(within_s):
                await self._alone.acquire()
                while (others_s := self._others_until_s - time.monotonic()) > 0 and not self._closed:
                    self._alone.release()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(others_s):
                            await self._wait()
                    await self._alone.acquire()
                self._held_s, self._kept_out = time.monotonic(), False
                try:
                    while self._inside and not self._closed:
                        await self._wait()
                    if self._closed:
                        raise Closed
                except BaseException:
                    self._release()
                    raise
        except TimeoutError:
            return False
        return True

    def leave(self) -> None:
        self._inside -= 1
        self._change()

    def leave_alone(self) -> None:
        self._release()

    def close(self) -> None:
        """Let nobody in any more; those who wait are told so."""
        self._closed = True
        self._change()

    def _release(self) -> None:
        now_s = time.monotonic()
        if self._kept_out:
            self._others_until_s = now_s + (now_s - self._held_s)
        self._alone.release()
        self._change()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
