"""What counts as a crash, and what does not: only a worker that died with one task alone speaks against that task."""

import asyncio
import json
import signal
import time
from collections import Counter
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from tests.harness import Site, simulate
from tests.operators import ask
from tests.test_guarantees import WORKERS, keep_alive
from workqueue import codec
from workqueue.ledger import Claimed
from workqueue.ledger.sqlite import SqliteLedger
from workqueue.process.signals import SAME_S
from workqueue.testing import until

KILLER = str(WORKERS / "killer.py")


def delays(site: Site) -> list[float]:
    return [rung.delay_s for rung in site.receive.rungs]


async def test_a_task_that_kills_its_worker_convicts_no_task_beside_it(fast: Site) -> None:
    supervisor = asyncio.ensure_future(keep_alive(fast, 3, KILLER, "--concurrency", "5"))
    killers, good = simulate(3, failures=13), simulate(30, seconds=0.5)
    mixed = [one for three in zip(good[::10], killers, good[1::10], strict=False) for one in three]
    try:
        lines = {line["id"]: line for line in await fast.run([*mixed, *(one for one in good if one not in mixed)])}
    finally:
        supervisor.cancel()
    assert {lines[one["id"]]["state"] for one in good} == {"done"}
    assert {lines[one["id"]]["state"] for one in killers} == {"dead"}
    starts = Counter(note.id for note in fast.record() if note.word == "start")
    assert all(3 <= starts[one["id"]] <= 6 for one in killers), starts
    letters = await fast.dead_letters(3)
    assert {letter.headers["x-reason"] for letter in letters} == {"crashed"}


async def test_a_task_that_kills_its_worker_waits_before_each_next_try(fast: Site) -> None:
    workers = [await fast.worker(script=KILLER) for _ in range(3)]
    (killer,) = simulate(1, failures=13)
    await fast.send([killer])
    await until(lambda: sum(one.process.poll() is not None for one in workers) == 3, "it has killed all three")
    starts = [note.at for note in fast.record() if note.word == "start"]
    pauses = [later - sooner for sooner, later in pairwise(starts)]
    assert all(pause >= delay for pause, delay in zip(pauses, delays(fast), strict=False)), pauses


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGINT]], ids=str)
@pytest.mark.parametrize("ledger", ["sqlite", "none"])
async def test_a_task_that_is_handed_back_again_and_again_is_neither_crashed_nor_failed(
    fast: Site, ledger: str, signals: list[signal.Signals]
) -> None:
    if ledger == "none":
        fast.environment["LEDGER_URL"] = "none"
    (long,) = simulate(1, seconds=5.0)
    await fast.send([long])
    for turn in range(4):
        worker = await fast.worker(WORKQUEUE_DRAIN_S="0.1" if len(signals) == 1 else "60")
        await until(lambda: sum(note.word == "start" for note in fast.record()) > turn, "it runs")  # noqa: B023
        for number in signals:
            worker.signal(number)
            await asyncio.sleep(2 * SAME_S)  # what comes sooner is the same signal
        assert await worker.ended() == (0 if len(signals) == 1 else 130)
        assert worker.says("handed back"), worker.text()
    await until(lambda: fast.depth_is(1), "it waits")
    async with fast.amqp() as channel:
        queue = await channel.declare_queue(fast.queue, passive=True)
        message: Any = await queue.get()
        assert not message.redelivered
        assert not {"x-attempts", "x-crashes"} & message.headers.keys()
        assert not message.headers.get("x-delivery-count")
        await message.nack(requeue=True)


async def test_a_task_that_fails_and_is_sent_four_times_has_the_attempts_of_one(fast: Site) -> None:
    for _ in range(3):
        await fast.worker()
    (failing,) = simulate(1, failures=100)
    await fast.send([failing] * 4)
    (letter,) = await fast.dead_letters(1)
    await asyncio.sleep(1.5)  # longer than any delay: whatever there is of it has come back
    starts = [note.at for note in fast.record() if note.word == "start"]
    assert len(starts) == 6
    pauses = [later - sooner for sooner, later in pairwise(starts)]
    assert all(pause >= 0.8 * delay for pause, delay in zip(pauses, delays(fast), strict=True)), pauses
    assert json.loads(letter.body) == failing
    await fast.dead_letters(0)


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "gone"])
async def test_the_copy_that_tells_all_attempts_goes_first_if_there_is_one(fast: Site, is_there: bool) -> None:
    (failing,) = simulate(1, failures=100)
    body, id = json.dumps(failing).encode(), UUID(failing["id"])
    ledger = SqliteLedger(str(fast.folder / "ledger.db"))
    claim = await ledger.claim(id, "gone", 60.0, kind="nap", digest=codec.digest(body), alone=True)
    assert isinstance(claim, Claimed)
    assert await ledger.release(id, claim.fence, attempts=5, error="no")
    await ledger.close()
    attempts = [{"worker": "gone", "at": "2026-11-25T09:30:00.000Z", "error": str(number)} for number in range(5)]
    worker = await fast.worker()
    await fast.publish(body, message_id=failing["id"])
    if is_there:
        await fast.publish(body, message_id=failing["id"], headers={"x-attempts": attempts})
    (letter,) = await fast.dead_letters(1)
    told: Any = letter.headers["x-attempts"]
    assert len(told) == (6 if is_there else 1)
    assert worker.says("comes after a copy that tells more")
    assert sum(note.word == "start" for note in fast.record()) == 1


async def test_what_waits_in_a_worker_while_a_suspect_runs_alone_is_told(fast: Site) -> None:
    (suspect,), others = simulate(1, seconds=4.0), simulate(2)
    body, id = json.dumps(suspect).encode(), UUID(suspect["id"])
    ledger = SqliteLedger(str(fast.folder / "ledger.db"))
    for _ in range(3):  # two of them ended with their workers, which had others in hand too
        claim = await ledger.claim(id, "gone", -1.0, kind="nap", digest=codec.digest(body), alone=False)
        assert isinstance(claim, Claimed)
    await fast.worker("one", "--concurrency", "3")
    await fast.publish(body, message_id=suspect["id"])
    await until(lambda: fast.record(), "it runs")
    await fast.send(others)

    async def told() -> bool:
        status = await ask(fast, "status")
        said = f"2 tasks of {fast.queue} wait in one on "
        (queue,) = [one for one in status["queues"] if one["queue"] == fast.queue]
        return any(note.startswith(said) for note in status["notes"]) and queue["in_hand"] == 3

    await until(told, "the others wait")
    await ledger.close()
    await fast.all_end([suspect, *others])

    async def nobody_waits() -> bool:
        return not any("runs alone" in note for note in (await ask(fast, "status"))["notes"])

    await until(nobody_waits, "nobody waits")


async def test_a_worker_that_drains_gives_back_what_it_has_not_begun(fast: Site) -> None:
    (long,), others = simulate(1, seconds=2.0), simulate(5)
    worker = await fast.worker()
    await fast.send([long])
    await until(lambda: fast.record(), "the long one runs")
    worker.signal(signal.SIGTERM)
    await fast.send(others)
    began = time.monotonic()
    assert await worker.ended() == 0
    assert time.monotonic() - began < 10
    assert fast.ended() == {long["id"]: 1}
    await fast.worker()
    await fast.all_end([long, *others])
