"""What a ledger promises, on SQLite: claims, fences, leases, and the death of processes (real ones, really killed)."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tools.project import ROOT
from workqueue.errors import LedgerUnreachable
from workqueue.ledger import Claimed, ClaimLost, Finished, LedgerBusy, Outcome, Taken, open_ledger
from workqueue.ledger import sqlite as store
from workqueue.ledger.none import NoLedger
from workqueue.ledger.sqlite import SqliteLedger
from workqueue.settings import Settings

LONG_S = 3600.0
ASKED: dict[str, Any] = {"kind": "simulate", "digest": b"one", "alone": False}
NOW_S = -1.0  # a lease that has ended when it begins


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "below" / "ledger.db")


@pytest.fixture
async def ledger(path: str) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger(path)
    yield opened
    await opened.close()


@pytest.fixture
def python(path: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that runs this code, with `path` as its argument; the process is killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code, path],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


PREAMBLE = """
import asyncio, json, sys, time
from uuid import UUID
from workqueue.ledger import Claimed, LedgerBusy
from workqueue.ledger.sqlite import SqliteLedger

ASKED = {"kind": "simulate", "digest": b"one", "alone": False}

def say(word):
    print(word, flush=True)

"""


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


async def claimed(ledger: SqliteLedger, task_id: UUID, lease_s: float = LONG_S, worker: str = "w") -> Claimed:
    claim = await ledger.claim(task_id, worker, lease_s, **ASKED)
    assert isinstance(claim, Claimed), claim
    return claim


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def holders(path: str) -> set[str]:
    """The files that prove processes alive."""
    return {file.name for file in Path(f"{path}.holders").iterdir()}


def rows(path: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT * FROM task ORDER BY id").fetchall()
    db.close()
    return found


# --- claims and fences ------------------------------------------------------------------------------------------------


async def test_a_task_is_claimed_by_one_at_a_time(ledger: SqliteLedger, path: str) -> None:
    task_id, other = uuid4(), SqliteLedger(path)
    first = await claimed(ledger, task_id)
    for asked in (ledger, other):  # the one that has it is no exception: the broker delivers twice to one worker too
        taken = await asked.claim(task_id, "w", LONG_S, **ASKED)
        assert isinstance(taken, Taken)
        assert LONG_S - 60 < taken.left_s <= LONG_S
    assert first.crashes == ()
    await other.close()


async def test_a_finished_task_is_never_claimed_again(ledger: SqliteLedger) -> None:
    done, dead = uuid4(), uuid4()
    assert await ledger.complete(done, (await claimed(ledger, done)).fence, 1, '{"a":1}')
    assert await ledger.bury(dead, (await claimed(ledger, dead)).fence, 6, "failed: no")
    assert await ledger.claim(done, "w", LONG_S, **ASKED) == Finished("done", 1)
    assert await ledger.claim(dead, "w", LONG_S, **ASKED) == Finished("dead", 1)


async def test_release_makes_a_task_free_at_once_and_is_no_crash(ledger: SqliteLedger) -> None:
    task_id = uuid4()
    first = await claimed(ledger, task_id)
    assert await ledger.release(task_id, first.fence)
    second = await claimed(ledger, task_id)
    assert second.fence > first.fence
    assert second.crashes == ()


async def test_a_lease_that_ended_is_taken_over_and_each_loss_is_recorded_with_its_worker(ledger: SqliteLedger) -> None:
    task_id = uuid4()
    fences = []
    for worker in ("one", "two words", "three"):
        fences.append((await claimed(ledger, task_id, NOW_S, worker)).fence)
    last = await claimed(ledger, task_id)
    assert fences == sorted(set(fences))
    assert last.fence > fences[-1]
    assert last.crashes is not None
    assert [crash.worker for crash in last.crashes] == ["one", "two words", "three"]
    assert all(crash.noticed_at.startswith("20") and crash.noticed_at.endswith("Z") for crash in last.crashes)
    assert await ledger.release(task_id, last.fence)
    assert (await claimed(ledger, task_id)).crashes == last.crashes  # what happened before stays known


async def test_a_claim_that_was_lost_can_do_nothing(ledger: SqliteLedger, path: str) -> None:
    task_id = uuid4()
    old = (await claimed(ledger, task_id, NOW_S)).fence
    new = (await claimed(ledger, task_id)).fence
    for finish in (False, True):
        if finish:
            assert await ledger.complete(task_id, new, 2, None)
        before = rows(path)
        assert not await ledger.renew(task_id, old, LONG_S)
        assert not await ledger.complete(task_id, old, 1, "stale")
        assert not await ledger.bury(task_id, old, 1, "stale")
        assert not await ledger.release(task_id, old)
        with pytest.raises(ClaimLost):
            async with ledger.completion(task_id, old, 1, "stale"):
                pytest.fail("the effect has begun")
        assert rows(path) == before
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.attempts, outcome.result) == ("done", 2, None)


async def test_a_claim_that_is_finished_or_released_can_do_nothing_more(ledger: SqliteLedger) -> None:
    done, released = uuid4(), uuid4()
    fence = (await claimed(ledger, done)).fence
    assert await ledger.complete(done, fence, 1, None)
    assert not await ledger.complete(done, fence, 1, None)
    assert not await ledger.bury(done, fence, 1, "no")
    assert not await ledger.release(done, fence)
    fence = (await claimed(ledger, released)).fence
    assert await ledger.release(released, fence)
    assert not await ledger.renew(released, fence, LONG_S)
    assert not await ledger.complete(released, fence, 1, None)
    assert not await ledger.complete(uuid4(), 1, 1, None)


async def test_a_lease_that_ended_may_complete_while_nobody_else_has_claimed(ledger: SqliteLedger) -> None:
    task_id = uuid4()
    assert await ledger.complete(task_id, (await claimed(ledger, task_id, NOW_S)).fence, 1, None)
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("done", 1)


async def test_renewing_makes_the_lease_longer_and_a_renewed_claim_is_not_taken_over(ledger: SqliteLedger) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id, NOW_S)
    assert await ledger.renew(task_id, claim.fence, LONG_S)
    taken = await ledger.claim(task_id, "x", LONG_S, **ASKED)
    assert isinstance(taken, Taken)
    assert taken.left_s > LONG_S - 60


async def test_an_effect_and_its_completion_are_one(ledger: SqliteLedger, path: str) -> None:
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    with suppress(ZeroDivisionError):
        async with ledger.completion(task_id, claim.fence, 1, None) as db:
            await db.execute("CREATE TABLE effect (n)")
            raise ZeroDivisionError
    assert await ledger.outcomes([task_id]) == []
    async with ledger.completion(task_id, claim.fence, 1, "{}") as db:
        await db.execute("CREATE TABLE effect (n)")
        assert await ledger.outcomes([task_id]) == []
    (outcome,) = await ledger.outcomes([task_id])
    assert (outcome.state, outcome.result) == ("done", "{}")
    with sqlite3.connect(path) as other:
        other.execute("SELECT n FROM effect")
    other.close()


# --- processes --------------------------------------------------------------------------------------------------------

CLAIM_AND_WAIT = """
async def main():
    ledger = SqliteLedger(sys.argv[1])
    await ledger.claim(UUID(int=1), "victim", float({lease_s}), **ASKED)
    say("claimed")
    sys.stdin.readline()
