"""A coroutine in a context of its own: to whoever awaits it, it is as if that were not so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from typing import Any

import pytest

from workqueue.process.contexts import Within, apart
from workqueue.tasks import stack

seen: ContextVar[str] = ContextVar("seen", default="nothing")


async def test_each_call_sees_what_its_caller_set_and_leaves_nothing_of_its_own() -> None:
    @apart
    async def call(own: str) -> list[str]:
        before = seen.get()
        seen.set(own)
        await asyncio.sleep(0)
        return [before, seen.get(), await asyncio.create_task(inherited())]

    async def inherited() -> str:
        return seen.get()

    seen.set("the caller's")
    assert await call("first") == ["the caller's", "first", "first"]
    assert await call("second") == ["the caller's", "second", "second"]
    assert seen.get() == "the caller's"


async def test_calls_that_go_on_beside_one_another_see_their_own() -> None:
    @apart
    async def call(own: str) -> str:
        seen.set(own)
        for _ in range(3):
            await asyncio.sleep(0)
        return seen.get()

    async def one(own: str) -> str:
        return await call(own)

    assert list(await asyncio.gather(one("a"), one("b"), one("c"))) == ["a", "b", "c"]


async def test_one_call_may_be_within_another() -> None:
    @apart
    async def call(depth: int) -> list[str]:
        seen.set(f"{seen.get()}.{depth}")
        await asyncio.sleep(0)
        inner = await call(depth - 1) if depth else []
        return [*inner, seen.get()]

    assert await call(2) == ["nothing.2.1.0", "nothing.2.1", "nothing.2"]


@pytest.mark.parametrize("error", [KeyError("x"), StopAsyncIteration(), GeneratorExit(), SystemExit(3)])
async def test_what_it_raises_comes_out_as_it_is(error: BaseException) -> None:
    @apart
    async def call() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)) as raised:
        await call()
    assert raised.value is error


async def test_a_cancellation_reaches_it_in_its_context_and_may_be_swallowed() -> None:
    @apart
    async def call() -> str:
        seen.set("its own")
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            task.uncancel()
        await asyncio.sleep(0)
        return seen.get()

    async def main() -> tuple[str, bool]:
        return await call(), asyncio.current_task() is task

    task = asyncio.create_task(main())
    await asyncio.sleep(0.01)
    task.cancel()
    assert await task == ("its own", True)


async def test_a_time_limit_around_it_or_in_it_is_kept() -> None:
    @apart
    async def call() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(20)
        await asyncio.sleep(20)
        return "too late"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await call()


async def test_what_is_thrown_away_is_closed_in_its_context() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            told.append(seen.get())

    @apart
    async def call() -> None:
        seen.set("its own")
        async with opened():
            await asyncio.sleep(20)

    async def main() -> None:
        await call()

    told: list[str] = []
    coroutine: Any = main()
    coroutine.send(None)
    coroutine.close()
    assert told == ["its own"]


async def test_where_it_waits_can_be_seen_from_outside() -> None:
    async def deep() -> None:
        await asyncio.sleep(20)

    @apart
    async def call() -> None:
        await deep()

    async def main() -> None:
        await call()

    task = asyncio.create_task(main())
    await asyncio.sleep(0)
    names = [frame.f_code.co_name for frame in stack.awaited(task.get_coro())]
    task.cancel()
    assert names == ["sleep", "deep", "call", "main"]


async def test_it_runs_in_the_context_that_is_given() -> None:
    async def call() -> str:
        await asyncio.sleep(0)
        return seen.get()

    seen.set("the caller's")
    assert await Within(Context(), call()) == "nothing"
