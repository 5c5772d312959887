"""A blocking client that is closed, or used in the middle of a call: nobody waits for ever, and everybody is told.

No broker is needed: the client behind it is one whose broker says nothing.
"""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from tests.generated.producer import Application
from tests.generated.producer.messages.json import Nap
from tests.harness import ROOT
from workqueue import Client, NotAllSent, SendUnknown, Settings, SyncClient
from workqueue.client import blocking, running

NAP = Nap(kind="nap", seconds=0.0)
WAIT_S = 20.0  # for what takes milliseconds
CLOSED = "the client was closed"


class Sender:
    """Sends wait until there is an answer: none at first."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = 0

    def prepare(self, task: object, **_: object) -> Any:
        return SimpleNamespace(id=uuid4(), operation="o", digest=b"", kind="k", is_new=True)

    async def send(self, outgoing: object, *, within_s: float | None) -> None:
        self.waiting += 1
        await asyncio.shield(self.answer)


class Fake(Client):
    """`Client` with that sender. Opening takes until there is a `way`."""

    made: list["Fake"] = []  # noqa: RUF012
    way = threading.Event()
    close_s, opens, closes = 0.0, 0, 0

    async def open(self) -> None:
        Fake.made.append(self)
        Fake.opens += 1
        while not Fake.way.is_set():  # noqa: ASYNC110  # that of another thread
            await asyncio.sleep(0.01)
        self.silent = Sender()
        self._sender = cast(Any, self.silent)
        self._settings, self._loop = Settings(window=10), asyncio.get_running_loop()

    async def status(self, id: object) -> Any:
        self.silent.waiting += 1
        await asyncio.Event().wait()

    async def close(self) -> None:
        Fake.closes += 1
        await asyncio.sleep(Fake.close_s)
        await super().close()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncClient]:
    monkeypatch.setattr(blocking, "Client", Fake)
    for name, value in {"made": [], "way": threading.Event(), "close_s": 0.0, "opens": 0, "closes": 0}.items():
        monkeypatch.setattr(Fake, name, value)
    monkeypatch.setattr(running, "ENDS_S", 0.1)
    Fake.way.set()
    queue = SyncClient(Application)
    yield queue
    queue.close()


@pytest.fixture
def threads() -> Iterator[Callable[..., Future[Any]]]:
    """Makes a call in a thread of its own."""
    pool = ThreadPoolExecutor(30)
    yield pool.submit
    pool.shutdown(wait=False)


def until(is_so: Callable[[], object]) -> None:
    late_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < late_s
        time.sleep(0.005)


def waiting(count: int) -> Callable[[], bool]:
    return lambda: bool(Fake.made) and hasattr(Fake.made[-1], "silent") and Fake.made[-1].silent.waiting == count


# --- what is under way ends -------------------------------------------------------------------------------------------


def test_each_call_that_is_under_way_when_the_client_is_closed_ends(client: SyncClient, threads: Any) -> None:
    sends = [threads(client.send, NAP) for _ in range(10)]
    asked = [threads(client.status, uuid4()) for _ in range(10)]
    until(waiting(20))
    client.close()
    for one in sends:
        with pytest.raises(SendUnknown, match=rf"task \S{{36}} was not confirmed within .* s \({CLOSED}\)"):
            one.result(WAIT_S)
    for one in asked:
        with pytest.raises(RuntimeError, match=CLOSED):
            one.result(WAIT_S)


def test_many_that_are_under_way_then_are_accounted_for(client: SyncClient, threads: Any) -> None:
    many = threads(client.send_many, [NAP] * 30)
    until(waiting(10))
    client.close()
    with pytest.raises(NotAllSent, match="0 tasks sent, 1 not sent, 10 unknown, the rest not tried") as told:
        many.result(WAIT_S)
    assert not told.value.complete


def test_many_are_accounted_for_when_it_is_closed_between_two_lots(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tasks() -> Iterator[Nap]:
        yield from [NAP] * 4
        client.close()
        yield NAP

    async def send(self: object, outgoing: object, *, within_s: float | None) -> None: ...

    monkeypatch.setattr(blocking, "AT_ONCE", 2)
    monkeypatch.setattr(Sender, "send", send)
    with pytest.raises(NotAllSent, match=f"4 tasks sent, 1 not sent, 0 unknown, the rest not tried.*{CLOSED}") as told:
        client.send_many(tasks())
    assert len(told.value.sent) == 4


def test_what_the_closing_makes_of_a_call_comes_before_the_cut(client: SyncClient, threads: Any) -> None:
    sending = threads(client.send, NAP, record=False)
    until(waiting(1))
    sender, loop = Fake.made[0].silent, Fake.made[0]._loop
    loop.call_soon_threadsafe(loop.call_later, 0.02, sender.answer.set_result, None)
    client.close()
    handle = sending.result(WAIT_S)
    assert str(handle.id) in repr(handle)


def test_no_call_is_lost_however_near_it_is_to_the_end(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def status(self: Fake, id: object) -> str:
        await asyncio.sleep(0.002)
        return "known"

    monkeypatch.setattr(Fake, "status", status)
    stop, told = threading.Event(), set[str]()

    def ask() -> None:
        while not stop.is_set():
            try:
                told.add(str(client.status(uuid4())))
            except RuntimeError as error:
                told.add(str(error))

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for thread in asking:
        thread.start()
    for _ in range(30):
        time.sleep(0.01)
        client.close()
    stop.set()
    for thread in asking:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in asking)
    assert told <= {"known", CLOSED}
    assert str(client.status(uuid4())) == "known"  # a call after it has a new connection


def test_a_connection_that_does_not_close_keeps_nobody(
    client: SyncClient, threads: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running, "CLOSE_S", 0.2)
    Fake.close_s = 600.0
    sending = threads(client.send, NAP)
    until(waiting(1))
    client.close()
    with pytest.raises(SendUnknown, match=CLOSED):
        sending.result(WAIT_S)
    assert "the connections did not close within 0.2 s" in caplog.text


def test_why_it_could_not_be_closed_is_raised(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(self: object) -> None:
        raise OSError("no")

    client.open()
    with monkeypatch.context() as patched:
        patched.setattr(Fake, "close", close)
        with pytest.raises(OSError, match="no"):
            client.close()


# --- while it is opened -----------------------------------------------------------------------------------------------


def test_who_waits_for_the_opening_is_told_when_it_is_closed(client: SyncClient, threads: Any) -> None:
    Fake.way.clear()
    calls = [threads(client.send, NAP) for _ in range(5)]
    until(lambda: client._running is not None and client._running._waiting == 5)
    client.close()
    for call in calls:
        with pytest.raises(RuntimeError, match=CLOSED):
            call.result(WAIT_S)
    Fake.way.set()
    client.open()
    assert Fake.opens == 2


@pytest.fixture
def handled() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Has a signal handler do this, once the first opening has begun."""
    before = signal.getsignal(signal.SIGUSR1)

    def when_it_opens(do: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: do())

        def send() -> None:
            until(lambda: Fake.opens)
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGUSR1)

        threading.Thread(target=send, daemon=True).start()

    yield when_it_opens
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(WAIT_S)
def test_a_signal_handler_may_close_it_in_the_middle_of_the_first_call(client: SyncClient, handled: Any) -> None:
    Fake.way.clear()
    handled(client.close)
    with pytest.raises(RuntimeError, match=CLOSED):
        client.open()


