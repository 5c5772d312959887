"""Publishing with confirms, over as many connections as it takes."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pamqp.commands import Basic

from workqueue.amqp.connection import Link, reconnect_delay_s
from workqueue.amqp.copies import UNENCODABLE, encodable, fitted
from workqueue.amqp.frames import Closed
from workqueue.amqp.handshake import GONE
from workqueue.amqp.lane import HeaderTooLarge, Lane, Nacked, Refused, Unroutable
from workqueue.amqp.topology import Topology
from workqueue.contract import Queue
from workqueue.delivery import NO_PROPERTIES, Properties
from workqueue.errors import BrokerUnreachable, ContractInvalid, NoBroker, NotSent, SendUnknown, WorkQueueError
from workqueue.patience import Patience

log = logging.getLogger(__name__)

RESEND_S = 0.05  # between a lost confirm and the next try, for the loss of the channel to be noticed
RESTORES = 3  # a queue that vanishes as often as it is declared has somebody who does not want it
NACKED_S = 2.0  # a queue that changes its leader nacks for less


@dataclass(slots=True)
class Message:
    """One message on its way: what is published, and what became of the tries.

    Of its headers, those that are `foreign` give way where not all fit in a frame.
    """

    queue: Queue
    properties: Basic.Properties
    body: bytes
    mandatory: bool
    foreign: Mapping[str, Any]
    deadline_s: float
    tries: int = 0
    nacks: int = 0
    restored: int = 0

    def refused(self, reason: str) -> NotSent:
        return NotSent(str(self.properties.message_id), reason)

    def unknown(self, why: str = "") -> SendUnknown:
        return SendUnknown(str(self.properties.message_id), self.deadline_s, why)

    def late(self, link: Link) -> NotSent | SendUnknown:
        """What to raise when its time is over."""
        if not self.tries:
            why = f": {link.failure.tried}: {link.failure.cause}" if link.failure is not None else ""
            return NoBroker(str(self.properties.message_id), f"no broker within {self.deadline_s:g} s{why}")
        if 0 < self.nacks == self.tries:
            return self.refused(f"queue {self.queue.name!r} did not take it for {self.deadline_s:g} s; is it full?")
        return self.unknown()

    def fit(self, ours: Set[str], most_bytes: int) -> bool:
        """Shorten its headers to this size; whether that changed anything."""
        headers: Mapping[str, Any] = self.properties.headers or {}
        ours = ours | {name for name, value in headers.items() if self.foreign.get(name) is not value}
        before, self.properties = self.properties, fitted(self.properties, ours, most_bytes)
        return before != self.properties


class Publisher:
    """Publishes, and returns once the broker has routed, stored and confirmed the message.

    With a `topology`, a queue that has vanished is declared again. `ours` are the headers that a copy never loses.

    A refusal closes the channel, and does not say which of the messages in flight it was over. Each of them is then
    published again with no other in flight, and the others wait meanwhile: the one over which the channel is closed
    then is refused, the rest go on.
    """

    def __init__(
        self, link: Link, app_id: str, *, topology: Topology | None = None, ours: Set[str] = frozenset()
    ) -> None:
        self._link, self._app_id, self._topology, self._ours = link, app_id, topology, ours
        self._suspects, self._alone, self._cleared = 0, asyncio.Lock(), asyncio.Event()
        self._declared_s: dict[str, float] = {}
        self._restoring = asyncio.Lock()
        self._nacked: Patience | None = None

    async def send(
        self,
        queue: Queue,
        body: bytes,
        *,
        message_id: str | None,
        message_type: str,
        content_type: str | None,
        headers: Mapping[str, Any],
        deadline_s: float,
        original: Properties = NO_PROPERTIES,
        persistent: bool = True,
        mandatory: bool = True,
        timestamp: bool = True,
    ) -> None:
        """Send until confirmed, over as many connections as it takes, always under the same message id.

        A nack is not final: a queue that changes its leader gives some, and a full one until it is read. A connection
        that is lost before the confirm makes it send again, so the broker may then have the message twice. Headers of
        `original` that do not fit in a frame give way.
        Raises NotSent when the broker refuses the message, when there is no such queue, or when `deadline_s` passed
        with nothing but nacks; NoBroker, which is one, when it passed without a connection; SendUnknown when it passed
        otherwise, or the connection could not be made anew after it was published. What `Link.lane` raises before that
        means that nothing was: BrokerUnreachable, when there was no broker for longer than `reconnect_s`, and
        ContractInvalid.
        """
        properties = Basic.Properties(
            content_type=content_type,
            content_encoding=original.content_encoding,
            headers=dict(headers),
            delivery_mode=2 if persistent else 1,
            priority=original.priority,
            correlation_id=original.correlation_id,
            reply_to=original.reply_to,
            message_id=message_id,
            timestamp=datetime.now(UTC) if timestamp else None,
            message_type=message_type,
            app_id=self._app_id,
        )
        message = Message(queue, properties, body, mandatory, original.headers, deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                try:
                    await self._until_confirmed(message, alone=False)
                except Refused:
                    await self._by_itself(message)
        except TimeoutError as error:
            raise message.late(self._link) from error

    async def _by_itself(self, message: Message) -> None:
        self._suspects += 1
        self._cleared.clear()
        try:
            async with self._alone:
                await self._until_confirmed(message, alone=True)
        finally:
            self._suspects -= 1
            if not self._suspects:
                self._cleared.set()

    async def _until_confirmed(self, message: Message, *, alone: bool) -> None:
        """Raises Refused if the message may be the one that was refused, and is not `alone`."""
        while True:
            lane = await self._lane(message)
            if self._suspects and not alone:
                await self._cleared.wait()
                continue
            message.tries += 1
            began_s = time.monotonic()
            try:
                await lane.publish(message.queue.name, message.properties, message.body, mandatory=message.mandatory)
                self._nacked = None
                return
            except Unroutable as error:
                await self._restore(message, began_s, error)
            except Nacked:
                message.nacks += 1
                self._say_nacked(message.queue.name)
                await asyncio.sleep(reconnect_delay_s(message.nacks, random.random))
            except Refused as error:
                if error.alone:
                    raise message.refused(in_words(error.why)) from error
                if not alone:
                    raise
            except HeaderTooLarge as error:
                if not message.fit(self._ours, error.most_bytes):
                    raise message.refused(str(error)) from error
            except UNENCODABLE:
                if message.properties == (kept := encodable(message.properties)):
                    raise
                message.properties = kept
            except GONE:
                await asyncio.sleep(RESEND_S)

    async def _lane(self, message: Message) -> Lane:
        """Raises SendUnknown in place of what `Link.lane` does once the message was published."""
        try:
            return await self._link.lane()
        except (BrokerUnreachable, ContractInvalid) as error:
            if not message.tries:
                raise
            raise message.unknown(str(error)) from error

    async def _restore(self, message: Message, began_s: float, error: Unroutable) -> None:
        """Declare the queue that did not exist when the message was published; many may find that at once."""
        name = message.queue.name
        gone = f"there is no queue {name!r} to take it"
        topology = self._topology
        if topology is None or message.restored == RESTORES:
            raise message.refused(gone) from error
        message.restored += 1
        async with self._restoring:
            if self._declared_s.get(name, 0.0) > began_s:
                return
            try:
                await self._link.declare(lambda connection: topology.restore(connection, message.queue))
            except ContractInvalid:
                raise
            except WorkQueueError as refusal:
                raise message.refused(f"{gone}: {refusal}") from refusal
            except GONE:
                return
            self._declared_s[name] = time.monotonic()
            log.warning("%s  queue %s was gone, and is declared again", self._app_id, name)

    def _say_nacked(self, name: str) -> None:
        self._nacked = self._nacked or Patience(NACKED_S)
        if self._nacked.due():
            log.warning("%s  waits: queue %s takes no messages now; is it full?", self._app_id, name)


def in_words(why: Closed) -> str:
    """What a refusal of a publish means, and the way out."""
    way_out = ""
    if why.code == 403:
        way_out = "; let the user write to that exchange: rabbitmqctl set_permissions"
    elif "larger than" in why.text:
        way_out = "; send less, or raise the broker's max_message_size"
    return f"{why.text} ({why.code}){way_out}"
