"""The clients of an application: what they tell of a send that failed, and what their threads share."""

import asyncio
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.generated.producer import Application
from tests.generated.producer.messages.json import Nap
from tests.harness import ROOT
from tests.test_silent_hosts import RECEIVE
from workqueue import Client, NotAllSent, NotSent, SendUnknown, Settings, SyncClient
from workqueue.amqp.connection import Connect, Link
from workqueue.amqp.publisher import Publisher
from workqueue.client import blocking
from workqueue.errors import BrokerUnreachable, LedgerDiffers, LedgerUnreachable, NoBroker, WorkQueueError
from workqueue.ledger import Ledger

NAP = Nap(kind="nap", seconds=0.0)
NOWHERE = Settings(amqp_uri=("amqp://127.0.0.1:1/",), ledger_url="none")


class Failing:
    """A sender whose sends fail so, from the `first` on."""

    def __init__(self, error: Exception, first: int = 0) -> None:
        self._error, self._left = error, first

    def prepare(self, task: object, **_: object) -> Any:
        return SimpleNamespace(id="i", operation="o", digest=b"", kind="k", is_new=True)

    async def send(self, outgoing: object, *, within_s: float | None) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error


def opened(error: Exception, first: int = 0) -> Client:
    client: Any = Client(Application)
    client._sender, client._settings = Failing(error, first), Settings(window=1)
    client._loop = asyncio.get_running_loop()
    return client  # type: ignore[no-any-return]


class Cut:
    """A link whose connection can't be made anew, and where one is there `at_first`, a publish loses it."""

    def __init__(self, error: WorkQueueError, at_first: bool) -> None:
        self._error, self._is_there, self.failure = error, at_first, None

    async def lane(self) -> Any:
        if not self._is_there:
            raise self._error
        self._is_there = False

        async def publish(*_: object, **__: object) -> None:
            raise ConnectionError("cut")

        return SimpleNamespace(publish=publish)


@pytest.mark.parametrize("error", [LedgerDiffers("q", "/l", since=True), BrokerUnreachable("there", "refused")])
async def test_what_was_published_is_unknown_when_the_connection_can_not_be_made_anew_and_else_not_sent(
    error: WorkQueueError,
) -> None:
    """The broker may have confirmed it, and nobody heard: to call it not sent would do it twice under another id."""
    expected: list[tuple[bool, type[WorkQueueError]]] = [(True, SendUnknown), (False, type(error))]
    for at_first, kind in expected:
        publisher: Any = Publisher(cast(Link, Cut(error, at_first)), "tested")
        with pytest.raises(kind, match=re.escape(str(error))):
            await publisher.send(
                RECEIVE.queue, b"", message_id="i", message_type="t", content_type=None, headers={}, deadline_s=60.0
            )


async def test_a_client_whose_ledger_was_replaced_has_not_sent_and_says_what_helps() -> None:
    error = LedgerDiffers("q", "/l", since=True)
    with pytest.raises(NoBroker, match="open a new client, or restart the process"):
        await opened(error).send(NAP, record=False)
    with pytest.raises(NotAllSent) as told:
        await opened(error, first=2).send_many([NAP] * 3)
    assert (len(told.value.sent), len(told.value.refused), len(told.value.unknown)) == (2, 1, 0)
    assert not told.value.complete


async def test_of_many_one_that_is_unknown_ends_the_rest() -> None:
    with pytest.raises(NotAllSent) as told:
        await opened(SendUnknown("i", 1.0), first=2).send_many([NAP] * 3)
    assert (len(told.value.sent), len(told.value.refused), len(told.value.unknown)) == (2, 0, 1)
    assert not told.value.complete


async def test_settings_of_python_have_the_ledger_of_the_project_wherever_the_process_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opened(settings: Settings, *_: object) -> Ledger:
        raise LedgerUnreachable(settings.ledger_url, "only asked for")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEDGER_URL", raising=False)
    monkeypatch.setattr("workqueue.client.shared_ledger", opened)
    for given in (Settings(), Settings.load({}), None):
        with pytest.raises(LedgerUnreachable) as told:
            await Client(Application, settings=given).open()
        assert told.value.url == f"sqlite:{ROOT}/.workqueue/ledger.db"


@pytest.mark.parametrize("error", [NotSent("i", "full"), BrokerUnreachable("there", "refused")])
async def test_what_the_broker_refused_or_was_never_given_is_not_sent(error: WorkQueueError) -> None:
    with pytest.raises(NotSent, match=r"full|refused"):
        await opened(error).send(NAP)


async def test_a_variable_that_is_no_setting_is_told_once_however_long_a_broker_is_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKQUEUE_SEND", "5")
    monkeypatch.setenv("AMQP_URI", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("LEDGER_URL", "none")
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnreachable):
        await Client(Application, wait_s=0.5).open()
    assert caplog.text.count("WORKQUEUE_SEND is no setting") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnreachable):
        await Client(Application, settings=NOWHERE).open()
    assert caplog.text == ""  # whoever gives the settings has read them


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a client was opened; each takes a while, and finds no broker."""
    times = list[float]()

    class Down(Client):
        async def open(self, settings: Settings | None = None, connect: Connect | None = None) -> None:
            times.append(time.monotonic())
            await asyncio.sleep(0.5)
            raise BrokerUnreachable("there", "refused")

    monkeypatch.setattr(blocking, "Client", Down)
    return times


def test_threads_that_wait_for_the_same_connection_share_its_failure(opens: list[float]) -> None:
    """Each in turn, the tenth request of a server would wait ten times as long as the first."""
    client, start = SyncClient(Application), threading.Barrier(10)

    def send() -> str:
        start.wait()
        with pytest.raises(WorkQueueError) as told:
            client.send(NAP)
        return str(told.value)

    with ThreadPoolExecutor(10) as pool:
        said = {one.result() for one in [pool.submit(send) for _ in range(10)]}
    assert len(said) == 1
    assert len(opens) == 1
    with pytest.raises(BrokerUnreachable):
        client.send(NAP)
    assert len(opens) == 2  # the next call tries again