@pytest.mark.timeout(WAIT_S)
def test_a_signal_handler_may_use_it_in_the_middle_of_the_first_call(client: SyncClient, handled: Any) -> None:
    Fake.way.clear()
    done = list[str]()

    def handler() -> None:
        Fake.way.set()
        client.open()
        done.append("handler")

    handled(handler)
    client.open()
    assert (done, Fake.opens) == (["handler"], 1)


@pytest.mark.timeout(WAIT_S)
def test_an_opening_that_nobody_waits_for_any_more_is_given_up(client: SyncClient, handled: Any) -> None:
    class Interrupted(Exception): ...

    def interrupt() -> None:
        raise Interrupted

    Fake.way.clear()
    handled(interrupt)
    with pytest.raises(Interrupted):
        client.open()
    until(lambda: client._running is not None and client._running.is_ended)
    Fake.way.set()
    client.open()
    assert Fake.opens == 2


# --- in its own thread ------------------------------------------------------------------------------------------------


def test_it_is_closed_by_what_is_collected_in_its_own_thread(client: SyncClient) -> None:
    class Holder:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            began_s = time.monotonic()
            client.close()
            took_s.append(time.monotonic() - began_s)

    took_s = list[float]()
    client.open()
    Holder()
    Fake.made[0]._loop.call_soon_threadsafe(gc.collect)
    until(lambda: Fake.closes == 1)
    assert took_s[0] < 1.0
    client.open()
    assert Fake.opens == 2


# --- at the process's end ---------------------------------------------------------------------------------------------

FAKE = """
import asyncio
from workqueue import Client
from workqueue.client import blocking

class Fake(Client):
    async def open(self):
        await asyncio.sleep(self._wait_s)
    async def status(self, id):
        return "known"

blocking.Client = Fake
"""
PROCESS = """
import atexit, threading, time
{first}
from tests.generated.producer import Application
from workqueue import SyncClient

exec({fake!r}, {{}})  # elsewhere: while it is used, what is in its module is not collected
{then}
"""


def ended(first: str, then: str) -> tuple[str, str, float]:
    """What a process that does this printed, and how long it took to end."""
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROCESS.format(first=first, fake=FAKE, then=then)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=WAIT_S,
        check=True,
    )  # fmt: skip
    return done.stdout, done.stderr, time.monotonic() - began_s


def test_a_call_of_what_is_collected_at_the_very_end_is_told_so() -> None:
    then = """
queue = SyncClient(Application)
class Late:
    def __del__(self, queue=queue):
        try:
            queue.status("x")
        except RuntimeError as error:
            print(error, flush=True)
        queue.close()
late = Late()
queue.status("x")
"""
    assert ended("", then)[:2] == ("the process is at its end: its clients are closed\n", "")


def test_a_late_exit_handler_is_served_or_told_at_once() -> None:
    first = """
def late():
    try:
        print(queue.status("x"))
    except RuntimeError as error:
        print("no thread")
atexit.register(late)
"""
    out, err, _ = ended(first, "queue = SyncClient(Application); queue.status('x')")
    assert err == ""
    assert out == "known\n" or (sys.version_info >= (3, 12) and out == "no thread\n")  # which may be refused then


def test_a_thread_that_waits_for_a_broker_does_not_hold_up_the_end() -> None:
    then = """
queue = SyncClient(Application, wait_s=15)
threading.Thread(target=queue.open, daemon=True).start()
while queue._running is None:
    time.sleep(0.01)
threading.excepthook = lambda args: None
"""
    assert ended("", then)[2] < 10.0
