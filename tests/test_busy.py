"""A consumer that has something in hand is busy, and not deaf."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.test_silent_hosts import LOADED, RECEIVE
from workqueue.amqp.consumer import Consumer
from workqueue.amqp.lane import Declaration
from workqueue.amqp.wire import Wire
from workqueue.delivery import Delivery, current
from workqueue.errors import BrokerUnreachable
from workqueue.settings import Settings
from workqueue.testing import until
from workqueue.testing.memory.broker import Broker, Message
from workqueue.testing.memory.lane import MemoryConnection, open_memory

QUEUE = RECEIVE.queue.name
CHANNEL: Any = SimpleNamespace(bindings=SimpleNamespace(amqp=SimpleNamespace(queue=RECEIVE.queue)))


@dataclass
class Place:
    """Consumers of one queue on a broker that can be cut off. Each keeps what it gets until it is told to `end`."""

    broker: Broker = field(default_factory=lambda: Broker(None))
    opened: list[MemoryConnection] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    held: dict[int, Delivery] = field(default_factory=dict)
    ended: dict[int, asyncio.Event] = field(default_factory=dict)
    is_away = False

    async def connect(self, uri: str, settings: Settings, name: str, declares: Iterable[Declaration]) -> Any:
        if self.is_away:
            raise BrokerUnreachable(uri, "refused")
        self.opened.append(await open_memory(self.broker, uri, settings, name, declares))
        return self.opened[-1]

    def cut(self) -> None:
        for lane in reversed(self.opened[-1]._lanes):  # so that nothing goes to one that is cut off next
            lane.end("cut")

    async def take(self, number: int) -> None:
        async for _ in self.consumers[number].recv():
            self.held[number], self.ended[number] = current.get(), asyncio.Event()
            await self.ended[number].wait()
            del self.held[number]

    async def send(self, count: int) -> None:
        for _ in range(count):
            await self.broker.publish(QUEUE, Message(b"x"))
        await until(lambda: len(self.held) == count, "each is in hand")


@asynccontextmanager
async def consuming(count: int) -> AsyncIterator[tuple[Place, Wire]]:
    place = Place()
    wire = Wire(Settings(), LOADED, "one", lambda error: None, None, cast(Any, place.connect))
    for _ in range(count):
        place.consumers.append(await wire.create_consumer(channel=CHANNEL))  # type: ignore[call-arg]
        await place.consumers[-1].start()
    taking = [asyncio.ensure_future(place.take(number)) for number in range(count)]
    await asyncio.sleep(0)
    yield place, wire
    for task in taking:
        task.cancel()
    await asyncio.wait(taking)
    await wire.close()


async def test_a_queue_is_consumed_while_a_task_from_before_a_cut_still_runs_and_the_others_are_back() -> None:
    async with consuming(3) as (place, wire):
        await place.send(1)
        place.cut()
        await until(lambda: len(place.held) == 2, "another takes what went back")
        assert wire.not_consumed() == {}


async def test_a_queue_whose_consumers_are_all_busy_since_before_a_cut_is_not_consumed_until_its_broker_is_back() -> (
    None
):
    async with consuming(2) as (place, wire):
        await place.send(2)
        place.is_away = True
        place.cut()
        assert wire.not_consumed() == {QUEUE: ""}  # nobody has tried yet
        await wire.open_again()
        (why,) = wire.not_consumed().values()
        assert re.fullmatch(r"the broker is out of reach: amqp://\S+: refused", why)
        place.is_away = False
        await wire.open_again()
        assert (wire.not_consumed(), len(place.opened)) == ({}, 2)
        await wire.open_again()
        assert len(place.opened) == 2
        place.ended[0].set()
        await until(lambda: place.consumers[0].is_consuming, "it consumes again")
        assert len(place.opened) == 2


async def test_a_queue_is_not_consumed_where_the_one_consumer_that_is_free_can_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(*_: object) -> None:
        raise ConnectionError("refused")

    async with consuming(2) as (place, wire):
        await place.send(1)
        monkeypatch.setattr(Consumer, "_subscribe", refused)
        place.cut()
        await until(lambda: len(place.opened) > 1, "it tries")
        assert wire.not_consumed() == {QUEUE: ""}
        monkeypatch.undo()
        await until(lambda: wire.not_consumed() == {}, "it consumes again")
