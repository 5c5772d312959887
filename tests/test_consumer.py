"""What a consumer has not taken yet, and how long it waits for it."""

import asyncio
import time

import pytest

from workqueue.amqp.frames import Arrival
from workqueue.amqp.session import Inbox

WAIT_S = 20.0


async def test_what_arrives_is_taken_in_its_order_and_at_once() -> None:
    inbox, arrivals = Inbox(), [Arrival(tag, redelivered=False) for tag in range(3)]
    for arrived in (*arrivals, None):
        inbox.put(arrived)
    assert [await inbox.get(WAIT_S) for _ in range(4)] == [*arrivals, None]


async def test_what_comes_after_the_end_is_not_lost_behind_it() -> None:
    inbox, (first, last) = Inbox(), (Arrival(tag, redelivered=False) for tag in range(2))
    for arrived in (first, None, last):
        inbox.put(arrived)
    assert [await inbox.get(WAIT_S) for _ in range(3)] == [first, None, last]


async def test_each_wait_is_as_long_as_it_was_told_to_be_however_many_came_before() -> None:
    inbox, loop, arrived = Inbox(), asyncio.get_running_loop(), Arrival(1, redelivered=False)
    for _ in range(3):
        loop.call_later(0.03, inbox.put, arrived)
        assert await inbox.get(0.05) is arrived
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inbox.get(0.05), WAIT_S)
        assert 0.04 < time.monotonic() - began < WAIT_S / 2
    inbox.put(arrived)
    assert await inbox.get(0.05) is arrived


async def test_a_wait_that_was_given_up_takes_nothing_with_it() -> None:
    inbox, arrived = Inbox(), Arrival(1, redelivered=False)
    waiting = asyncio.ensure_future(inbox.get(WAIT_S))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    inbox.put(arrived)
    assert await inbox.get(0.01) is arrived
