"""An answer of PostgreSQL that is lost: what it was to say has happened, and whoever asks again is told so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from tests.test_ledger_pool import locked
from tests.test_ledger_postgres import ASKED, LONG_S, OLD_CLAIM, port_of, role, run, url
from workqueue.ledger import Claimed, LedgerBusy, Taken
from workqueue.ledger.postgres import PostgresLedger
from workqueue.testing import until
from workqueue.testing.proxy import Proxy

__all__ = ["role", "url"]  # fixtures


@asynccontextmanager
async def cut_off(url: str) -> AsyncIterator[tuple[PostgresLedger, Proxy]]:
    """A ledger that hears nothing of its server from now on, and whose server hears it."""
    async with Proxy(port_of(url)) as proxy:
        ledger = await PostgresLedger(url.replace(f":{port_of(url)}/", f":{proxy.port}/")).set_up()
        try:
            held = uuid4()
            await ledger.claim(uuid4(), "w", LONG_S, **ASKED)
            with locked(url, held):  # so that there are two connections: one waits for this row
                waits = asyncio.ensure_future(ledger.claim(held, "w", LONG_S, **ASKED))
                await asyncio.sleep(0)  # it has asked
                assert isinstance(await ledger.claim(uuid4(), "w", LONG_S, **ASKED), Claimed)
            await waits
            assert len(proxy.flows) == 2
            for flow in proxy.flows:
                flow.to_client.open.clear()
            yield ledger, proxy
        finally:
            await ledger.close()


async def lost(
    proxy: Proxy, url: str, ids: Sequence[UUID], asking: Sequence[Awaitable[object]], state: str = "running"
) -> None:
    """Cut the connections once all of these are in this state at the server."""
    told = ", ".join(f"'{task_id}'" for task_id in ids)
    count = f"SELECT count(*) FROM workqueue_task WHERE state = '{state}' AND id IN ({told})"
    tasks = [asyncio.ensure_future(one) for one in asking]
    await until(lambda: run(url, count) == [(len(ids),)], "the server has done what was asked")
    for flow in proxy.flows:
        flow.cut()
    assert {type(answer) for answer in await asyncio.gather(*tasks, return_exceptions=True)} == {LedgerBusy}


@pytest.mark.parametrize("many", [1, 30], ids=["one", "a batch"])
async def test_a_claim_whose_answer_was_lost_is_there_for_who_asks_again(url: str, many: int) -> None:
    """The first is a statement of its own. It gets no answer, and those that wait for it are the next one: so do they
    not."""
    requests = {uuid4(): uuid4() for _ in range(many)}
    async with cut_off(url) as (ledger, proxy):

        def claims() -> list[Awaitable[object]]:
            return [ledger.claim(task, "w", LONG_S, **ASKED, request=request) for task, request in requests.items()]

        await lost(proxy, url, list(requests), claims())
        assert await asyncio.gather(*claims()) == [Claimed(fence=1, crashes=())] * many
        for task_id in requests:
            assert isinstance(await ledger.claim(task_id, "w", LONG_S, **ASKED), Taken)
            assert await ledger.complete(task_id, 1, 1, None)


async def test_a_claim_whose_answer_was_lost_is_its_own_after_its_lease_too(url: str) -> None:
    """The server was away for longer: nobody died, and that is what is counted."""
    task_id, request = uuid4(), uuid4()
    async with cut_off(url) as (ledger, proxy):
        await lost(proxy, url, [task_id], [ledger.claim(task_id, "w", -1.0, **ASKED, request=request)])
        assert await ledger.claim(task_id, "w", -1.0, **ASKED, request=request) == Claimed(fence=1, crashes=())
        other = await ledger.claim(task_id, "other", LONG_S, **ASKED, request=uuid4())
        assert isinstance(other, Claimed)
        assert other.fence == 2
        assert other.crashes is not None
        assert [crash.worker for crash in other.crashes] == ["w"]
        assert isinstance(await ledger.claim(task_id, "w", LONG_S, **ASKED, request=request), Taken)


async def test_a_claim_whose_answer_was_lost_is_adopted_by_one(url: str) -> None:
    """The message that tells of it may be there twice. Who has adopted it may ask again."""
    task_id, lost, adopters = uuid4(), uuid4(), [uuid4() for _ in range(5)]
    ledgers = [await PostgresLedger(url).set_up() for _ in adopters]
    assert await ledgers[0].claim(task_id, "w", LONG_S, **ASKED, request=lost) == Claimed(fence=1, crashes=())

    async def claims() -> list[object]:
        pairs = zip(ledgers, adopters, strict=True)
        return await asyncio.gather(
            *(ledger.claim(task_id, "w", LONG_S, **ASKED, request=own, adopts=lost) for ledger, own in pairs)
        )

    first = await claims()
    assert sorted(type(one).__name__ for one in first) == ["Claimed", *["Taken"] * 4]
    assert Claimed(fence=2, crashes=()) in first
    assert not await ledgers[0].release(task_id, 1)  # what the one before has still on its way changes nothing
    assert [type(one) for one in await claims()] == [type(one) for one in first]
    assert isinstance(await ledgers[0].claim(task_id, "w", LONG_S, **ASKED, request=lost), Taken)
    for ledger in ledgers:
        await ledger.close()


async def test_a_claim_that_a_worker_of_the_version_before_has_taken_over_is_not_the_request_s(url: str) -> None:
    """That version knows of no requests, and leaves the last one's number where it was."""
    task_id, request = uuid4(), uuid4()
    ledger = await PostgresLedger(url).set_up()
    assert isinstance(await ledger.claim(task_id, "w", -1.0, **ASKED, request=request), Claimed)
    assert run(url, OLD_CLAIM.format(id=task_id, lease_s=60)) == [(2,)]
    assert isinstance(await ledger.claim(task_id, "w", LONG_S, **ASKED, request=request), Taken)
    await ledger.close()


