"""Sending many: every item once and in order, never more than the window, and an account that adds up."""

import asyncio
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import pytest

from workqueue.client.submit import Account, Feed, submit
from workqueue.errors import BrokerUnreachable, InputInvalid, NoBroker, NotSent, SendUnknown, WorkQueueError

WAIT_S = 20.0


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what is waited for may happen in a thread
            await asyncio.sleep(0.001)


class Broker:
    """Confirms what it is told to, in any order; knows what it was given and how much was under way at once."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.under_way = self.most = 0
        self.open = asyncio.Event()
        self.errors: dict[int, BaseException] = {}

    async def send(self, task: int) -> None:
        self.given.append(task)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if task in self.errors:
                raise self.errors[task]
            await self.open.wait()
            await asyncio.sleep(random.choice([0, 0, 0.0005]))
        finally:
            self.under_way -= 1


@pytest.fixture
def broker() -> Broker:
    return Broker()


class Sending:
    """One `submit`, with its account and what it told."""

    def __init__(self, broker: Broker, tasks: Iterable[Any], window: int = 5) -> None:
        self.account, self.problems = Account(), list[WorkQueueError]()
        self.running = asyncio.ensure_future(
            submit(
                Feed(tasks, 2 * window), broker.send, window=window, account=self.account, problem=self.problems.append
            )
        )

    async def end(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.running


# --- Feed -------------------------------------------------------------------------------------------------------------


async def test_a_feed_gives_every_item_once_and_in_order() -> None:
    assert [item async for item in Feed(iter(range(5000)), ahead=7)] == list(range(5000))
    assert [item async for item in Feed(iter(range(0)), ahead=7)] == []


class Interleaved(deque[int]):
    """What a feed has read. At looks of the reader's that find nothing, the writer goes one step on right after."""

    def __init__(self, length: int, at_looks: Iterable[bool]) -> None:
        super().__init__()
        self._left, self._at_looks = length, iter(at_looks)
        self._go, self._gone = threading.Semaphore(0), threading.Semaphore(0)
        self.feed = Feed(self._items(length), ahead=length)
        self.feed._read = self

    def _items(self, length: int) -> Iterator[int]:
        for number in range(length):
            assert self._go.acquire(timeout=WAIT_S)
            yield number
            if number < length - 1:  # resumed, so the item has been told; the last one is followed by the end
                self._gone.release()

    def __bool__(self) -> bool:
        full = len(self) > 0
        if not full and next(self._at_looks, True):
            self.step()
        return full

    def step(self) -> None:
        """Returns when the writer has handed over an item; with the last one, when it has ended too."""
        if self._left:
            self._left -= 1
            self._go.release()
            assert self._gone.acquire(timeout=WAIT_S) if self._left else self._ended()

    def _ended(self) -> bool:
        while not self.feed._ended:
            time.sleep(0)
        return True


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("at_looks", list(product([True, False], repeat=3)))
async def test_an_item_that_comes_right_after_a_look_is_neither_lost_nor_slept_through(
    length: int, at_looks: tuple[bool, ...]
) -> None:
    between = Interleaved(length, at_looks)

    async def read() -> list[int]:
        return [item async for item in between.feed]

    reading = asyncio.ensure_future(read())
    async with asyncio.timeout(2):
        while between._left and not reading.done():
            await asyncio.sleep(0.001)
            if len(between) == 0:  # else the reader still has to notice what is there
                between.step()
        assert await reading == list(range(length))


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns after every few instructions, so that whatever can come between two of them does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
async def test_short_feeds_lose_neither_an_item_nor_their_end() -> None:
    async with asyncio.timeout(WAIT_S):
        for number in range(1500):
            length = number % 3
            assert [item async for item in Feed(iter(range(length)), ahead=1)] == list(range(length))


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("seed", range(6))
async def test_no_pace_of_writer_and_reader_makes_a_feed_miss_a_wake_up(seed: int) -> None:
    """Bursts and pauses at both ends; a lost wake-up would leave the reader waiting for ever."""
    writer, reader = random.Random(seed), random.Random(seed + 100)

    def items() -> Iterator[int]:
        for number in range(3000):
            if writer.random() < 0.02:
                time.sleep(writer.choice([0, 0.0002, 0.001]))
            yield number

    read = []
    async with asyncio.timeout(WAIT_S):
        async for item in Feed(items(), ahead=1 + seed * 3):
            read.append(item)
            if reader.random() < 0.05:
                await asyncio.sleep(reader.choice([0, 0.0002, 0.001]))
    assert read == list(range(3000))


async def test_an_iterator_that_blocks_does_not_block_the_loop() -> None:
    go, asked = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        asked.set()
        assert go.wait(WAIT_S)
        yield 2

    read: list[int] = []

    async def reader() -> None:
        async for item in Feed(items(), ahead=3):
            read.append(item)

    reading = asyncio.ensure_future(reader())
    await until(lambda: asked.is_set() and read == [1])
    for _ in range(100):  # the loop turns while the iterator blocks
        await asyncio.sleep(0)
    assert not reading.done()
    go.set()
    await asyncio.wait_for(reading, WAIT_S)
    assert read == [1, 2]


async def test_a_feed_reads_no_further_ahead_than_it_is_told() -> None:
    handed_out: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            handed_out.append(number)
            yield number

    feed = Feed(items(), ahead=10)
    await until(lambda: len(handed_out) >= 10)
    read = 0
    async for _ in feed:
        read += 1
        assert len(handed_out) <= read + 10 + 1  # and the one it has in its hand
        if read == 200:
            feed.stop()


async def test_an_error_of_the_iterator_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise OSError("the disk is on fire")

    read = []

    async def reader() -> None:
        async for item in Feed(items(), ahead=3):
            read.append(item)

    with pytest.raises(OSError, match="on fire"):
        await reader()
    assert read == list(range(20))