asyncio.run(main())
"""


async def test_the_claim_of_a_killed_process_is_free_at_once_and_counts_as_a_crash(
    ledger: SqliteLedger, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = python(CLAIM_AND_WAIT.format(lease_s=LONG_S))
    assert line(process) == "claimed"
    assert isinstance(await ledger.claim(UUID(int=1), "w", LONG_S, **ASKED), Taken)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    claim = await claimed(ledger, UUID(int=1))
    assert claim.crashes is not None
    assert [crash.worker for crash in claim.crashes] == ["victim"]


async def test_the_claim_of_a_stopped_process_is_its_own_until_the_lease_ends(
    ledger: SqliteLedger, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    lease_s = 0.6
    process = python(CLAIM_AND_WAIT.format(lease_s=lease_s))
    assert line(process) == "claimed"
    stop(process)
    began, answer = time.monotonic(), await ledger.claim(UUID(int=1), "w", LONG_S, **ASKED)
    assert isinstance(answer, Taken)
    assert 0 < answer.left_s <= lease_s
    while isinstance(answer, Taken):
        assert time.monotonic() - began < 10
        await asyncio.sleep(answer.left_s)
        left_s, answer = answer.left_s, await ledger.claim(UUID(int=1), "w", LONG_S, **ASKED)
        assert isinstance(answer, Taken) or left_s < lease_s
    assert isinstance(answer, Claimed)
    assert len(answer.crashes or ()) == 1


RACE = """
async def main():
    ledger = SqliteLedger(sys.argv[1])
    say("ready")
    sys.stdin.readline()
    mine = []
    import random
    for number in random.sample(range(2000), 2000):  # each in an order of its own, so that each is first somewhere
        while True:
            try:
                claim = await ledger.claim(UUID(int=number), "racer", 3600, **ASKED)
                break
            except LedgerBusy:
                pass
        if isinstance(claim, Claimed):
            assert (claim.fence, claim.crashes) == (1, ())
            mine.append(number)
        time.sleep(0.0005)  # the other one's turn, however many cores there are
    say(json.dumps(mine))
    sys.stdin.readline()