@pytest.mark.parametrize("state", ["given back", "released", "completed", "buried", "revived"])
async def test_a_request_is_over_with_the_claim_that_it_made(url: str, state: str) -> None:
    task_id, request = uuid4(), uuid4()
    ledger = await PostgresLedger(url).set_up()
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED, request=request) == Claimed(fence=1, crashes=())
    if state == "given back":
        assert await ledger.release(task_id, 1)
    elif state == "released":
        assert await ledger.release(task_id, 1, next_s=LONG_S)
    elif state == "completed":
        assert await ledger.complete(task_id, 1, 1, None)
    else:
        assert await ledger.bury(task_id, 1, 1, "no")
    if state == "revived":
        assert await ledger.revive(task_id, 1)
        assert await ledger.claim(task_id, "w", LONG_S, **ASKED, request=request) == Claimed(fence=3, crashes=())
    else:
        assert not isinstance(await ledger.claim(task_id, "w", LONG_S, **ASKED, request=request), Claimed)
    await ledger.close()


@pytest.mark.parametrize("many", [1, 30], ids=["one", "a batch"])
async def test_a_completion_whose_answer_was_lost_is_told_as_done_to_who_asks_again(url: str, many: int) -> None:
    ids = [uuid4() for _ in range(many)]
    async with cut_off(url) as (ledger, proxy):
        other = await PostgresLedger(url).set_up()
        for task_id in ids:
            assert isinstance(await other.claim(task_id, "w", LONG_S, **ASKED), Claimed)
        await other.close()
        await lost(proxy, url, ids, [ledger.complete(task_id, 1, 1, None) for task_id in ids], state="done")
        assert all(await asyncio.gather(*(ledger.complete(task_id, 1, 1, None) for task_id in ids)))
        assert not await ledger.complete(ids[0], 2, 1, None)
