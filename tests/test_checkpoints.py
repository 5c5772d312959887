"""Checkpoints and progress of real workers: what the next attempt finds, and what operators see meanwhile."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.harness import ROOT, Site, simulate
from tests.operators import ask, workqueue
from workqueue.dev.postgres import Postgres
from workqueue.ledger import open_ledger
from workqueue.ops.workers import workers
from workqueue.settings import Settings
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker

TEXT = "line 429\x1b of 1,000"
SAVING = str(ROOT / "tests" / "workers" / "saving.py")


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, node: Broker, tmp_path: Path, fast_project: Path) -> Iterator[Site]:
    """A site with short delays, once on each of the stores, for the worker of checkpoints."""
    here = Site(tmp_path, vhost(node), fast_project)
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        name = f"db{uuid4().hex}"
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        here.environment["LEDGER_URL"] = server.url.removesuffix("postgres") + name
    here.environment["CHECKPOINTS"] = str(tmp_path / "checkpoints")
    yield here
    here.stop()
    here.tell()


def noted(site: Site) -> list[Any]:
    """The checkpoints that its handlers found, one for each attempt, and gave."""
    file = site.folder / "checkpoints"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def test_what_a_worker_saved_before_it_was_killed_is_found_by_the_next_attempt(either: Site) -> None:
    async def is_told() -> bool:
        return any(one.text for worker in await workers(ledger) for one in worker.in_hand)

    tasks = simulate(1, seconds=60)
    await either.send(tasks)
    worker = await either.worker("one", script=SAVING)
    ledger = await open_ledger(Settings(ledger_url=either.ledger_url))
    await until(is_told, "it says how far it is")
    await ledger.close()
    worker.process.kill()
    await either.worker("two", script=SAVING)
    await either.all_end(tasks)
    assert noted(either) == [None, 429, 429]


async def test_the_latest_checkpoint_of_a_failed_attempt_is_found_after_a_redrive_too(either: Site) -> None:
    most = either.receive.max_attempts
    tasks = simulate(1, failures=most)
    await either.send(tasks)
    await either.worker(script=SAVING)
    await until(lambda: either.depth_is(1, either.dead_queue), "it is dead")
    assert noted(either) == [None, *range(1, most)]
    told = await workqueue(either, "dead", "redrive", "--all", "--yes")
    assert (told.code, told.out) == (0, "redrive: 1 of 1 letters\n")
    await either.all_end(tasks)
    assert noted(either) == [None, *range(1, most + 1)]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({}, id="ends"),
        pytest.param({"STUBBORN_S": "3.4"}, id="ends-late"),
        pytest.param({"STUBBORN_S": "60"}, id="goes-on"),
        pytest.param({"BLOCKS": "1"}, id="blocks"),
    ],
)
async def test_what_was_given_last_before_a_drain_ended_is_found_by_the_next_attempt(
    either: Site, way: dict[str, str]
) -> None:
    """However the handler ends, or does not end, when it is cut off."""
    tasks = simulate(1, seconds=60)
    either.environment |= way
    worker = await either.worker("one", script=SAVING, WORKQUEUE_DRAIN_S="0.1")
    await either.send(tasks)
    await until(lambda: 429 in noted(either), "it has begun")
    worker.process.send_signal(signal.SIGTERM)
    await until(lambda: worker.process.poll() is not None, "it ends")
    assert worker.process.returncode == 0
    given = noted(either)
    await either.worker("two", script=SAVING)
    await either.all_end(tasks)
    assert noted(either) == [*given, given[-1]]


async def test_without_a_ledger_it_goes_nowhere(fast: Site) -> None:
    fast.environment |= {"LEDGER_URL": "none", "CHECKPOINTS": str(fast.folder / "checkpoints")}
    await fast.send(simulate(1, failures=1))
    await fast.worker(script=SAVING)
    await until(lambda: fast.depth_is(1, fast.dead_queue), "it is dead")
    assert noted(fast) == [None] * fast.receive.max_attempts


async def test_how_far_a_task_is_is_shown_to_operators_while_it_runs(site: Site) -> None:
    async def in_hand() -> list[dict[str, Any]]:
        return [held for worker in await ask(site, "workers") for held in worker["in_hand"]]

    async def is_told() -> bool:
        return any(held["text"] for held in await in_hand())

    async def is_done() -> bool:
        return bool((await ask(site, "task", one["id"]))["state"] == "done")

    (one,) = simulate(1, seconds=60)
    site.environment["CHECKPOINTS"] = str(site.folder / "checkpoints")
    await site.send([one])
    worker = await site.worker("one", script=SAVING, WORKQUEUE_DRAIN_S="0.1")
    await until(is_told, "it says how far it is")
    (held,) = await in_hand()
    assert (held["id"], held["progress"], held["text"]) == (one["id"], 0.429, TEXT)
    story = await ask(site, "task", one["id"])
    assert (story["state"], story["progress"], story["text"]) == ("running", 0.429, TEXT)
    for command in (("workers",), ("status",), ("task", one["id"])):
        assert "42%  line 429\\x1b of 1,000" in (await workqueue(site, *command)).out

    worker.process.send_signal(signal.SIGTERM)
    await until(lambda: worker.process.poll() is not None, "it ends")
    await site.worker("two", script=SAVING)
    await until(is_done, "it is done")
    story = await ask(site, "task", one["id"])
    assert (story["progress"], story["text"]) == (None, "")
