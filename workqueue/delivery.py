"""One message in flight. It is settled exactly once, after its effect is durable.

| how     | what the broker does                | when                                                   |
|---------|-------------------------------------|--------------------------------------------------------|
| ack     | forgets the message                 | it is done, or a copy on a rung or a dead letter is confirmed |
| requeue | delivers it again, near the head    | handed back undone at the end of a drain               |
| lost    | delivers it again                   | the channel went away first: nothing can be settled    |
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from workqueue.contract import Queue


class ChannelLost(Exception):
    """Settling was not possible: the channel of the delivery is closed."""


Settle = Callable[[bool], object]


@dataclass(slots=True)
class Delivery:
    """A message that this worker has and has not settled.

    `message_id`, `content_type` and `headers` are the sender's, and empty where they are not `readable`. `redelivered`
    is the broker's word that it delivered the message before; `delivery_count` how often without an ack, 0 on queues
    that do not count (classic).
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

    def ack(self) -> bool:
        """Have the broker forget the message. False: the channel is gone, and the broker delivers it again."""
        return self._once(True)

    def requeue(self) -> bool:
        """Have the broker deliver the message again. False: the channel is gone, so it does that anyway."""
        return self._once(False)

    @property
    def settled(self) -> bool:
        return self._settled

    def _once(self, ack: bool) -> bool:
        if self._settled:
            raise AssertionError(f"message {self.message_id} settled twice")
        self._settled = True
        try:
            self._settle(ack)
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
    ) -> None:
        """Raises NotSent, SendUnknown, BrokerUnreachable."""
