"""Each task done once: by claims, by fences, in the ledger's own transaction; and what no worker can do."""

import asyncio
import json
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import aio_pika
import psycopg
import pytest

from tests.harness import QUEUE, ROOT, Site, simulate, task
from workqueue.dev.postgres import Postgres
from workqueue.testing import Worker, until, vhost
from workqueue.testing.given import Broker

LARGEST = 16_000_000  # bytes of a body: RabbitMQ 4 itself refuses one of more than 16 MiB
WORKERS = ROOT / "tests" / "workers"


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, node: Broker, tmp_path: Path, fast_project: Path) -> Iterator[Site]:
    """A site with short delays, once on each of the stores."""
    here = Site(tmp_path, vhost(node), fast_project)
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        with psycopg.connect(server.url, autocommit=True) as db:
            name = f"db{uuid4().hex}"
            db.execute(f"CREATE DATABASE {name}")
        here.environment["LEDGER_URL"] = server.url.removesuffix("postgres") + name
    yield here
    here.stop()


async def keep_alive(site: Site, count: int, script: str = "", *flags: str) -> None:
    """Have this many workers running, as a supervisor does, until cancelled."""
    running: list[Worker] = []
    while True:
        running = [one for one in running if one.process.poll() is None]
        missing = count - len(running)
        for _ in range(missing):
            running.append(await site.worker("", *flags, script=script, ready=False))  # it may die before that
        await asyncio.sleep(0.05)


def alive(site: Site) -> list[Worker]:
    return [worker for worker in site.workers if worker.process.poll() is None]


async def test_an_effect_in_the_ledgers_own_transaction_happens_once_however_workers_die(either: Site) -> None:
    supervisor = asyncio.ensure_future(keep_alive(either, 3, str(WORKERS / "effect.py")))
    chance = random.Random(7)
    tasks = simulate(300, seconds=0.01)
    finishing = asyncio.ensure_future(either.run(tasks))
    for _ in range(6):
        await asyncio.sleep(0.3 + chance.random() / 2)
        if not finishing.done() and alive(either):
            chance.choice(alive(either)).signal(signal.SIGKILL)
    lines = await finishing
    supervisor.cancel()
    assert {line["state"] for line in lines} == {"done"}
    ids = [one["id"] for one in tasks]
    assert Counter(effects(either)) == Counter(ids)


def effects(site: Site) -> list[str]:
    if site.ledger_url.startswith("sqlite:"):
        with sqlite3.connect(site.folder / "ledger.db") as db:
            rows = db.execute("SELECT id FROM effect").fetchall()
        db.close()
        return [row[0] for row in rows]
    with psycopg.connect(site.ledger_url) as server:
        return [row[0] for row in server.execute("SELECT id FROM effect").fetchall()]


async def test_a_task_that_kills_its_worker_is_a_dead_letter_after_three_and_all_others_are_done(either: Site) -> None:
    (killer,), good = simulate(1, failures=13), simulate(40)
    killers = keep_alive(
        either, 2, str(WORKERS / "killer.py"), "--only", "do_errand"
    )  # alone in its process from the first
    supervisor = asyncio.ensure_future(killers)
    lines = {line["id"]: line for line in await either.run([killer, *good])}
    supervisor.cancel()
    assert lines[killer["id"]]["state"] == "dead"
    assert all(lines[one["id"]]["state"] == "done" for one in good)
    (letter,) = await either.dead_letters(1)
    assert json.loads(letter.body) == killer
    assert letter.headers["x-reason"] == "crashed"
    assert str(letter.headers["x-attempts"]).count("died, or lost its claim") == 3
    assert [note.id for note in either.record() if note.word == "start"].count(killer["id"]) == 3


