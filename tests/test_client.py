"""An application that sends, against a real broker and real workers."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from tests.generated.producer import Application
from tests.generated.producer.client import Client, SyncClient
from tests.generated.producer.messages.json import Digest, DigestResult, Nap, NapResult
from tests.harness import ROOT, Site
from workqueue.dev.node import Node
from workqueue.errors import (
    BrokerUnreachable,
    NotAllSent,
    NotSent,
    SendUnknown,
    TaskDead,
    TaskUnfinished,
    ThreadsMissing,
)
from workqueue.settings import Settings
from workqueue.testing import until, vhost

QUICK = Nap(kind="nap", seconds=0.0)
TO: Final = "send_errand"


def settings(site: Site) -> Settings:
    return Settings.load({"AMQP_URI": site.uri, "LEDGER_URL": site.ledger_url})


@pytest.fixture
async def queue(site: Site) -> AsyncIterator[Client]:
    async with Client(Application, settings=settings(site)) as opened:
        yield opened


@pytest.fixture
def blocking_queue(site: Site) -> Iterator[SyncClient]:
    with SyncClient(Application, settings=settings(site)) as opened:
        yield opened


async def test_a_task_waits_runs_and_gives_its_result(site: Site, queue: Client) -> None:
    handle = await queue.send(Nap(kind="nap", seconds=1.0), to=TO)
    assert await site.depth_is(1)
    assert (await handle.status()).state == "waiting"
    with pytest.raises(TaskUnfinished, match="did not finish within 0 s, it is waiting"):
        await handle.result(timeout_s=0)
    worker = await site.worker()

    async def runs() -> bool:
        return (await handle.status()).state == "running"

    await until(runs, "it runs")
    assert (await handle.status()).worker == worker.name
    assert await handle.result(timeout_s=20) == NapResult(kind="nap", attempt=1)
    status = await queue.status(handle.id)
    assert (status.state, status.worker, status.attempt) == ("done", worker.name, 1)
    assert await queue.result(handle.id) == NapResult(kind="nap", attempt=1)


async def test_what_fails_is_retrying_and_then_done_or_dead(fast: Site) -> None:
    async with Client(Application, settings=settings(fast)) as queue:
        await fast.worker()
        once, always = (
            await queue.send(Nap(kind="nap", seconds=0.0, failures=1), to=TO),
            await queue.send(Nap(kind="nap", seconds=0.0, failures=100), to=TO),
        )
        assert (await once.result(timeout_s=20)) == NapResult(kind="nap", attempt=2)
        seen: set[str] = set()

        async def dies() -> bool:
            status = await always.status()
            seen.add(status.state)
            if status.state == "retrying":
                assert status.error == "RuntimeError: told to fail 100 times"
            return status.state == "dead"

        await until(dies, "it is dead")
        assert "retrying" in seen
        with pytest.raises(TaskDead, match="failed: RuntimeError: told to fail 100 times") as dead:
            await always.result()
        assert (dead.value.reason, dead.value.attempts) == ("failed", 6)


async def test_the_same_key_or_id_is_one_task(site: Site, queue: Client) -> None:
    first, again = await queue.send(QUICK, key="order-17", to=TO), await queue.send(QUICK, key="order-17", to=TO)
    other = await queue.send(Nap(kind="nap", seconds=0.1), key="order-17", to=TO)
    assert first.id == again.id == other.id
    await site.worker()
    assert await first.result(timeout_s=20) == await again.result(timeout_s=20) == NapResult(kind="nap", attempt=1)
    with pytest.raises(TaskDead, match="conflict: its id is known with another payload"):
        await other.result(timeout_s=20)
    assert (await other.status()).reason == "conflict"
    await site.dead_letters(1)
    assert list(site.ended().values()) == [1]


async def test_a_task_that_is_not_recorded_is_unknown_until_it_is_taken(site: Site, queue: Client) -> None:
    handle = await queue.send(QUICK, record=False, to=TO)
    (of_many,) = await queue.send_many([QUICK], to=TO)
    assert [(await one.status()).state for one in (handle, of_many)] == ["unknown", "unknown"]
    assert (await queue.status(uuid4())).state == "unknown"
    await site.worker()
    await asyncio.gather(handle.result(timeout_s=20), of_many.result(timeout_s=20))


async def test_many_are_sent_in_order_and_what_was_not_is_told_apart(site: Site, queue: Client) -> None:
    wrong = Nap.model_construct(kind="nap", seconds=-1.0)
    given: list[Nap | Digest] = [QUICK, wrong, Digest(kind="digest", text="x"), QUICK, wrong]
    with pytest.raises(NotAllSent, match=r"3 tasks sent, 2 not sent, 0 unknown; task .* was refused: ") as failed:
        await queue.send_many(given, to=TO)
    assert (len(failed.value.refused), failed.value.unknown, failed.value.complete) == (2, (), True)
    await site.worker()
    results = await asyncio.gather(*(handle.result(timeout_s=20) for handle in failed.value.sent))
    assert [type(result) for result in results] == [NapResult, DigestResult, NapResult]


async def test_many_at_once_and_one_that_is_cancelled_leak_nothing(site: Site, queue: Client) -> None:
    sending = [asyncio.create_task(queue.send(QUICK, to=TO)) for _ in range(300)]
    await asyncio.sleep(0)
    for one in sending[::3]:
        one.cancel()
    done = await asyncio.gather(*sending, return_exceptions=True)
    assert sum(isinstance(one, asyncio.CancelledError) for one in done) == 100
    await queue.send(QUICK, to=TO)
    await site.worker()
    sent = [one for one in done if not isinstance(one, BaseException)]
    await asyncio.gather(*(one.result(timeout_s=30) for one in sent))
    assert set(site.ended().values()) == {1}


async def test_a_client_waits_for_a_broker_if_it_is_asked_to(own_node: Node, tmp_path: Path) -> None:
    site = Site(tmp_path, vhost(own_node))
    own_node.kill()
    with pytest.raises(BrokerUnreachable):
        async with Client(Application, settings=settings(site)):
            pass
    opening = asyncio.create_task(Client(Application, settings=settings(site), wait_s=120).open())
    await asyncio.sleep(0.5)
    assert not opening.done()
    await asyncio.to_thread(own_node.start)
    async with asyncio.timeout(60):
        await opening


async def test_while_the_broker_is_away_nothing_is_called_sent(own_node: Node, tmp_path: Path) -> None:
    """A send that raised is sent again under its id, and is done once whatever had become of the first."""
    site = Site(tmp_path, vhost(own_node))
    async with Client(Application, settings=settings(site)) as queue:
        sent = [await queue.send(QUICK, to=TO) for _ in range(20)]
        again = {uuid4() for _ in range(30)}
        sending = [asyncio.create_task(queue.send(QUICK, id=id, within_s=2.0, to=TO)) for id in again]
        own_node.kill()
        for one, id in zip(sending, again, strict=True):
            with suppress(NotSent, SendUnknown):
                sent.append(await one)
                again = again - {id}
        with pytest.raises(NotSent, match="no broker"):
            await queue.send(QUICK, within_s=1.0, to=TO)
        await asyncio.to_thread(own_node.start)
        sent += await asyncio.gather(*(queue.send(QUICK, id=id, to=TO) for id in again))
        await site.worker()
        try:
            await asyncio.gather(*(handle.result(timeout_s=60) for handle in sent))
            assert site.ended() == {str(handle.id): 1 for handle in sent}
        finally:
            site.stop()


async def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="the client is not open: use it as `async with"):
        await Client(Application).send(QUICK, to=TO)


# --- SyncClient -------------------------------------------------------------------------------------------------------


async def test_threads_share_a_blocking_client(site: Site, blocking_queue: SyncClient) -> None:
    await site.worker()
    results: list[object] = []

    def work() -> None:
        handles = [blocking_queue.send(QUICK, to=TO) for _ in range(5)]
        results.extend(handle.result(timeout_s=30) for handle in handles)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert results == [NapResult(kind="nap", attempt=1)] * 40


FORKS = """
import os, sys
from tests.generated.producer import Application
from tests.generated.producer.client import SyncClient
from tests.generated.producer.messages.json import Nap

