"""Whether a broker does what it is trusted with, found out by doing it: routes, confirms, expires, dead-letters.

In two queues that are this connection's own and end with it.
"""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic

from workqueue.amqp.connection import Link
from workqueue.amqp.direct import DirectLane
from workqueue.amqp.handshake import GONE, lost, words
from workqueue.amqp.lane import Nacked, Refused, Unroutable
from workqueue.settings import Settings

ANSWER_S = 5.0
EXPIRES_MS = 50
BLOCKED_S = 0.005


@dataclass(frozen=True)
class Probe:
    """What was found. `problem` is in the broker's words, of the step that failed: to make the queues (`made`), to
    publish and have it confirmed (`confirmed`), and to have it expire and come to the second queue (`dead_lettered`).
    `refused` is the right that the user lacks for that step. `blocked`: the broker takes no messages now, an alarm for
    memory or disk is on; this is its reason."""

    made: bool = False
    refused: Literal["configure", "write", "read"] | None = None
    confirmed: bool = False
    dead_lettered: bool = False
    blocked: str | None = None
    problem: str | None = None


async def probe(settings: Settings, name: str) -> Probe:
    """Try it. Raises BrokerUnreachable."""
    link = Link(settings, name)
    try:
        lane = await link.open()
        assert isinstance(lane, DirectLane)
        return await _probe(lane, f"{name}.{secrets.token_hex(4)}")
    finally:
        await link.end()


async def blocked(settings: Settings, name: str) -> str | None:
    """Why the broker takes no messages now, in its words; None: it does, or this user may send none. It says so to a
    connection that publishes, and only there: what is published has nowhere to go. Raises BrokerUnreachable."""
    link = Link(settings, name)
    try:
        lane = await link.open()
        assert isinstance(lane, DirectLane)
        nowhere = f"{name}.{secrets.token_hex(4)}.nowhere"
        publishing = asyncio.ensure_future(lane.publish(nowhere, Basic.Properties(), b"", mandatory=False))
        publishing.add_done_callback(lambda done: done.cancelled() or done.exception())
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while not publishing.done() and lane.socket.tap.blocked is None:  # noqa: ASYNC110  # either may come
                    await asyncio.sleep(BLOCKED_S)
        publishing.cancel()
        return lane.socket.tap.blocked
    finally:
        await link.end()


async def _probe(lane: DirectLane, name: str) -> Probe:
    first, second = f"{name}.probe", f"{name}.probe.dead"
    back: dict[str, Any] = {
        "x-message-ttl": EXPIRES_MS,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": second,
    }
    right: Literal["configure", "write", "read"] = "configure"
    try:
        with lost():
            await lane.channel.queue_declare(second, exclusive=True)
            right = "read"  # of a queue that dead-letters, and to write to where that goes
            await lane.channel.queue_declare(first, exclusive=True, arguments=back)
    except GONE as error:
        if right == "read" and "access to exchange" in words(error):
            right = "write"
        return Probe(refused=right if isinstance(error, ChannelAccessRefused) else None, problem=words(error))
    try:
        async with asyncio.timeout(ANSWER_S):
            await lane.publish(first, Basic.Properties(message_id=name, delivery_mode=2), b"probe", mandatory=True)
    except (TimeoutError, Unroutable, Nacked, Refused, *GONE) as error:
        blocked = lane.socket.tap.blocked
        said = f"no confirm within {ANSWER_S:g} s" if isinstance(error, TimeoutError) else words(error)
        return Probe(made=True, blocked=blocked, problem=said)
    with suppress(TimeoutError, *GONE):
        async with asyncio.timeout(ANSWER_S):
            while True:
                if (await lane.channel.basic_get(second)).delivery_tag:
                    return Probe(made=True, confirmed=True, dead_lettered=True)
                await asyncio.sleep(EXPIRES_MS / 1000)
    return Probe(made=True, confirmed=True, problem=f"what expired did not come within {ANSWER_S:g} s")
