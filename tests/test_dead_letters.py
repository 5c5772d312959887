"""A dead letter that somebody sends back to the tasks: it is in exactly one place, and never lost."""

import json
import time
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.harness import ROOT, Site, simulate, task
from workqueue.tasks.processor import RETURNS_AT_ONCE
from workqueue.testing import until

MOODY = str(ROOT / "tests" / "workers" / "moody.py")


async def moved(site: Site, letter: AbstractIncomingMessage, times: int = 1) -> None:
    """Send a dead letter back to the tasks as a shovel or the management page does: body, properties and headers."""
    async with site.amqp() as channel:
        for _ in range(times):
            copy = aio_pika.Message(
                letter.body, headers=letter.headers, message_id=letter.message_id, content_type=letter.content_type,
                type=letter.type, delivery_mode=letter.delivery_mode,
            )  # fmt: skip
            await channel.default_exchange.publish(copy, site.queue)


async def is_empty(site: Site) -> bool:
    """Whether neither the tasks nor a delay queue has a message."""
    names = [site.queue, *(rung.queue.name for rung in site.receive.rungs)]
    return all([await site.depth_is(0, name) for name in names])


class Broken:
    """What makes the worker fail, until it is mended."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.touch()

    def mend(self) -> None:
        self._file.unlink()


@pytest.fixture
def broken(fast: Site) -> Broken:
    fast.environment["BROKEN"] = str(fast.folder / "broken")
    return Broken(fast.folder / "broken")


@pytest.mark.parametrize("times", [1, 5])
async def test_a_dead_letter_that_is_sent_back_is_done_once_when_its_cause_is_gone(
    fast: Site, broken: Broken, times: int
) -> None:
    worker = await fast.worker(script=MOODY)
    tasks = simulate(5)
    await fast.send(tasks)
    letters = await fast.dead_letters(5)
    broken.mend()
    for letter in letters:
        await moved(fast, letter, times)
    await until(lambda: len(fast.ended()) == 5, f"all five are done: {worker.text()}")
    await until(lambda: is_empty(fast), "nothing is left")
    assert set(fast.ended().values()) == {1}
    assert (await fast.run(tasks))[0]["state"] == "done"
    await fast.dead_letters(0)


async def test_a_dead_letter_that_is_sent_back_with_its_cause_still_there_is_dead_again_with_both_stories(
    fast: Site, broken: Broken
) -> None:
    await fast.worker(script=MOODY)
    (one,) = simulate(1)
    await fast.send([one])
    (letter,) = await fast.dead_letters(1)
    await moved(fast, letter, times=3)
    (again,) = await fast.dead_letters(1)
    await until(lambda: is_empty(fast), "nothing is left")
    await fast.dead_letters(0)
    headers: Any = again.headers
    assert json.loads(again.body) == one
    assert (headers["x-reason"], headers["x-returns"], len(headers["x-attempts"])) == ("failed", 1, 6)
    (earlier,) = headers["x-story"]
    assert (earlier["reason"], earlier["attempts"]) == ("failed", 6)
    assert headers["x-burial"] > letter.headers["x-burial"]


@pytest.mark.parametrize(
    "body",
    [b"not json", json.dumps(task({"kind": "nap", "seconds": -1})).encode()],
    ids=["undecodable", "invalid"],
)
async def test_a_shovel_that_never_stops_loses_nothing_and_makes_no_hot_loop(fast: Site, body: bytes) -> None:
    worker = await fast.worker()
    await fast.publish(body)
    for turn in range(RETURNS_AT_ONCE + 2):
        began = time.monotonic()
        (letter,) = await fast.dead_letters(1)
        if turn > RETURNS_AT_ONCE:
            assert time.monotonic() - began > 0.25, f"turn {turn}"
        assert letter.body == body
        assert letter.headers.get("x-returns", 0) == turn
        await moved(fast, letter)
    assert worker.says("sent back")
    (letter,) = await fast.dead_letters(1)


async def test_a_dead_letter_that_is_sent_back_by_its_body_alone_is_in_the_dead_letters_again(
    fast: Site, broken: Broken
) -> None:
    worker = await fast.worker(script=MOODY)
    (one,) = simulate(1)
    await fast.send([one])
    (letter,) = await fast.dead_letters(1)
    await fast.publish(letter.body)
    (again,) = await fast.dead_letters(1)
    assert worker.says("dead already")
    assert (again.headers["x-reason"], again.body) == ("failed", letter.body)
    broken.mend()
    await moved(fast, again)
    await until(lambda: fast.ended()[one["id"]] == 1, "it can be revived")


async def test_a_letter_of_a_burial_that_was_revived_since_is_not_done_again(fast: Site, broken: Broken) -> None:
    worker = await fast.worker(script=MOODY)
    (one,) = simulate(1)
    await fast.send([one])
    (first,) = await fast.dead_letters(1)
    await moved(fast, first)
    (second,) = await fast.dead_letters(1)
    await moved(fast, first)  # doubled, and late
    await until(lambda: worker.says("dead already"), "the late one is dropped")
    broken.mend()
    await moved(fast, second)
    await until(lambda: fast.ended()[one["id"]] == 1, "the right one is done")


@pytest.mark.parametrize(("ledger", "looks"), [("none", 5), ("sqlite", 25)])
async def test_how_often_a_dead_letter_was_looked_at_says_nothing_of_the_task_it_is_again(
    fast: Site, broken: Broken, ledger: str, looks: int
) -> None:
    if ledger == "none":
        fast.environment["LEDGER_URL"] = ledger
    worker = await fast.worker(script=MOODY)
    (one,) = simulate(1)
    await fast.send([one])
    await until(lambda: fast.depth_is(1, fast.dead_queue), "it is dead")
    for _ in range(looks):
        async with fast.amqp() as channel:
            queue = await channel.declare_queue(fast.dead_queue, passive=True)
            await queue.get()
    (letter,) = await fast.dead_letters(1)
    assert letter.headers["x-delivery-count"] == looks
    broken.mend()
    await moved(fast, letter)
    await until(lambda: fast.ended()[one["id"]] == 1, f"it is done: {worker.text()}")
    assert not worker.says("was delivered")
    await fast.dead_letters(0)


async def test_an_id_that_comes_with_another_payload_is_a_dead_letter_and_the_first_one_is_done(fast: Site) -> None:
    await fast.worker()
    (one,) = simulate(1)
    other = {**one, "payload": {**one["payload"], "seconds": 0.001}}
    same = {key: one[key] for key in reversed(one)}
    await fast.send([one])
    await until(lambda: fast.ended()[one["id"]] == 1, "the first is done")
    await fast.publish(json.dumps(other).encode(), message_id=one["id"])
    await fast.publish(json.dumps(same, indent=2).encode(), message_id=one["id"])
    (letter,) = await fast.dead_letters(1)
    assert letter.headers["x-reason"] == "conflict"
    assert json.loads(letter.body) == other
    await until(lambda: fast.workers[0].says("done already"), "the same in other words is the same")
    assert fast.ended()[one["id"]] == 1
