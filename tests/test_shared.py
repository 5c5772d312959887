"""A ledger that is not there is made by who starts first, and never by who is refused."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.harness import Site, simulate
from workqueue.amqp.shared import shared_ledger
from workqueue.errors import BrokerUnreachable, LedgerDiffers, WorkQueueError
from workqueue.ledger import open_ledger
from workqueue.settings import Settings
from workqueue.testing import until
from workqueue.worker.serving import Serving

Answer = Callable[[WorkQueueError | None], list[object]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(ledger_url=f"sqlite:{tmp_path}/in/ledger.db")


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Have the broker answer so; the questions that it was asked."""
    asked: list[object] = []

    def answers(error: WorkQueueError | None) -> list[object]:
        async def look(settings: Settings, queues: object, name: str, *checks: object) -> None:
            asked.append(checks)
            if error is not None:
                raise error

        monkeypatch.setattr("workqueue.amqp.shared.look", look)
        return asked

    return answers


async def test_who_starts_first_makes_the_ledger_and_who_finds_one_asks_nobody(
    answer: Answer, settings: Settings
) -> None:
    asked = answer(None)
    for _ in range(2):
        await (await shared_ledger(settings, ["a", "b"], "w")).close()
    assert len(asked) == 1
    assert len(asked[0]) == 2  # type: ignore[arg-type]
    await (await shared_ledger(Settings(ledger_url="none"), ["a"], "w")).close()
    assert len(asked) == 1


@pytest.mark.parametrize("error", [LedgerDiffers("a", "there"), BrokerUnreachable("there", "refused")])
async def test_who_is_refused_or_answered_by_nobody_makes_nothing(
    answer: Answer, settings: Settings, tmp_path: Path, error: WorkQueueError
) -> None:
    answer(error)
    with pytest.raises(type(error)):
        await shared_ledger(settings, ["a"], "w")
    assert os.listdir(tmp_path) == []


async def test_of_two_that_start_at_once_the_second_has_the_ledger_of_the_first(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    async def look(*_: object) -> None:
        """The first makes it, and says so to the broker, just before it is asked."""
        await (await open_ledger(settings)).close()
        raise LedgerDiffers("a", "there")

    monkeypatch.setattr("workqueue.amqp.shared.look", look)
    await (await shared_ledger(settings, ["a"], "w")).close()


def test_who_gives_claims_back_as_it_is_ended_makes_no_ledger_for_that(settings: Settings, tmp_path: Path) -> None:
    """The ledger was moved away, and with it the claims."""
    serving: Any = SimpleNamespace(_settings=settings, _heartbeat=None)
    scope: Any = SimpleNamespace(task_id=UUID(int=1), fence=1, progress=SimpleNamespace(unsaved=None))
    Serving._release_from_thread(serving, [scope])
    assert os.listdir(tmp_path) == []


async def test_a_ledger_that_was_moved_away_is_not_made_anew_and_is_worked_with_once_it_is_back(site: Site) -> None:
    """Its last worker has left it without a log."""
    ledger, away = site.folder / "ledger.db", site.folder / "away.db"
    first = await site.worker()
    await site.run(tasks := simulate(1))
    first.process.send_signal(signal.SIGTERM)
    await until(lambda: first.process.poll() is not None, "it ends")
    ledger.rename(away)
    refused = await site.worker(ready=False)
    await until(lambda: refused.process.poll() is not None, "it is refused")
    assert (refused.process.poll(), "is not there: put it back" in refused.text()) == (2, True), refused.text()
    produced = await site.producer("--jsonl", "-", "--wait", lines=json.dumps(simulate(1)[0]))
    assert (produced.code, "is not there: put it back" in produced.err) == (2, True), produced.err
    assert [file.name for file in site.folder.glob("ledger.db*") if file.is_file()] == []
    away.rename(ledger)
    await site.worker()
    await site.all_end(tasks)


async def test_who_is_started_with_a_mistaken_ledger_leaves_none_behind(site: Site) -> None:
    await site.worker()
    other = {"LEDGER_URL": f"sqlite:{site.folder}/other.db"}
    refused = await site.worker(ready=False, **other)
    await until(lambda: refused.process.poll() is not None, "it is refused")
    assert refused.process.poll() == 2, refused.text()
    sent = await site.workqueue("send", "nap", "seconds=0", *site.to, **other)
    assert (sent.code, "is worked on with another ledger" in sent.err) == (2, True), sent.err
    assert list(site.folder.glob("other.db*")) == []
