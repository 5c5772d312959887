"""One message in flight. It is settled exactly once, after its effect is durable.

| how     | what the broker does                | when                                                   |
|---------|-------------------------------------|--------------------------------------------------------|
| ack     | forgets the message                 | it is done, or a copy of it is confirmed               |
| requeue | delivers it again, near the head    | the guard around its handler failed                    |
| reject  | dead-letters it by the queue's arguments | its body is too large to be held, and so to be copied |
| lost    | delivers it again                   | the channel went away first: nothing can be settled    |

A copy waits on a rung, lies in the dead letters, or is back in the tasks where it was handed back undone.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

from workqueue.contract import Queue


class ChannelLost(Exception):
    """Settling was not possible: the channel of the delivery is closed."""


Way = Literal["ack", "requeue", "reject"]
Settle = Callable[[Way], object]


class Properties(NamedTuple):
    """The basic properties that we use, or keep on a copy.

    Not `user_id`: the broker takes it only from the connection of that user. Nor `expiration`: it would make a dead
    letter vanish, and a delay queue has its own.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] = {}
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    message_type: str | None = None


NO_PROPERTIES = Properties()


@dataclass(slots=True)
class Delivery:
    """A message that this worker has and has not settled.

    `message_id`, `content_type` and `headers` are the sender's, and empty where they are not `readable`. `redelivered`
    is the broker's word that it delivered the message before; `delivery_count` how often without an ack, 0 on queues
    that do not count (classic). Of a body that is larger than is held in memory, `oversized_bytes` is the size, and
    `body` is empty: the broker alone can move such a message, so it is settled by `reject`. `wish` is the number by
    which its task was claimed.
    """

    body: bytes
    queue: str
    message_id: str | None
    content_type: str | None
    headers: Mapping[str, Any]
    readable: bool
    redelivered: bool
    delivery_count: int
    _settle: Settle = field(repr=False)
    _settled: bool = False
    properties: Properties = NO_PROPERTIES
    oversized_bytes: int | None = None
    wish: UUID | None = None

    def ack(self) -> bool:
        """Have the broker forget the message. False: the channel is gone, and the broker delivers it again."""
        return self._once("ack")

    def requeue(self) -> bool:
        """Have the broker deliver the message again. False: the channel is gone, so it does that anyway."""
        return self._once("requeue")

    def reject(self) -> bool:
        """Have the broker dead-letter the message. False: the channel is gone, and the broker delivers it again."""
        return self._once("reject")

    @property
    def settled(self) -> bool:
        return self._settled

    @property
    def again(self) -> bool:
        return self.delivery_count > 0 or self.redelivered

    def _once(self, way: Way) -> bool:
        if self._settled:
            raise AssertionError(f"message {self.message_id} settled twice")
        self._settled = True
        try:
            self._settle(way)
        except ChannelLost:
            return False
        return True


current: ContextVar[Delivery] = ContextVar("delivery")
"""The delivery whose body the generated application is handing to its handler: that gets the payload alone."""


class Publisher(Protocol):
    """What publishes a copy of a message, and returns once the broker has stored it."""

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
    ) -> None:
        """`original` are the properties of the message that is copied: the copy keeps what the arguments don't say.

        Raises NotSent, SendUnknown, BrokerUnreachable.
        """