asyncio.run(main())
"""


def test_of_two_processes_that_race_for_the_same_tasks_each_task_is_claimed_by_exactly_one(
    python: Callable[[str], subprocess.Popen[str]],
) -> None:
    racers = [python(RACE), python(RACE)]
    assert [line(racer) for racer in racers] == ["ready", "ready"]
    for racer in racers:
        tell(racer)
    one, two = (json.loads(line(racer)) for racer in racers)
    assert sorted(one + two) == list(range(2000))
    assert one  # else there was no race
    assert two


OPEN_AND_CLAIM = """
async def main():
    say("ready")
    sys.stdin.readline()
    opened = [SqliteLedger(f"{sys.argv[1]}-{number}") for number in range(15)]
    while True:
        try:
            claim = await opened[-1].claim(UUID(int=1), "w", 3600, **ASKED)
            break
        except LedgerBusy:
            pass
    say(type(claim).__name__)
    sys.stdin.readline()
asyncio.run(main())
"""


def test_eight_processes_that_open_new_ledgers_at_once_all_succeed(
    python: Callable[[str], subprocess.Popen[str]],
) -> None:
    openers = [python(OPEN_AND_CLAIM) for _ in range(8)]
    assert [line(opener) for opener in openers] == ["ready"] * 8
    for opener in openers:
        tell(opener)
    assert sorted(line(opener) for opener in openers) == ["Claimed"] + ["Taken"] * 7


async def test_the_file_that_proves_a_process_alive_goes_when_it_closes(path: str) -> None:
    task_id, ledger = uuid4(), SqliteLedger(path)
    known = holders(path)
    await ledger.outcomes([task_id])
    assert holders(path) == known  # one that only reads proves nothing
    await claimed(ledger, task_id)
    assert len(holders(path) - known) == 1
    await ledger.close()
    assert holders(path) == known
    successor = SqliteLedger(path)
    assert len((await claimed(successor, task_id)).crashes or ()) == 1  # closed with a claim: it is free at once
    await successor.close()


async def test_the_file_of_a_process_that_died_goes_when_it_is_noticed(
    ledger: SqliteLedger, path: str, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = python(CLAIM_AND_WAIT.format(lease_s=LONG_S))
    assert line(process) == "claimed"
    process.kill()
    process.wait(20)
    left = holders(path)
    await claimed(ledger, UUID(int=1))
    assert len(left - holders(path)) == 1


# --- a store that can't answer ----------------------------------------------------------------------------------------


async def test_a_locked_database_is_busy_and_nothing_was_changed(ledger: SqliteLedger, path: str) -> None:
    mine, free = uuid4(), uuid4()
    fence = (await claimed(ledger, mine)).fence
    before = rows(path)
    calls: dict[str, Callable[[], Any]] = {
        "claim": lambda: ledger.claim(free, "w", LONG_S, **ASKED),
        "renew": lambda: ledger.renew(mine, fence, 2 * LONG_S),
        "complete": lambda: ledger.complete(mine, fence, 1, None),
        "bury": lambda: ledger.bury(mine, fence, 1, "no"),
        "release": lambda: ledger.release(mine, fence),
        "prune": lambda: ledger.prune(-2 * LONG_S),
    }
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(LedgerBusy, match="locked"):
            await call()
        assert time.monotonic() - began < 2, name
    assert await ledger.outcomes([mine]) == []  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    assert rows(path) == before
    assert await ledger.complete(mine, fence, 1, None)


@pytest.mark.parametrize("name", ["", "a-file/ledger.db", "a-folder"])
async def test_a_ledger_that_cannot_be_opened_is_unreachable_and_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    path = str(tmp_path / name) if name else "/proc/nothing/ledger.db"
    with pytest.raises(LedgerUnreachable) as caught:
        await open_ledger(Settings(ledger_url=f"sqlite:{path}"))
    assert str(caught.value).startswith(f"no ledger: sqlite:{path}: ")
    assert "LEDGER_URL" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_file_that_is_no_database_is_unreachable_and_left_alone(path: str) -> None:
    Path(path).parent.mkdir()
    Path(path).write_bytes(b"not a database" * 500)
    with pytest.raises(LedgerUnreachable, match="not a database"):
        SqliteLedger(path)
    assert Path(path).read_bytes() == b"not a database" * 500


async def test_a_folder_of_holders_that_went_away_is_busy_and_not_the_end(ledger: SqliteLedger, path: str) -> None:
    shutil.rmtree(f"{path}.holders")
    with suppress(LedgerBusy):
        assert isinstance(await ledger.claim(uuid4(), "w", LONG_S, **ASKED), Claimed)


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_outcomes_of_any_number_of_tasks_are_those_that_are_finished(ledger: SqliteLedger) -> None:
    ids = [UUID(int=number) for number in range(2500)]
    for task_id in ids[::2]:
        fence = (await claimed(ledger, task_id)).fence
        if task_id.int % 4:
            await ledger.bury(task_id, fence, 6, f"failed: {task_id.int}")
        else:
            await ledger.complete(task_id, fence, 1, json.dumps(task_id.int))
    await claimed(ledger, ids[1])
    found = {outcome.id: outcome for outcome in await ledger.outcomes(ids)}
    assert list(found) != []
    assert set(found) == set(ids[::2])
    assert await ledger.outcomes([]) == []
    for task_id, outcome in found.items():
        dead = bool(task_id.int % 4)
        assert (outcome.state, outcome.worker, outcome.attempts) == (("dead", "w", 6) if dead else ("done", "w", 1))
        assert outcome.result == (None if dead else str(task_id.int))
        assert outcome.error == (f"failed: {task_id.int}" if dead else None)
        assert abs(outcome.finished_at - time.time()) < 60


async def test_prune_forgets_what_is_old_and_keeps_what_is_not(ledger: SqliteLedger) -> None:
    finished, running, abandoned = uuid4(), uuid4(), uuid4()
    await ledger.complete(finished, (await claimed(ledger, finished)).fence, 1, None)
    claim = await claimed(ledger, running)
    await claimed(ledger, abandoned, NOW_S)
    assert await ledger.prune(LONG_S) == 0
    assert await ledger.prune(0) == 2  # by their ends: the running one's lies ahead
    assert await ledger.outcomes([finished]) == []
    assert await ledger.complete(running, claim.fence, 1, None)
    assert (await claimed(ledger, abandoned)).crashes == ()


async def test_prune_looks_at_every_task_however_many_there_are(ledger: SqliteLedger) -> None:
    ids = [uuid4() for _ in range(1203)]
    for task_id in ids:
        fence = (await claimed(ledger, task_id)).fence
        if task_id.int % 3:
            await ledger.complete(task_id, fence, 1, None)
    finished = [task_id for task_id in ids if task_id.int % 3]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    meanwhile = asyncio.ensure_future(others())
    assert await ledger.prune(0) == len(finished)
    meanwhile.cancel()
    assert turns >= 3  # it holds nobody up for long
    assert await ledger.outcomes(ids) == []
    assert await ledger.prune(-2 * LONG_S) == len(ids) - len(finished)


async def test_what_was_written_is_there_after_the_process_that_wrote_it(path: str) -> None:
    task_id, ledger = uuid4(), SqliteLedger(path)
    await ledger.complete(task_id, (await claimed(ledger, task_id)).fence, 1, "{}")
    await ledger.close()
    again = SqliteLedger(path)
    (outcome,) = await again.outcomes([task_id])
    assert outcome == Outcome(task_id, "done", "w", 1, "{}", None, outcome.finished_at, "simulate")
    await again.close()


async def test_without_a_ledger_every_claim_is_granted_and_nothing_is_remembered() -> None:
    ledger = await open_ledger(Settings(ledger_url="none"))
    assert isinstance(ledger, NoLedger)
    task_id = uuid4()
    for _ in range(2):
        assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Claimed(0, None)
        assert await ledger.renew(task_id, 0, LONG_S)
        assert await ledger.complete(task_id, 0, 1, None)
        assert await ledger.bury(task_id, 0, 1, "no")
        assert await ledger.release(task_id, 0)
    assert await ledger.outcomes([task_id]) == []
    assert await ledger.prune(0) == 0
    with pytest.raises(RuntimeError, match="LEDGER_URL"):
        async with ledger.completion(task_id, 0, 1, None):
            pass
    await ledger.close()


async def test_a_ledger_may_be_closed_twice(tmp_path: Path) -> None:
    ledger = SqliteLedger(str(tmp_path / "twice.db"))
    await ledger.claim(UUID(int=1), "w", 1, **ASKED)
    await ledger.close()
    await ledger.close()


async def test_the_log_of_a_sqlite_file_stays_short_and_a_reader_merely_delays_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOG_BYTES", 50_000)
    monkeypatch.setattr(store, "LOOK_EVERY_S", 0.0)
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    one, other = SqliteLedger(str(path)), SqliteLedger(str(path))

    async def work(count: int) -> int:
        for ledger in (one, other) * count:
            claim = await ledger.claim(task_id := uuid4(), "worker", 60, **ASKED)
            assert isinstance(claim, Claimed)
            assert await ledger.complete(task_id, claim.fence, 1, None)
        return log.stat().st_size

    assert await work(200) < 200_000
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        (count,) = reader.execute("SELECT count(*) FROM task").fetchone()
        assert await work(100) > 200_000
        assert reader.execute("SELECT count(*) FROM task").fetchone() == (count,)
    assert await work(20) < 200_000
    await one.close()
    await other.close()
