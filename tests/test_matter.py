"""What a producer that waits says of the queue, in grammatical English whatever the numbers are."""

from typing import Any

import pytest

from tests.harness import DEAD_QUEUE, QUEUE, ROOT
from workqueue import contract, producer
from workqueue.amqp.lane import Depth
from workqueue.ledger.none import NoLedger
from workqueue.settings import Settings

SAID = {
    (1, 1, 1): [f"1 waits in {QUEUE}, and its consumer is busy", f"1 lies in {DEAD_QUEUE}: "],
    (2, 3, 2): [f"2 wait in {QUEUE}, and its 3 consumers are busy", f"2 lie in {DEAD_QUEUE}: "],
    (1, 0, 0): [f"no worker takes from {QUEUE}, where 1 waits; start one"],
    (4, 0, 0): [f"no worker takes from {QUEUE}, where 4 wait; start one"],
}


@pytest.mark.parametrize(("numbers", "said"), SAID.items(), ids=str)
async def test_one_and_many_are_told_apart(
    numbers: tuple[int, int, int], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages, consumers, dead = numbers

    async def look(*_: Any) -> dict[str, Depth]:
        return {QUEUE: Depth(messages, consumers), DEAD_QUEUE: Depth(dead, 0)}

    monkeypatch.setattr(producer, "look", look)
    loaded = contract.load("tests.generated.producer")
    told = await producer._matter(Settings.load({}, project=ROOT), NoLedger(), list(loaded.sends.values()))
    assert [line in told for line in said] == [True] * len(said), told
