"""Clients while the broker is killed and comes back: what they say of a send is so."""

import asyncio
import gc
import logging
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.generated.producer import Application
from tests.generated.producer.messages.json import Nap
from tests.harness import Site
from workqueue import Client, SendUnknown, Settings, SyncClient
from workqueue.dev.node import Node
from workqueue.errors import NoBroker
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker

NAP = Nap(kind="nap", seconds=0.0)
CLIENTS = 50
PAUSE_S = 0.2  # between the sends of one client
WITHIN_S = 1.5  # shorter than a node takes to boot
TO = "send_errand"


class Senders:
    """Clients that send one task after the other, each under an id of its own."""

    def __init__(self, settings: Settings) -> None:
        self.clients = [Client(Application, settings=settings, name=f"c{number}") for number in range(CLIENTS)]
        self.sent, self.unknown, self.not_sent = set[UUID](), set[UUID](), set[UUID]()
        self.stopped = asyncio.Event()

    async def send(self, client: Client) -> None:
        while not self.stopped.is_set():
            id = uuid4()
            try:
                await client.send(NAP, to=TO, id=id, within_s=WITHIN_S, record=False)
                self.sent.add(id)
            except SendUnknown as error:
                self.unknown.add(UUID(error.message_id))
            except NoBroker as error:
                self.not_sent.add(UUID(error.message_id))
            await asyncio.sleep(PAUSE_S)

    async def send_again(self) -> None:
        for id in self.unknown:
            await self.clients[0].send(NAP, to=TO, id=id, record=False)


@pytest.fixture
def settings(own_node: Node, tmp_path: Path) -> Settings:
    return Settings(amqp_uri=(vhost(own_node),), ledger_url=f"sqlite:{tmp_path / 'ledger.db'}")


async def test_while_the_broker_is_killed_each_send_is_told_truly_and_done_once(
    own_node: Node, tmp_path: Path, settings: Settings
) -> None:
    site, senders = Site(tmp_path, settings.amqp_uri[0]), Senders(settings)
    try:
        await site.worker()
        await asyncio.gather(*(client.open() for client in senders.clients))
        sending = [asyncio.create_task(senders.send(client)) for client in senders.clients]
        await asyncio.sleep(2.5)  # a quorum queue younger than a second may come back without a leader
        own_node.kill()
        before = len(senders.sent)
        await until(lambda: len(senders.unknown) + len(senders.not_sent) >= CLIENTS, "all have tried in vain")
        await asyncio.to_thread(own_node.start)
        await until(lambda: len(senders.sent) >= before + 2 * CLIENTS, "they send again")
        senders.stopped.set()
        await asyncio.gather(*sending)
        await senders.send_again()
        await site.all_end([{"id": str(id)} for id in senders.sent | senders.unknown])  # and none that was not sent
    finally:
        await asyncio.gather(*(client.close() for client in senders.clients))
        site.stop()
        site.tell()


async def test_an_applications_log_says_that_the_broker_went_and_came_back_and_nothing_else(
    own_node: Node, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with SyncClient(Application, settings=settings) as blocking:
        async with Client(Application, settings=settings) as client:
            await client.send(NAP, to=TO)
            await asyncio.to_thread(blocking.send, NAP, to=TO)
            await asyncio.sleep(2.0)
            under_way = [asyncio.create_task(client.send(NAP, to=TO)) for _ in range(20)]
            await asyncio.sleep(0)
            await asyncio.to_thread(own_node.kill)
            under_way.append(asyncio.create_task(client.send(NAP, to=TO)))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(own_node.start)
            await asyncio.gather(*under_way)
            await asyncio.to_thread(blocking.send, NAP, to=TO)
    gc.collect()  # what nobody has asked for its exception says so when it goes
    await asyncio.sleep(0)
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {record.name for record in loud} <= {"workqueue.amqp.connection"}, caplog.text
    assert "is connected again" in caplog.text


async def test_at_debug_too_an_application_hears_nothing_of_the_amqp_library(
    node: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    there = Settings(amqp_uri=(vhost(node),), ledger_url=f"sqlite:{tmp_path / 'ledger.db'}")
    async with Client(Application, settings=there) as client:
        await client.send(NAP, to=TO)
    with SyncClient(Application, settings=there) as blocking:
        await asyncio.to_thread(blocking.send, NAP, to=TO)
    await asyncio.sleep(0.1)
    assert [record.getMessage() for record in caplog.records if record.name.startswith(("aiormq", "aio_pika"))] == []
