"""The event loop of our own processes and threads: uvloop's, but for how it looks up the name of a host.

uvloop does that in libuv, and as it is closed it waits for each answer. A resolver that is silent takes its time: the
interpreter ends meanwhile where the loop is a thread's, and the process crashes; and of an answer that comes too late,
asyncio says that its exception was never retrieved. Here it is a thread that nobody waits for.
"""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

import uvloop


class Loop(uvloop.Loop):
    async def getaddrinfo(self, *of: Any, **hints: Any) -> Any:
        """As `socket.getaddrinfo`."""
        found: asyncio.Future[Any] = self.create_future()

        def tell(answer: Any, error: Exception | None) -> None:
            if found.done():  # it is cancelled: nobody waits any more
                return
            if error is None:
                found.set_result(answer)
            else:
                found.set_exception(error)

        def look_up() -> None:
            answer, raised = None, None
            try:
                answer = socket.getaddrinfo(*of, **hints)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the caller's
                raised = error
            with suppress(RuntimeError):  # the loop is closed
                self.call_soon_threadsafe(tell, answer, raised)

        threading.Thread(target=look_up, name="resolver", daemon=True).start()
        return await found


def new_event_loop() -> Loop:
    return Loop()
