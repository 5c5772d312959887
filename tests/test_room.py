"""Who runs in a process: many side by side, or one alone."""

import asyncio

import pytest

from workqueue.tasks.room import Closed, Room

SOON_S = 20.0


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_any_number_run_side_by_side() -> None:
    room = Room()
    async with asyncio.timeout(SOON_S):
        for _ in range(300):
            await room.enter()


async def test_one_that_runs_alone_begins_when_the_others_have_left_and_keeps_new_ones_out() -> None:
    room = Room()
    await room.enter()
    await room.enter()
    alone = asyncio.ensure_future(room.enter_alone(SOON_S))
    await settled()
    late = asyncio.ensure_future(room.enter())
    await settled()
    room.leave()
    await settled()
    assert not alone.done()
    room.leave()
    assert await alone
    await settled()
    assert not late.done()
    room.leave_alone()
    async with asyncio.timeout(SOON_S):
        await late


async def test_two_that_run_alone_do_so_one_after_the_other() -> None:
    room = Room()
    assert await room.enter_alone(SOON_S)
    second = asyncio.ensure_future(room.enter_alone(SOON_S))
    await settled()
    assert not second.done()
    room.leave_alone()
    assert await second


async def test_one_that_waits_too_long_gives_way_and_others_enter_again() -> None:
    room = Room()
    await room.enter()
    late = asyncio.ensure_future(asyncio.wait_for(room.enter_alone(0.05), SOON_S))
    await settled()
    waiting = asyncio.ensure_future(room.enter())
    assert not await late
    async with asyncio.timeout(SOON_S):
        await waiting
    room.leave()
    room.leave()
    assert await room.enter_alone(SOON_S)


async def test_one_that_is_cancelled_while_it_waits_holds_nothing() -> None:
    room = Room()
    await room.enter()
    waiting = asyncio.ensure_future(room.enter_alone(SOON_S))
    await settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(SOON_S):
        await room.enter()


async def test_a_closed_room_lets_nobody_in_and_tells_those_who_wait() -> None:
    room = Room()
    await room.enter()
    alone = asyncio.ensure_future(room.enter_alone(SOON_S))
    await settled()
    beside = asyncio.ensure_future(room.enter())
    await settled()
    room.close()
    for waiting in (alone, beside):
        with pytest.raises(Closed):
            await asyncio.wait_for(waiting, SOON_S)
    with pytest.raises(Closed):
        await room.enter()


async def test_many_that_wait_to_be_alone_leave_others_their_turn() -> None:
    """While one task takes long, each of them waits in vain: one after the other, they would keep all others out."""
    room, entered = Room(), 0
    await room.enter()

    async def suspect() -> None:
        while True:
            assert not await room.enter_alone(0.02)
            await asyncio.sleep(0)

    async def other() -> None:
        nonlocal entered
        while True:
            await room.enter()
            entered += 1
            room.leave()
            await asyncio.sleep(0.001)

    tasks = [asyncio.ensure_future(work()) for work in (*[suspect] * 12, other, other)]
    await asyncio.sleep(0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered > 50, entered


async def test_one_that_waits_for_the_others_turn_to_end_is_told_when_the_room_closes() -> None:
    room = Room()
    assert await room.enter_alone(SOON_S)
    kept_out = asyncio.ensure_future(room.enter())
    await asyncio.sleep(0.5)
    room.leave_alone()
    await kept_out
    next_one = asyncio.ensure_future(room.enter_alone(SOON_S))
    await settled()
    room.leave()
    assert not next_one.done()  # as long as the others were kept out
    room.close()
    with pytest.raises(Closed):
        await asyncio.wait_for(next_one, 0.4)
