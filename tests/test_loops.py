"""The event loop of our own: it looks up names without waiting for a resolver that is silent."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from tests.harness import ROOT
from workqueue.amqp.connection import Link
from workqueue.errors import BrokerUnreachable
from workqueue.process.loops import new_event_loop
from workqueue.settings import Settings

SILENT = """
import socket, sys, time
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
from tests.generated.producer import Application
from tests.generated.producer.client import SyncClient
from tests.generated.producer.messages.json import Nap
from workqueue import WorkQueueError
from workqueue.amqp import connection
connection.CONNECT_S = connection.CONNECT_EACH_S = 0.3
try:
    with SyncClient(Application) as queue:
        queue.send(Nap(kind="nap", seconds=0.0), to="send_errand", within_s=1)
except WorkQueueError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_blocking_client_ends_with_its_error_though_the_resolver_is_silent() -> None:
    uri = "amqp://u:p@one.example.com/,amqp://u:p@two.example.com/"
    environment = {**os.environ, "AMQP_URI": uri, "LEDGER_URL": "none", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SILENT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert "no answer within 0.3 s" in done.stdout
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_that_comes_too_late_is_told_to_nobody(
    fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, over = threading.Event(), threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        go_on.wait(20)
        over.set()
        if fails:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().getaddrinfo("a.example.com", 5672), 0.05)
        go_on.set()
        await asyncio.to_thread(over.wait)
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.DEBUG, "asyncio"), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(ask())
    assert "never retrieved" not in caplog.text


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one refuses; at the second somebody answers who is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as closed:
            refusing = closed.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", each)) for each in (refusing, port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"SMTP")

        threading.Thread(target=answer).start()
        with (
            asyncio.Runner(loop_factory=new_event_loop) as runner,
            pytest.raises(BrokerUnreachable, match="it is not an AMQP broker, it says 'SMTP'"),
        ):
            runner.run(opened(port))


async def opened(port: int) -> None:
    await Link(Settings(amqp_uri=(f"amqp://somewhere:{port}/",)), "x").open()
