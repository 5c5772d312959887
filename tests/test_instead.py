"""While a test has a broker in memory, whoever opens a client gets that one, and nobody a real one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.generated.producer import Application as Producer
from tests.generated.producer.client import Client, SyncClient
from tests.generated.producer.messages import json as sent
from tests.generated.worker import Application
from tests.generated.worker.messages.json import Digest, NapResult, Task
from workqueue import Settings, TaskContext
from workqueue.client.instead import Place, instead
from workqueue.errors import BrokerUnreachable
from workqueue.testing import MemoryQueue

WAIT_S = 20.0
NAP = sent.Nap(kind="nap", seconds=0.0)
NOWHERE = Settings(amqp_uri=("amqp://127.0.0.1:1/",), ledger_url="none", reconnect_s=0.2, window=7)


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not go to the one in memory finds none."""
    monkeypatch.setenv("AMQP_URI", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("WORKQUEUE_RECONNECT_S", "0.1")


async def nap(task: Task, context: TaskContext[Any]) -> NapResult:
    return NapResult(kind="nap", attempt=context.attempt)


HANDLERS = {"do_errand": nap, "do_chore": nap}


@pytest.mark.parametrize("settings", [None, NOWHERE], ids=["by the environment", "with settings of its own"])
async def test_a_client_that_the_application_opens_itself_sends_to_the_queue_in_memory(
    settings: Settings | None,
) -> None:
    async with MemoryQueue(Application, HANDLERS, None), Client(Producer, settings=settings) as queue:
        handle = await queue.send(NAP, to="send_errand")
        assert await handle.result(timeout_s=WAIT_S) == sent.NapResult(kind="nap", attempt=1)
    with pytest.raises(BrokerUnreachable):
        await Client(Producer).open()


async def test_the_clients_of_a_workers_lifespan_and_of_a_handler_do_too() -> None:
    @asynccontextmanager
    async def resources(settings: Settings) -> AsyncIterator[Client]:
        async with Client(Producer) as queue:
            yield queue

    async def handle(task: Task, context: TaskContext[Client]) -> NapResult:
        if isinstance(task.payload, Digest):
            follows = await context.resources.send(NAP, to="send_chore")
            assert (await follows.result(timeout_s=WAIT_S)) is not None
        return NapResult(kind="nap", attempt=context.attempt)

    handlers = {"do_errand": handle, "do_chore": handle}
    async with MemoryQueue(Application, handlers, None, lifespan=resources) as queue, Client(Producer) as client:
        begun = await client.send(sent.Digest(kind="digest", text="x"), to="send_errand")
        await begun.result(timeout_s=WAIT_S)
    assert len(queue.events) == 2


def test_a_blocking_client_made_at_import_goes_there_for_as_long_as_a_test_has_one() -> None:
    mine = SyncClient(Producer)
    for _ in range(2):  # one test, and the next
        with MemoryQueue(Application, HANDLERS, None) as queue:
            for _ in range(3):
                mine.send(NAP, to="send_errand").result(timeout_s=WAIT_S)
            assert len(queue.events) == 3
    with pytest.raises(BrokerUnreachable):
        mine.send(NAP, to="send_errand")


async def test_a_client_of_queues_that_no_test_has_a_worker_for_is_refused() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError

    with (
        instead(Place(NOWHERE, never, frozenset({"errands"}))),
        pytest.raises(RuntimeError, match="no worker for chores: open a MemoryQueue for that one too"),
    ):
        await Client(Producer).open()