async def test_without_a_ledger_the_brokers_count_of_deliveries_ends_a_killer_too(fast: Site) -> None:
    fast.environment["LEDGER_URL"] = "none"
    (killer,) = simulate(1, failures=13)
    supervisor = asyncio.ensure_future(keep_alive(fast, 1, str(WORKERS / "killer.py")))
    await until(lambda: any(worker.says("ready") for worker in fast.workers), "the queues are declared")
    await fast.send([killer])
    (letter,) = await fast.dead_letters(1)
    supervisor.cancel()
    assert letter.headers["x-reason"] == "crashed"


async def test_tasks_are_done_once_while_the_ledgers_server_is_killed_and_restarted(
    node: Broker, tmp_path: Path, fast_project: Path
) -> None:
    site = Site(tmp_path, vhost(node), fast_project)
    with Postgres() as server:
        site.environment["LEDGER_URL"] = server.url
        try:
            for _ in range(3):
                await site.worker()
            tasks = simulate(600, seconds=0.01)
            await site.send(tasks)
            for _ in range(2):
                done = len(site.ended())
                await until(lambda: len(site.ended()) > done + 100, "work goes on", 15)  # noqa: B023
                await asyncio.to_thread(server.kill)
                await until(lambda: site.workers[0].says("waits for the ledger"), "the workers wait")
                await asyncio.to_thread(server.start)
            await site.all_end(tasks)
        finally:
            site.stop()


async def test_a_plain_handler_past_its_time_limit_is_interrupted_and_that_is_a_failed_attempt(fast: Site) -> None:
    worker = await fast.worker(script=str(WORKERS / "blocking.py"))
    await fast.send(simulate(1, seconds=60))
    await until(lambda: worker.says("failed"), "the attempt fails", 15)
    assert "TimeoutError: it took longer than its limit of 6 s" in worker.says("failed")[0]


async def test_a_flood_of_garbage_stops_no_good_task_and_each_piece_is_a_dead_letter(site: Site) -> None:
    """How many: GARBAGE, 10000 for a soak."""
    count = int(os.environ.get("GARBAGE", "1000"))
    workers = [await site.worker() for _ in range(3)]
    chance, good = random.Random(11), simulate(max(100, count // 10))
    before_kb = [resident_kb(worker) for worker in workers]
    async with site.amqp() as channel:
        for start in range(0, count, 200):
            bodies = [garbage(chance) for _ in range(start, min(start + 200, count))]
            exchange = channel.default_exchange
            await asyncio.gather(*(exchange.publish(aio_pika.Message(body), QUEUE) for body in bodies))
            await site.send(good[start // 10 : start // 10 + 20])
        await channel.default_exchange.publish(aio_pika.Message(b"\x00" * LARGEST), QUEUE)
    await site.all_end(good, within_s=100)
    letters = await site.dead_letters(count + 1, within_s=100)
    assert Counter(letter.headers["x-reason"] for letter in letters).keys() == {"undecodable", "invalid"}
    assert all(letter.headers["x-error"] for letter in letters)
    grown_kb = max(resident_kb(worker) - kb for worker, kb in zip(workers, before_kb, strict=True))
    assert grown_kb < 150_000  # the body of 20 MB was in one of them, and the allocator may keep it; no more than that


def garbage(chance: random.Random) -> bytes:
    """Bytes that are not a task, each time of another sort."""
    good = task({"kind": "nap", "seconds": 1})
    match chance.randrange(8):
        case 0:
            return chance.randbytes(chance.randrange(300))
        case 1:
            return b"[" * chance.randrange(1, 60_000)
        case 2:
            return json.dumps(good).encode("utf-16")
        case 3:
            return json.dumps({**good, "payload": {"kind": "nap", "seconds": 10 ** chance.randrange(6, 300)}}).encode()
        case 4:
            return json.dumps({**good, "id": chance.choice([1, None, [], "no", True])}).encode()
        case 5:
            return json.dumps(good)[: chance.randrange(60)].encode()
        case 6:
            return json.dumps({**good, "payload": {**good["payload"], "kind": "parcel"}}).encode()
        case _:
            return json.dumps([good]).encode() + b"}"


def resident_kb(worker: Worker) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
