"""When a connection is opened once more, and when not."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from workqueue.amqp import connection
from workqueue.amqp.connection import STUMBLES, Link
from workqueue.amqp.frames import Closed
from workqueue.amqp.lane import Lane
from workqueue.amqp.topology import Topology
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings

LANE = cast(Lane, SimpleNamespace(is_open=True))


@pytest.mark.parametrize(
    ("code", "failures", "tries"), [(541, 2, 3), (541, STUMBLES, STUMBLES + 1), (541, 99, STUMBLES + 1), (320, 99, 1)]
)
async def test_only_a_broker_that_stumbles_is_asked_again_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, code: int, failures: int, tries: int
) -> None:
    """RabbitMQ 3.10 closes with 541 when many declare a quorum queue that is just being made."""
    link, tried = Link(Settings(), "w", Topology((), "w")), 0

    async def opened(_: str) -> Lane:
        nonlocal tried
        tried += 1
        link._socket = cast(Any, SimpleNamespace(tap=SimpleNamespace(closed=Closed(code, "INTERNAL_ERROR"))))
        if tried <= failures:
            raise BrokerUnreachable("there", "INTERNAL_ERROR")
        return LANE

    monkeypatch.setattr(link, "_open", opened)
    monkeypatch.setattr(connection, "STUMBLE_S", 0.0)
    if failures < tries:
        assert await link.open() is LANE
    else:
        with pytest.raises(BrokerUnreachable):
            await link.open()
    assert tried == tries
