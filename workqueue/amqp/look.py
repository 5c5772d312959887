"""What lies in queues, looked at passively: nothing is declared, and nothing is taken (a get would be a delivery)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from workqueue.amqp.handshake import GONE, lost, silent, words
from workqueue.amqp.lane import Depth
from workqueue.errors import BrokerUnreachable
from workqueue.settings import hide_password

if TYPE_CHECKING:
    import aio_pika

LOOK_S = 5.0


async def look(uris: Iterable[str], queues: Iterable[str]) -> dict[str, Depth]:
    """The depth of these queues at the first broker that answers; one that does not exist is left out.

    Raises BrokerUnreachable.
    """
    import aio_pika  # few processes ever look, and each would take longer to start

    tried, cause = "", "none is named"
    for uri in uris:
        tried = hide_password(uri)
        try:
            with silent():
                connection = await aio_pika.connect(uri, timeout=LOOK_S)
        except GONE as error:
            cause = words(error)
            continue
        async with connection:
            return {queue: depth for queue in queues if (depth := await _depth(connection, queue)) is not None}
    raise BrokerUnreachable(tried, cause)


async def _depth(connection: "aio_pika.abc.AbstractConnection", queue: str) -> Depth | None:
    try:
        with lost():
            channel = await connection.channel()  # one each: the broker closes it over a queue that is not there
            declared = (await channel.declare_queue(queue, passive=True, timeout=LOOK_S)).declaration_result
    except GONE:
        return None
    return Depth(declared.message_count or 0, declared.consumer_count or 0)
