"""What was sent is told to the ledger: by one statement for all that was confirmed at about the same time."""

import asyncio
import logging
import time

from workqueue.client.waiting import CLOSED
from workqueue.errors import LedgerLost
from workqueue.ledger import Ledger, LedgerBusy, Sent
from workqueue.patience import Patience

PATIENCE_S = 1.0  # with a ledger that is busy, and was not till now: another process has it locked, or it restarts
AGAIN_S = 0.02

log = logging.getLogger(__name__)


class Recording:
    """For one ledger; `name` is the process, as lines of the log have it."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger, self._name = ledger, name
        self._sent: list[tuple[Sent, asyncio.Future[bool]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._failing: Patience | None = None
        self._busy, self._closed = False, False

    async def record(self, sent: Sent, within_s: float) -> None:
        """Return once the ledger knows that the task waits, or can't be told, or has not answered in time: it was sent,
        and that changes nothing of it. A line says so then, and its status is unknown until it is told after all."""
        if self._closed:
            return self._say(CLOSED)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        late = loop.call_later(within_s, _end, ended, False)
        self._sent.append((sent, ended))
        if self._writing is None or self._writing.done():  # somebody may cancel all tasks of a loop, and go on
            self._writing = loop.create_task(self._write())
        try:
            if not await ended:
                self._say("the ledger does not answer")
        finally:
            late.cancel()

    async def close(self) -> None:
        """Tell the ledger what it was to be told before, if that takes a moment at most. Whoever waits goes on."""
        self._closed = True
        if (writing := self._writing) is not None:
            try:
                await asyncio.wait([writing], timeout=PATIENCE_S)
            finally:
                if writing.cancel():
                    self._say(CLOSED)
            await asyncio.wait([writing])
        for _, ended in self._sent:
            _end(ended, True)

    async def _write(self) -> None:
        """Begins a turn of the loop after the first was sent: by then the others are there."""
        try:
            while self._sent:
                sent, self._sent = self._sent, []
                try:
                    await self._tell([task for task, _ in sent])
                except Exception as error:  # noqa: BLE001  # whatever it is, they were sent
                    self._say(error)
                finally:
                    for _, ended in sent:
                        _end(ended, True)
        finally:
            self._writing = None

    async def _tell(self, sent: list[Sent]) -> None:
        """Raises LedgerBusy where it stays so, and at once while it does; and LedgerLost."""
        until_s = time.monotonic() + (0.0 if self._busy else PATIENCE_S)
        while True:
            try:
                await self._ledger.record(sent)
            except LedgerBusy:
                if time.monotonic() >= until_s:
                    self._busy = True
                    raise
            else:
                self._busy = False
                return self._say_again()
            await asyncio.sleep(AGAIN_S)

    def _say(self, why: Exception | str) -> None:
        self._failing = self._failing or Patience()
        if self._failing.due():
            trace = None if isinstance(why, LedgerBusy | LedgerLost | str) else why
            log.warning("%s  tasks are sent, and not recorded: %s", self._name, why, exc_info=trace)

    def _say_again(self) -> None:
        if self._failing is not None and not self._closed:
            log.warning("%s  what is sent is recorded again", self._name)
            self._failing = None


def _end(waiting: "asyncio.Future[bool]", in_time: bool) -> None:
    if not waiting.done():
        waiting.set_result(in_time)