async def test_a_stopped_feed_ends_and_so_does_its_thread() -> None:
    before = set(threading.enumerate())
    feed = Feed(iter(int, 1), ahead=3)
    (thread,) = set(threading.enumerate()) - before
    read = 0
    async with asyncio.timeout(WAIT_S):
        async for _ in feed:
            read += 1
            if read == 50:
                feed.stop()
    assert read == 50
    await until(lambda: not thread.is_alive())


# --- submit -----------------------------------------------------------------------------------------------------------


async def test_every_task_is_sent_once_in_order_and_counted(broker: Broker) -> None:
    broker.open.set()
    sending = Sending(broker, iter(range(1000)), window=9)
    await sending.end()
    assert broker.given == list(range(1000))
    assert sending.account == Account(confirmed=1000)
    assert sending.problems == []


@pytest.mark.parametrize("window", [1, 5, 40])
async def test_the_window_is_used_and_never_exceeded(broker: Broker, window: int) -> None:
    sending = Sending(broker, range(300), window)
    await until(lambda: broker.under_way == window)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(broker.given) == window
    broker.open.set()
    await sending.end()
    assert broker.most == window
    assert sending.account == Account(confirmed=300)


async def test_refused_and_unreadable_ones_are_counted_told_and_stop_nothing(broker: Broker) -> None:
    broker.open.set()
    broker.errors = {number: NotSent(str(number), "queue full") for number in (3, 4, 50)}
    unread = InputInvalid("file:3", "not JSON")
    sending = Sending(broker, [*range(30), unread, *range(30, 60), unread])
    await sending.end()
    assert broker.given == list(range(60))
    assert sending.account == Account(confirmed=57, refused=3, unread=2)
    assert sorted(map(str, sending.problems)) == sorted(map(str, [unread, unread, *broker.errors.values()]))


async def test_one_that_stays_unconfirmed_ends_the_reading_and_those_under_way_may_finish(broker: Broker) -> None:
    broker.errors = {7: SendUnknown("7", 60)}
    sending = Sending(broker, iter(range(10**9)), window=10)
    await until(lambda: sending.account.unknown)
    given = len(broker.given)
    broker.open.set()
    await sending.end()
    assert len(broker.given) <= given + 1  # one may have been on its way
    assert sending.account == Account(confirmed=len(broker.given) - 1, unknown=1, complete=False)
    assert list(map(str, sending.problems)) == [str(broker.errors[7])]


async def test_what_no_broker_was_given_is_not_unknown(broker: Broker) -> None:
    broker.open.set()
    broker.errors = {7: NoBroker("7", "no broker within 2 s"), 8: SendUnknown("8", 2)}
    sending = Sending(broker, range(9), window=9)
    await sending.end()
    assert sending.account == Account(confirmed=7, unknown=1, unsent=1, complete=False)
    assert str(sending.account) == "7 confirmed, 0 refused, 1 unknown, 1 not sent, the rest not tried"


async def test_a_broker_out_of_reach_is_raised_once_everything_is_counted(broker: Broker) -> None:
    broker.open.set()
    broker.errors = {number: BrokerUnreachable("amqp://host", "refused") for number in range(20, 10**4)}
    sending = Sending(broker, iter(range(10**9)))
    with pytest.raises(BrokerUnreachable, match="refused"):
        await sending.end()
    account = sending.account
    assert account.confirmed == 20
    assert account.unsent == len(broker.given) - 20
    assert not account.complete
    assert "the rest not tried" in str(account)


async def test_an_error_of_the_iterator_surfaces_and_what_was_under_way_is_counted(broker: Broker) -> None:
    def tasks() -> Iterator[int]:
        yield from range(3)
        raise OSError("the disk is on fire")

    sending = Sending(broker, tasks())
    with pytest.raises(OSError, match="on fire"):
        await sending.end()
    assert sending.account.confirmed + sending.account.unknown == len(broker.given)
    assert broker.under_way == 0


async def test_an_error_of_the_iterator_leaves_an_incomplete_account(broker: Broker) -> None:
    def tasks() -> Iterator[int]:
        raise OSError("the disk is on fire")
        yield

    sending = Sending(broker, tasks())
    with suppress(OSError):
        await sending.end()
    assert not sending.account.complete


@pytest.mark.parametrize("at", [0, 3, 49])
async def test_an_error_that_nobody_expected_surfaces(broker: Broker, at: int) -> None:
    broker.open.set()
    broker.errors = {at: TypeError("a bug")}
    sending = Sending(broker, range(50))
    with pytest.raises(TypeError, match="a bug"):
        await sending.end()
    assert sending.account.unknown >= 1
    assert not sending.account.complete


async def test_cancelled_it_counts_what_was_under_way_as_unknown(broker: Broker) -> None:
    sending = Sending(broker, iter(range(10**9)), window=8)
    await until(lambda: broker.under_way == 8)
    sending.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending.end()
    assert sending.account == Account(unknown=8, complete=False)
    assert broker.under_way == 0
    assert str(sending.account) == "0 confirmed, 0 refused, 8 unknown, the rest not tried"


async def test_cancelled_while_the_iterator_blocks_it_ends_at_once(broker: Broker) -> None:
    go, asked = threading.Event(), threading.Event()

    def tasks() -> Iterator[int]:
        yield 1
        asked.set()
        go.wait(WAIT_S)

    broker.open.set()
    sending = Sending(broker, tasks())
    await until(lambda: asked.is_set() and sending.account.confirmed == 1)
    sending.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending.end()
    go.set()
    assert sending.account == Account(confirmed=1, complete=False)
