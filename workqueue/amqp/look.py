"""What lies in queues, looked at passively: nothing is declared, and nothing is taken (a get would be a delivery)."""

import asyncio
from collections.abc import Iterable

from aiormq.exceptions import ChannelClosed

from workqueue.amqp.connection import Link
from workqueue.amqp.handshake import GONE, place, words
from workqueue.amqp.lane import Declaration, Depth
from workqueue.amqp.topology import Declaring
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings

LOOK_S = 10.0


async def look(settings: Settings, queues: Iterable[str], name: str, *checks: Declaration) -> dict[str, Depth]:
    """The depth of these queues at the first broker that answers; one that does not exist, or belongs to another
    connection, is left out. `checks` are made first.

    Raises BrokerUnreachable, and as `checks`.
    """
    link, found = Link(settings, name, *checks), dict[str, Depth]()
    try:
        connection = (await link.open()).connection
        declaring = Declaring(connection)
        try:
            async with asyncio.timeout(LOOK_S):
                for queue in queues:
                    try:
                        found[queue] = await declaring.look(queue)
                    except ChannelClosed:
                        continue
                await declaring.close()
        except GONE as error:
            raise BrokerUnreachable(place(connection.url), words(error)) from error
    finally:
        await link.end()
    return found
