"""A worker that is cut off from its ledger leaves the tasks to those who reach it."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness import QUEUE, RECEIVE, Site, simulate
from tests.test_ledger_postgres import port_of, url
from tests.test_processor import CONTRACT, TASK, TASKS, Bench
from workqueue.amqp.wire import Wire
from workqueue.errors import LedgerLost
from workqueue.ledger import LedgerBusy
from workqueue.observe.health import Health
from workqueue.settings import Settings
from workqueue.tasks.story import REQUEST
from workqueue.testing import until
from workqueue.testing.proxy import Proxy
from workqueue.worker.breaker import AWAY_S, Breaker

__all__ = ["url"]


class Around:
    """A breaker, and what it did to its worker. `error` is what a claim meets."""

    def __init__(self, away_s: float) -> None:
        self.did: list[str] = []
        self.error: Exception | None = LedgerBusy("no answer")
        self.health = Health(starting=False, ledger_s=time.monotonic() - away_s)
        around: Any = self
        self.breaker = Breaker("w1", ("bills", "mail"), around, around, around, self.health)

    async def check(self) -> None:
        if self.error is not None:
            raise self.error

    async def pause(self, queue: str, by: str) -> None:
        self.did.append(f"pause {queue}")

    def resume(self, queue: str, by: str) -> None:
        self.did.append(f"resume {queue}")

    def cut_off(self, is_cut_off: bool) -> None:
        self.did.append(f"cut off: {is_cut_off}")


async def test_a_ledger_that_is_away_for_long_is_said_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    around = Around(away_s=AWAY_S + 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await around.breaker.look()
    assert around.did == ["pause bills", "pause mail", "cut off: True"]  # nothing comes that would go back at once
    around.error = None
    await around.breaker.look()
    await around.breaker.look()
    assert around.did[3:] == ["cut off: False", "resume bills", "resume mail"]
    assert [record.getMessage() for record in caplog.records] == [
        "w1  takes no tasks: the ledger has not answered for 11 s: no answer",
        "w1  takes tasks again: the ledger answers",
    ]


async def test_a_ledger_that_is_back_soon_stops_nobody() -> None:
    around = Around(away_s=AWAY_S - 5)
    await around.breaker.look()
    around.error = None
    await around.breaker.look()
    assert around.did == []


@pytest.mark.parametrize("answers", [False, True])
async def test_a_worker_is_ready_where_tasks_can_be_claimed(answers: bool) -> None:
    around = Around(away_s=AWAY_S + 1)
    if answers:
        around.error = None
    await around.breaker.look()
    assert (around.health.not_ready() == []) == answers


async def test_a_ledger_that_is_lost_to_claims_ends_an_idle_worker() -> None:
    around = Around(away_s=0.0)
    around.error = LedgerLost("/a", "it was moved")
    with pytest.raises(LedgerLost):
        await around.breaker.look()


@pytest.mark.parametrize("tells", [True, False])
async def test_what_is_not_claimed_goes_back_once_the_worker_is_cut_off(tells: bool) -> None:
    """By a contract whose headers can't tell of the wish, nobody else could go on with a claim that was made."""
    headers = {"type": "object", "additionalProperties": tells, "properties": {"x-attempts": True}}
    bench = Bench(receive=replace(RECEIVE, message=replace(RECEIVE.message, headers_schema=headers)))
    bench.ledger.busy["claim"] = 1000
    taking = asyncio.ensure_future(bench.take(TASK))
    await until(lambda: len(bench.ledger.requests) > 1, "it is asked for again")
    bench.guard.claims.cut_off(True)
    if tells:
        assert (await taking)[-2:] == [TASKS, "ack"]
        assert bench.publisher.copies[0]["headers"] == {REQUEST: str(bench.ledger.requests[0])}
    else:
        asked = len(bench.ledger.requests)
        await until(lambda: len(bench.ledger.requests) > asked + 1, "it is asked for still")
        bench.ledger.busy["claim"] = 0
        assert (await taking)[-1] == "ack"
        assert TASKS not in bench.log


async def test_a_queue_that_two_have_paused_is_taken_from_once_both_have_it_resumed() -> None:
    wire = Wire(Settings(), CONTRACT, "w1", list[Any]().append)
    consumer = SimpleNamespace(queue=QUEUE, did=list[str]())

    async def pause() -> None:
        consumer.did.append("pause")

    consumer.pause, consumer.resume = pause, lambda: consumer.did.append("resume")
    wire._consumers.append(consumer)  # type: ignore[arg-type]
    await wire.pause(QUEUE, "operators")
    await wire.pause(QUEUE, "the ledger")
    wire.resume(QUEUE, "operators")
    assert consumer.did == ["pause", "pause"]
    wire.resume(QUEUE, "the ledger")
    assert consumer.did[2:] == ["resume"]


async def test_a_worker_that_alone_is_cut_off_from_its_ledger_leaves_its_tasks_to_the_others(
    site: Site, url: str
) -> None:
    """Each task is done once, by the other one, and then by both again."""
    site.environment["LEDGER_URL"] = url
    async with Proxy(port_of(url)) as proxy:
        through = url.replace(f":{port_of(url)}/", f":{proxy.port}/")
        cut_off = await site.worker("cut-off", "--concurrency", "5", LEDGER_URL=through)
        other = await site.worker("other")
        proxy.stall()
        tasks = simulate(40)
        await site.send(tasks)
        await until(lambda: len(site.ended()) > 20, "the other one works")
        await until(lambda: len(site.ended()) == 40, "it has done them all", 4 * AWAY_S)
        assert site.ended() == Counter(task["id"] for task in tasks)
        assert "takes no tasks: the ledger has not answered" in cut_off.text()
        proxy.resume()
        await until(lambda: cut_off.says("takes tasks again"), "it is back", 2 * AWAY_S)
        other.process.terminate()
        await other.ended()
        more = simulate(5)
        await site.send(more)
        await until(lambda: len(site.ended()) == 45, "it works alone")
    assert site.ended() == Counter(task["id"] for task in [*tasks, *more])
