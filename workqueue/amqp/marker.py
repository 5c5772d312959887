"""A queue that says which ledger a queue is worked with, so that two ledgers for one queue are noticed.

Each task is done once because one ledger knows it; two sides with a ledger each would do it once each. RabbitMQ
compares the arguments of a queue that is declared with those of the one that exists, in one step. So a ledger's number
stands in an argument of the marker, `x-max-length`, which else means nothing to a queue that is always empty; who comes
second with another number is refused. The marker lives for as long as a worker consumes from it, and 30 s longer.
"""

import asyncio
import logging
from functools import partial
from typing import Any, Protocol

from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelClosed, ChannelNotFoundEntity, ChannelPreconditionFailed

from workqueue.amqp.handshake import words
from workqueue.errors import LedgerDiffers

log = logging.getLogger(__name__)
_closing: set["asyncio.Future[None]"] = set()  # the event loop keeps none of its own

EXPIRES_MS = 30_000  # a worker that reconnects within this finds its marker as it was
ANSWER_S = 5.0
AGAIN_S = 1.0
"""How long a connection waits for the answer, the first and those that follow: a node that has just lost the marker's
leader gives none for long, and must not keep a worker from its own queue. The answer counts when it comes."""


class Marked(Protocol):
    """A ledger, as far as a marker tells of it."""

    @property
    def identity(self) -> int:
        """From 1 to 2**31 - 1. 0 for one that is not there: nobody else can have that one."""

    @property
    def place(self) -> str:
        """Where it is, for people."""


class Marker:
    """The marker of one queue; `name` is for what it says, once. `hold`: keep it alive. Not `make`: where there is
    none, nobody works on the queue, and who only looks makes none, or the next worker might be refused for it."""

    def __init__(self, queue: str, ledger: Marked, name: str, *, hold: bool, make: bool = True) -> None:
        self._queue, self._ledger, self._name, self._hold, self._make = queue, ledger, name, hold, make
        self._said = self._answered = False

    async def check(self, connection: AbstractConnection) -> None:
        """Declare it, and with `hold` keep it alive for as long as the connection. Raises LedgerDiffers, and what a
        lost connection raises. An answer that comes late, and is LedgerDiffers, ends the connection: the next one is
        refused by it."""
        checking = asyncio.ensure_future(self._check(connection))
        try:
            await asyncio.wait([checking], timeout=AGAIN_S if self._answered else ANSWER_S)
        except asyncio.CancelledError:
            checking.cancel()
            raise
        if checking.done():
            return await checking
        checking.add_done_callback(partial(_ended_late, connection))

    async def _check(self, connection: AbstractConnection) -> None:
        number = self._ledger.identity
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-expires": EXPIRES_MS, "x-max-length": number}
        marker = f"{self._queue}.ledger"
        late = asyncio.get_running_loop().call_later(ANSWER_S, self._say, f"no answer within {ANSWER_S:g} s")
        try:
            channel = await connection.channel(publisher_confirms=False)
            if not self._make:
                await channel.queue_declare(marker, passive=True)
                if not number:
                    raise LedgerDiffers(self._queue, self._ledger.place)
            await channel.queue_declare(marker, durable=True, arguments=arguments)
            if self._hold:
                await channel.basic_consume(marker, _ignore, no_ack=True)
            else:
                await channel.close()
            self._answered = True
        except ChannelPreconditionFailed as error:
            if "x-max-length" not in words(error):
                self._say(words(error))
                return
            raise LedgerDiffers(self._queue, self._ledger.place, since=self._answered) from error
        except ChannelNotFoundEntity:  # and it is not to be made
            return
        except (ChannelAccessRefused, ChannelClosed) as error:
            self._say(words(error))
        finally:
            late.cancel()

    def _say(self, why: str) -> None:
        if not self._said:
            self._said = True
            log.warning("%s  that all work on %s with one ledger is unchecked: %s", self._name, self._queue, why)


def _ended_late(connection: AbstractConnection, checking: "asyncio.Task[None]") -> None:
    if not checking.cancelled() and isinstance(checking.exception(), LedgerDiffers):
        closing = asyncio.ensure_future(connection.close())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


async def _ignore(message: DeliveredMessage) -> None:
    """Nothing belongs there."""