queue = SyncClient(Application)
nap, TO = Nap(kind="nap", seconds=0.0), "send_errand"
ids = [queue.send(nap, to=TO).id]
children = []
for _ in range(3):
    here, there = os.pipe()
    child = os.fork()
    if not child:
        os.write(there, str([str(queue.send(nap, to=TO).id) for _ in range(5)]).encode())
        sys.exit(0)
    children.append((child, here))
    ids.append(queue.send(nap, to=TO).id)
for child, here in children:
    assert os.waitpid(child, 0)[1] == 0
    ids += eval(os.read(here, 4096))
for id in ids:
    queue.result(str(id), timeout_s=30)
queue.send_many([nap] * 10, to=TO)
print(len(set(map(str, ids))))
"""


async def test_a_process_that_is_forked_has_connections_of_its_own(site: Site) -> None:
    await site.worker()
    environment = {**os.environ, "AMQP_URI": site.uri, "LEDGER_URL": site.ledger_url, "PYTHONPATH": str(ROOT)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "error", "-c", FORKS], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "19\n", "")
    await until(lambda: len(site.ended()) == 29, "all are done")
    assert set(site.ended().values()) == {1}


def test_a_blocking_client_connects_when_it_is_used_and_again_after_it_was_closed(site: Site) -> None:
    queue = SyncClient(Application, settings=settings(site))
    queue.close()
    first = queue.send(QUICK, to=TO)
    queue.close()
    assert queue.status(first.id).state == "waiting"
    queue.close()
    with pytest.raises(NotAllSent, match="1 tasks sent, 1 not sent"):
        queue.send_many([QUICK, Nap.model_construct(kind="nap", seconds=-1.0)], to=TO)
    queue.close()


def test_where_threads_do_not_run_it_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Patched:
        @staticmethod
        def is_module_patched(name: str) -> bool:
            return name == "threading"

    class Uwsgi:
        opt = {"processes": b"4"}  # noqa: RUF012

    monkeypatch.setitem(sys.modules, "gevent.monkey", Patched)
    queue = SyncClient(Application, settings=settings(site))
    with pytest.raises(ThreadsMissing, match="SyncClient needs threads: gevent has replaced them"):
        queue.send(QUICK, to=TO)
    monkeypatch.delitem(sys.modules, "gevent.monkey")
    monkeypatch.setitem(sys.modules, "uwsgi", Uwsgi)
    with pytest.raises(ThreadsMissing, match="uWSGI runs none; start it with --enable-threads"):
        queue.send(QUICK, to=TO)
    Uwsgi.opt["threads"] = b"2"
    queue.send(QUICK, to=TO)
    queue.close()
