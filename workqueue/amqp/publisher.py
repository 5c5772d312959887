"""Publishing with confirms, over as many connections as it takes."""

import asyncio
import random
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pamqp.commands import Basic

from workqueue.amqp.connection import GONE, Link, reconnect_delay_s
from workqueue.amqp.lane import Nacked, Unroutable
from workqueue.contract import Queue
from workqueue.errors import NotSent, SendUnknown

UNENCODABLE = (TypeError, ValueError, OverflowError, struct.error)

RESEND_S = 0.05  # between a lost confirm and the next try, for the loss of the channel to be noticed


class Publisher:
    """Publishes, and returns once the broker has routed, stored and confirmed the message."""

    def __init__(self, link: Link, app_id: str) -> None:
        self._link, self._app_id = link, app_id

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
        persistent: bool = True,
        mandatory: bool = True,
        timestamp: bool = True,
    ) -> None:
        """Send until confirmed, over as many connections as it takes, always under the same message id.

        A nack is no answer for good: a queue that changes its leader gives some, and a full one until it is read. A
        connection that is lost before the confirm makes it send again, so the broker may then have the message twice.
        Raises NotSent when there is no such queue, or when `deadline_s` passed with nothing but nacks; SendUnknown
        when it passed otherwise; BrokerUnreachable when there was no broker for too long.
        """
        properties = Basic.Properties(
            content_type=content_type,
            headers=dict(headers),
            delivery_mode=2 if persistent else 1,
            message_id=message_id,
            timestamp=datetime.now(UTC) if timestamp else None,
            message_type=message_type,
            app_id=self._app_id,
        )
        nacks, tries = 0, 0
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    lane = await self._link.lane()
                    tries += 1
                    try:
                        return await lane.publish(queue.name, properties, body, mandatory=mandatory)
                    except Unroutable as error:
                        raise NotSent(str(message_id), f"there is no queue {queue.name!r} to take it") from error
                    except Nacked:
                        nacks += 1
                        await asyncio.sleep(reconnect_delay_s(nacks, random.random))
                    except UNENCODABLE:
                        if properties == (properties := _encodable(properties)):
                            raise
                    except GONE:
                        await asyncio.sleep(RESEND_S)
        except TimeoutError as error:
            if 0 < nacks == tries:
                reason = f"queue {queue.name!r} did not take it for {deadline_s:g} s; is it full?"
                raise NotSent(str(message_id), reason) from error
            raise SendUnknown(str(message_id), deadline_s) from error


def _encodable(properties: Basic.Properties) -> Basic.Properties:
    """Without what a foreign client sent, our library could read, and can't write again: text that is not UTF-8, ..."""
    kept: dict[str, Any] = {}
    named: Iterator[tuple[str, Any]] = iter(properties)
    for name, value in named:
        if name == "headers":
            value = {key: one for key, one in (value or {}).items() if _is_encodable("headers", {key: one})}
        if _is_encodable(name, value):
            kept[name] = value
    return Basic.Properties(**kept)


def _is_encodable(name: str, value: Any) -> bool:
    try:
        Basic.Properties(**{name: value}).marshal()
    except UNENCODABLE:
        return False
    return name == "headers" or not isinstance(value, bytes)
