"""The ledger in a SQLite file: processes that die (really killed), locks, and what happens to the file."""

import asyncio
import errno
import fcntl
import json
import os
import resource
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

from tests.harness import ROOT
from workqueue.errors import LedgerLost, LedgerUnreachable
from workqueue.ledger import Claimed, Finished, LedgerBusy, Outcome, Sent, Taken, clock, open_ledger, sqlite_file
from workqueue.ledger import sqlite as store
from workqueue.ledger.clock import LastLook
from workqueue.ledger.sqlite import SqliteLedger
from workqueue.ledger.sqlite_file import SqliteFile
from workqueue.ledger.whole import exists
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
from workqueue.ledger import Claimed, Finished, LedgerBusy
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


async def claimed(
    ledger: SqliteLedger, task_id: UUID, lease_s: float = LONG_S, worker: str = "w", **said: Any
) -> Claimed:
    claim = await ledger.claim(task_id, worker, lease_s, **{**ASKED, **said})
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


async def test_a_process_that_cannot_be_asked_whether_it_lives_has_until_its_lease_ends(
    ledger: SqliteLedger, path: str, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    before = holders(path)
    process = python(CLAIM_AND_WAIT.format(lease_s=LONG_S))
    assert line(process) == "claimed"
    (holder,) = holders(path) - before
    process.kill()
    process.wait(20)
    os.unlink(f"{path}.holders/{holder}")
    os.mkdir(f"{path}.holders/{holder}")  # can't be opened, as another user's can't; root may open any file
    answer = await ledger.claim(UUID(int=1), "w", LONG_S, **ASKED)
    assert isinstance(answer, Taken)
    assert answer.left_s > LONG_S / 2


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
        "check": ledger.check,
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


async def test_on_a_full_disk_no_claim_can_be_written(ledger: SqliteLedger, path: str) -> None:
    """As the limit of a file's size stands for it."""
    await ledger.check()
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size, most))
    try:
        for _ in range(2):
            assert not await ledger.renew(UUID(int=0), 0, LONG_S)  # what changes nothing writes nothing
            with pytest.raises(LedgerBusy):
                await ledger.check()
            with pytest.raises(LedgerBusy):
                await ledger.claim(uuid4(), "w", LONG_S, **ASKED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    await ledger.check()


async def test_a_full_disk_is_told_with_its_file_and_the_way_out(ledger: SqliteLedger, path: str) -> None:
    """As the limit of its pages stands for it."""
    ((pages,),) = ledger._file.db.execute("PRAGMA page_count").fetchall()
    ledger._file.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerBusy) as caught:
        await ledger.record([Sent(uuid4(), "nap", b"") for _ in range(1000)])
    assert str(caught.value) == f"the disk of {path} is full, make room there: database or disk is full"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]
)
async def test_a_ledger_that_can_not_be_made_on_a_full_disk_names_no_other_way_out(
    monkeypatch: pytest.MonkeyPatch, path: str, error: OSError
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(SqliteFile, "_set_up", full)
    with pytest.raises(LedgerUnreachable) as caught:
        await open_ledger(Settings(ledger_url=f"sqlite:{path}"))
    assert str(caught.value) == f"no ledger: sqlite:{path}: the disk of {path} is full, make room there: {error}"


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


@pytest.mark.parametrize(("name", "there"), [("ledger.db", True), ("empty", False), ("nothing", False)])
async def test_a_ledger_is_there_once_something_is_in_its_file(name: str, there: bool, tmp_path: Path) -> None:
    SqliteFile(str(tmp_path / "ledger.db")).close()
    (tmp_path / "empty").touch()
    assert await exists(f"sqlite:{tmp_path / name}") is there


@pytest.mark.parametrize("name", ["alone", "a-file/ledger.db"])
async def test_whether_a_ledger_is_there_is_not_known_where_only_its_log_is_or_nobody_can_look(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "alone-wal").write_bytes(b"committed")
    (tmp_path / "a-file").touch()
    with pytest.raises(LedgerUnreachable, match=r"its log .* is not: put it back|Not a directory"):
        await exists(f"sqlite:{tmp_path / name}")


def test_a_file_that_is_no_database_is_unreachable_and_left_alone(path: str) -> None:
    Path(path).parent.mkdir()
    Path(path).write_bytes(b"not a database" * 500)
    with pytest.raises(LedgerUnreachable, match="not a database") as caught:
        SqliteLedger(path)
    assert Path(path).read_bytes() == b"not a database" * 500
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert path not in opened, caught  # which keeps alive what is not closed


async def test_a_folder_of_holders_that_went_away_is_busy_and_not_the_end(ledger: SqliteLedger, path: str) -> None:
    shutil.rmtree(f"{path}.holders")
    with suppress(LedgerBusy):
        assert isinstance(await ledger.claim(uuid4(), "w", LONG_S, **ASKED), Claimed)


async def test_what_was_written_is_there_after_the_process_that_wrote_it(path: str) -> None:
    task_id, ledger = uuid4(), SqliteLedger(path)
    await ledger.complete(task_id, (await claimed(ledger, task_id)).fence, 1, "{}")
    await ledger.close()
    again = SqliteLedger(path)
    (outcome,) = await again.outcomes([task_id])
    assert outcome == Outcome(task_id, "done", "w", 1, "{}", None, outcome.finished_at, "simulate", digest=b"one")
    await again.close()


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


# --- the same file for as long as the process lives -------------------------------------------------------------------


def overwrite_with_another(path: Path) -> None:
    other = SqliteLedger(f"{path}.other")
    other._file.close()
    path.write_bytes(Path(f"{path}.other").read_bytes())


def replace_by_another(path: Path) -> None:
    other = SqliteLedger(f"{path}.other")
    other._file.close()
    os.replace(f"{path}.other", path)


def drop_table(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE task")


LOSSES: dict[str, Callable[[Path], object]] = {
    "overwritten with garbage": lambda path: path.write_bytes(b"garbage" * 5000),
    "emptied": lambda path: os.truncate(path, 0),
    "overwritten with another ledger": overwrite_with_another,
    "replaced": replace_by_another,
    "deleted": lambda path: path.unlink(),
    "its log deleted": lambda path: Path(f"{path}-wal").unlink(),
    "its index deleted": lambda path: Path(f"{path}-shm").unlink(),
    "its folder deleted": lambda path: shutil.rmtree(path.parent),
    "its folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "the proofs of life deleted": lambda path: shutil.rmtree(f"{path}.holders"),
    "its table dropped": drop_table,
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_file_that_is_not_the_same_any_more_ends_the_process_with_a_line(
    loss: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOK_EVERY_S", 0.0)
    ledger, mine = SqliteLedger(path), uuid4()
    fence = (await claimed(ledger, mine)).fence
    LOSSES[loss](Path(path))
    calls: list[Callable[[], Any]] = [
        lambda: ledger.complete(mine, fence, 1, None),
        lambda: ledger.claim(uuid4(), "w", LONG_S, **ASKED),
        lambda: ledger.renew(mine, fence, LONG_S),
        lambda: ledger.outcomes([mine]),
    ]
    for call in calls:
        with pytest.raises(LedgerLost, match=r"^the ledger .*ledger\.db was lost: ") as caught:
            await call()
        assert (caught.value.exit_code, str(caught.value).count("\n")) == (3, 0)
    with pytest.raises(LedgerLost):
        ledger.renew_blocking(mine, fence, LONG_S)
    with pytest.raises(LedgerLost):
        async with ledger.completion(mine, fence, 1, None):
            pytest.fail("the effect has begun")
    await ledger.close()


def refused_while_elsewhere(path: Path, left: bytes | None) -> None:
    """Put the file aside, begin to work with the ledger twice, and put it back."""
    aside = path.rename(f"{path}.aside")
    for _ in range(2):
        if left is not None:
            path.write_bytes(left)
        with pytest.raises(LedgerUnreachable, match=r"it is gone, and its log .*-wal is not: put it back"):
            SqliteLedger(str(path))
        assert path.exists() == (left is not None)
    aside.rename(path)


@pytest.mark.parametrize("left", [None, b""])
async def test_what_was_committed_last_is_kept_while_a_ledger_lies_elsewhere(path: str, left: bytes | None) -> None:
    """It is in the log, and a new ledger beside that would be the end of it. Workers are started again meanwhile."""
    holder, mine = SqliteLedger(path), uuid4()
    fence = (await claimed(holder, mine)).fence
    assert await holder.complete(mine, fence, 1, None)
    refused_while_elsewhere(Path(path), left)
    again = SqliteLedger(path)
    assert [outcome.state for outcome in await again.outcomes([mine])] == ["done"]
    assert [outcome.state for outcome in await holder.outcomes([mine])] == ["done"]
    await again.close()
    await holder.close()


async def test_a_change_of_folder_changes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = SqliteLedger("ledger.db")
    monkeypatch.chdir("/")
    task_id = uuid4()
    claim = await claimed(ledger, task_id)
    async with ledger.completion(task_id, claim.fence, 1, None):
        pass
    assert ledger.place == str(tmp_path / "ledger.db")
    await ledger.close()


BEGIN = """
import sqlite3
other = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    other.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    say(error)
else:
    other.execute("ROLLBACK")
    say("none has it locked")
"""


def refused(*_: object) -> None:
    raise sqlite3.OperationalError("its schema is another one")


@pytest.mark.parametrize("others", [1, 2])
async def test_a_transaction_keeps_its_lock_whatever_other_clients_of_the_process_do(
    ledger: SqliteLedger, path: str, python: Callable[[str], subprocess.Popen[str]], others: int
) -> None:
    """SQLite's locks are the process's, and all of a file are gone when anything in it closes a descriptor of that."""
    task_id, clients = uuid4(), [SqliteLedger(path) for _ in range(others)]
    claim = await claimed(ledger, task_id)
    async with ledger.completion(task_id, claim.fence, 1, None) as db:
        await db.execute("CREATE TABLE effect (id INTEGER)")
        for client in clients:
            await client.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqliteFile, "_set_up", refused)
            with pytest.raises(LedgerUnreachable):
                SqliteLedger(path)
        assert line(python(BEGIN)) == "database is locked"
    assert line(python(BEGIN)) == "none has it locked"
    assert await ledger.claim(task_id, "w", LONG_S, **ASKED) == Finished("done", claim.fence)


async def test_of_many_clients_in_a_process_the_last_leaves_nothing_open_and_the_files_in_order(path: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ledgers = [SqliteLedger(path) for _ in range(3)]
        for ledger in ledgers:
            await claimed(ledger, uuid4())
        for ledger in ledgers:
            os.stat(f"{path}-wal")
            await ledger.close()
        with pytest.raises(FileNotFoundError):
            os.stat(f"{path}-wal")
        assert len(os.listdir("/proc/self/fd")) == before


CLIENTS = """
import threading
async def sure(ask, *values, **more):
    while True:
        try:
            return await ask(*values, **more)
        except LedgerBusy:
            pass
async def work(number):
    for one in range(60):
        ledger, task_id = SqliteLedger(sys.argv[1]), UUID(int=1000 * number + one)
        claim = await sure(ledger.claim, task_id, "w", 3600.0, **ASKED)
        done = await sure(ledger.complete, task_id, claim.fence, 1, None)
        if not done or await sure(ledger.claim, task_id, "w", 3600.0, **ASKED) != Finished("done", claim.fence):
            say(f"{task_id} is not done")
        await ledger.close()
first = int(sys.stdin.readline())
threads = [threading.Thread(target=asyncio.run, args=(work(first + number),)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
say("ended")
"""


async def test_what_clients_in_many_threads_and_processes_write_stays_written(
    path: str, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    processes = [python(CLIENTS) for _ in range(2)]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.write(f"{10 * number}\n")
        process.stdin.flush()
    assert [line(process) for process in processes] == ["ended", "ended"]
    assert [row[1] for row in rows(path)] == ["done"] * (2 * 4 * 60)


READ_AND_WAIT = """
async def main():
    ledger = SqliteLedger(sys.argv[1])
    claim = await ledger.claim(UUID(int=1), "reader", 3600.0, **ASKED)
    for suffix in ("", "-shm", "-wal"):  # as a handler does that hashes all files of its folder
        open(sys.argv[1] + suffix, "rb").close()
    say("read")
    sys.stdin.readline()
    say(await ledger.complete(UUID(int=1), claim.fence, 1, None))
    sys.stdin.readline()
asyncio.run(main())
"""


async def test_a_handler_that_reads_the_ledgers_files_takes_the_log_from_nobody(
    path: str, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    worker = python(READ_AND_WAIT)
    assert line(worker) == "read"
    for _ in range(2):  # a producer that comes and goes: without the worker's locks it would believe to be the last
        other = SqliteLedger(path)
        assert isinstance(await other.claim(UUID(int=1), "w", LONG_S, **ASKED), Taken)
        await other.close()
        os.stat(f"{path}-wal")
    tell(worker)
    assert line(worker) == "True"
    other = SqliteLedger(path)
    assert await other.claim(UUID(int=1), "w", LONG_S, **ASKED) == Finished("done", 1)
    await other.close()


async def test_only_its_owner_can_read_a_ledger(path: str) -> None:
    ledger = SqliteLedger(path)
    await claimed(ledger, uuid4())
    for suffix in ("", "-wal", "-shm"):
        assert os.stat(f"{path}{suffix}").st_mode & 0o777 == 0o600
    assert os.stat(f"{path}.holders").st_mode & 0o777 == os.stat(Path(path).parent).st_mode & 0o777 == 0o700
    await ledger.close()


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [60.0, 8 * 86_400.0, -8 * 86_400.0])
async def test_a_step_of_the_wall_clock_ends_no_lease_and_no_wait(
    step_s: float, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, waits = uuid4(), uuid4()
    await claimed(ledger, held, 30.0)
    assert await ledger.release(waits, (await claimed(ledger, waits)).fence, next_s=30.0)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + step_s)
    for task_id in (held, waits):
        taken = await ledger.claim(task_id, "w", LONG_S, **ASKED)
        assert isinstance(taken, Taken)
        assert 0 < taken.left_s <= 30


async def test_a_clock_that_is_far_ahead_makes_nobody_forget_until_it_has_stayed_so(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task_id, keep_s = uuid4(), 7 * 86_400.0
    await ledger.complete(task_id, (await claimed(ledger, task_id)).fence, 1, None)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 8 * 86_400)
    assert [await ledger.prune(keep_s) for _ in range(2)] == [0, 0]
    assert "forgets nothing" in caplog.text
    monkeypatch.setattr(time, "time", now)  # it was set right
    assert await ledger.prune(keep_s) == 0
    monkeypatch.setattr(time, "time", lambda: now() + 8 * 86_400)
    assert await ledger.prune(keep_s) == 0
    steady_s = clock.steady_s
    for module in (store, sqlite_file):
        monkeypatch.setattr(module, "steady_s", lambda: steady_s() + clock.DOUBT_S + 1)
    assert await ledger.prune(keep_s) == 1


def test_what_has_passed_is_known_within_a_boot_and_not_between_two() -> None:
    day_s = 86_400.0
    seen = LastLook(0.0, "one", 100.0)
    assert seen.next(30 * day_s, "one", 100 + 30 * day_s, day_s).doubted_at_s is None
    assert seen.next(0.9 * day_s, "two", 10.0, day_s) == LastLook(0.9 * day_s, "two", 10.0)
    doubted = seen.next(30 * day_s, "two", 10.0, day_s)
    assert doubted.doubted_at_s == 10.0
    assert doubted.next(31 * day_s, "two", 20.0, day_s).doubted_at_s == 10.0
    assert doubted.next(30 * day_s + 4000, "two", 4020.0, day_s).doubted_at_s is None
    assert doubted.next(60.0, "two", 70.0, day_s).doubted_at_s is None  # set right
    assert LastLook.read(str(doubted)) == doubted
    assert LastLook.read(str(seen)) == seen


# --- the version before this one --------------------------------------------------------------------------------------

OLD_SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    id BLOB PRIMARY KEY, state TEXT NOT NULL, fence INTEGER NOT NULL, crashes TEXT NOT NULL DEFAULT '',
    holder TEXT NOT NULL, worker TEXT NOT NULL, lease_until REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, result TEXT, error TEXT, finished_at REAL
) WITHOUT ROWID;
"""
OLD_NEW = "INSERT OR IGNORE INTO task (id, state, fence, holder, worker, lease_until) VALUES (?, 'running', 1, ?, ?, ?)"
OLD_AGAIN = """
UPDATE task SET state = 'running', fence = fence + 1,
    crashes = crashes || iif(state = 'running', strftime('%Y-%m-%dT%H:%M:%SZ') || ' ' || worker || char(10), ''),
    holder = ?2, worker = ?3, lease_until = ?4
WHERE id = ?1 AND (state = 'waiting' OR (state = 'running' AND (lease_until < ?5 OR holder = ?6)))
RETURNING fence, crashes
"""
OLD_CHANGE = "UPDATE task SET {} WHERE id = ? AND fence = ? AND state = 'running'"


class OldWorker:
    """The statements of the version that had no schema version."""

    def __init__(self, path: str) -> None:
        Path(f"{path}.holders").mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(OLD_SCHEMA)
        self.holder = uuid4().hex
        self._lock = os.open(Path(f"{path}.holders") / self.holder, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def claim(self, task_id: UUID, lease_s: float = LONG_S, dead: str = "") -> int | None:
        """The fence, or None if it is taken or finished."""
        now = time.time()
        values = (task_id.bytes, self.holder, "old", now + lease_s)
        if self.db.execute(OLD_NEW, values).rowcount == 1:
            return 1
        found = self.db.execute(OLD_AGAIN, (*values, now, dead)).fetchall()
        return found[0][0] if found else None

    def change(self, change: str, task_id: UUID, fence: int, *values: Any) -> bool:
        return self.db.execute(OLD_CHANGE.format(change), (*values, task_id.bytes, fence)).rowcount == 1

    def complete(self, task_id: UUID, fence: int) -> bool:
        return self.change(
            "state = 'done', attempts = ?, result = ?, finished_at = ?", task_id, fence, 1, "{}", time.time()
        )

    def close(self) -> None:
        self.db.close()
        os.close(self._lock)


@pytest.fixture
def old(path: str) -> Iterator[OldWorker]:
    worker = OldWorker(path)
    yield worker
    worker.close()


async def test_a_ledger_of_the_version_before_is_changed_in_place_and_all_in_it_is_kept(
    old: OldWorker, path: str
) -> None:
    done, held, over, waiting = (UUID(int=number) for number in range(4))
    assert old.complete(done, old.claim(done) or 0)
    old.claim(held)
    old.claim(over, NOW_S)
    assert old.change("state = 'waiting'", waiting, old.claim(waiting) or 0)
    new = SqliteLedger(path)
    assert await new.claim(done, "new", LONG_S, **ASKED) == Finished("done", 1)
    assert isinstance(await new.claim(held, "new", LONG_S, **ASKED), Taken)
    found = await claimed(new, over)
    assert [(crash.worker, crash.alone) for crash in found.crashes or ()] == [("old", False)]
    assert (await claimed(new, waiting)).crashes == ()
    assert [outcome.result for outcome in await new.outcomes([done])] == ["{}"]
    await new.close()
    again = SqliteLedger(path)
    assert again.identity == new.identity
    await again.close()


async def test_workers_of_this_version_and_the_one_before_share_a_ledger(old: OldWorker, path: str) -> None:
    new = SqliteLedger(path)
    task_id = uuid4()
    first = await claimed(new, task_id, alone=True)
    assert old.claim(task_id) is None  # by the wall clock's time, which is written beside
    assert await new.release(task_id, first.fence, attempts=1, error="no", next_s=LONG_S)
    fence = old.claim(task_id, 5.0)
    assert fence == first.fence + 1
    taken = await new.claim(task_id, "new", LONG_S, **ASKED)
    assert isinstance(taken, Taken)
    assert taken.left_s <= 5
    assert old.change("state = 'waiting'", task_id, fence)
    second = await claimed(new, task_id, NOW_S, alone=True)  # it does not wait for what was due before the old claim
    assert second.attempts == 1
    fence = old.claim(task_id, NOW_S)
    assert fence == second.fence + 1
    third = await claimed(new, task_id)
    assert third.noticed
    # An old worker says of nobody that his task was alone, and what is known of a claim before is not said of his.
    assert [(crash.worker, crash.alone) for crash in third.crashes or ()] == [("w", False), ("old", False)]
    assert await new.bury(task_id, third.fence, 1, "no")
    assert old.claim(task_id) is None
    assert await new.revive(task_id, third.fence)
    assert old.complete(task_id, old.claim(task_id) or 0)
    assert isinstance(await new.claim(task_id, "new", LONG_S, **ASKED), Finished)
    await new.close()


async def test_a_ledger_of_a_later_major_version_is_refused_and_of_a_later_minor_one_used(path: str) -> None:
    await SqliteLedger(path).close()
    for version in ("1.9", "2.0"):
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE workqueue_meta SET value = ? WHERE key = 'schema_version'", (version,))
        if version == "1.9":
            await SqliteLedger(path).close()
            continue
        with pytest.raises(LedgerUnreachable, match="its schema is of version 2"):
            SqliteLedger(path)
