"""`workqueue ledger copy` and `reopen`, from store to store: no task is done by both ledgers, whatever is killed."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.harness import Site, simulate
from tests.operators import Told
from tests.test_ledger import ASKED, LONG_S, NOW_S, Store, claimed, store
from workqueue import contract
from workqueue.errors import LedgerClosed, LedgerLost, LedgerUnreachable, SettingInvalid, UsageInvalid
from workqueue.ledger import Claimed, Conflict, Entry, Finished, Ledger, LedgerBusy, Sent, Taken
from workqueue.ledger.postgres_whole import PostgresWhole
from workqueue.ledger.sqlite_whole import SqliteWhole
from workqueue.ledger.whole import AT_ONCE, Row, Whole, exists
from workqueue.ops import copying
from workqueue.ops.copying import Copied, CutShort, LedgerInUse, NotToBeCopied, copy, reopen, reopen_lost
from workqueue.testing import until

__all__ = ["store"]  # a fixture

WHY = "a second machine"
STORY = '{"attempt": 1, "é": "\U0001f600"}\n'
PUT = {"host": "vm", "pid": 7}


@dataclass
class Pair:
    """Two ledgers, the second of which does not exist yet."""

    source: Store
    target: Store

    async def copy(self, **how: Any) -> Copied:
        given: dict[str, Any] = {"why": WHY, "force": False, "tell": lambda done, of: None, **how}
        return await copy(self.source.url, self.target.url, **given)

    async def reopen(self) -> tuple[str, str]:
        return await reopen(self.source.url, self.target.url, why="it was a mistake", force=False)


@pytest.fixture(params=["from", "to"])
def pair(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    """From a SQLite ledger to one of each store, and back."""
    file = Store(f"sqlite:{tmp_path / 'other' / 'ledger.db'}")
    return Pair(store, file) if request.param == "from" else Pair(file, store)


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Ledger]:
    ledger = await store.open()
    yield ledger
    await ledger.close()


async def every_state(ledger: Ledger) -> dict[str, UUID]:
    """A task in each state."""
    made = {
        word: uuid4() for word in (
            "sent", "retrying", "released", "crashed", "called off", "asked and gone", "done", "dead", "revived",
            "unknown and called off",
        )
    }  # fmt: skip
    first = [made[word] for word in ("sent", "called off")]
    await ledger.record([Sent(task_id, "simulate", b"one") for task_id in first])
    await ledger.cancel(made["called off"], "by ops: a mistake")
    await ledger.cancel(made["unknown and called off"], "by ops: before it came")

    claim = await claimed(ledger, made["retrying"])
    assert await ledger.save(made["retrying"], claim.fence, '{"page": 3}')
    assert await ledger.release(
        made["retrying"],
        claim.fence,
        attempts=2,
        error="no",
        failed='{"attempt": 1, "é": "\U0001f600"}\n',
        next_s=LONG_S,
    )
    await claimed(ledger, made["released"], NOW_S, "lost it", alone=True)
    claim = await claimed(ledger, made["released"])
    assert await ledger.release(made["released"], claim.fence)
    await claimed(ledger, made["crashed"], NOW_S, "killed it", alone=True)
    claim = await claimed(ledger, made["asked and gone"], LONG_S, "killed it", alone=True)
    assert await ledger.cancel(made["asked and gone"], "by ops: too late") == "asked"
    assert await ledger.renew(made["asked and gone"], claim.fence, NOW_S)
    claim = await claimed(ledger, made["done"], alone=True)
    assert await ledger.complete(made["done"], claim.fence, 1, '{"kind":"nap","word":"é"}')
    for word in ("dead", "revived"):
        await claimed(ledger, made[word], NOW_S)
        claim = await claimed(ledger, made[word])
        assert await ledger.bury(made[word], claim.fence, 6, "failed: no", failed="line\n")
    assert await ledger.tell(made["dead"], 2, "; gone", "gone\n")
    assert await ledger.revive(made["revived"], 2, told="back\n")
    return made


def plain(entry: Entry | None) -> Entry:
    """With times in whole seconds, which is what a SQLite file keeps of some of them."""
    assert entry is not None
    times = {name: getattr(entry, name) for name in ("created_at", "claimed_at", "next_at", "finished_at")}
    whole: dict[str, Any] = {name: None if at is None else int(at) for name, at in times.items()}
    return replace(entry, **whole)


async def test_every_task_is_known_as_before_in_the_other_store(pair: Pair) -> None:
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
        before = {word: plain(await ledger.entry(task_id)) for word, task_id in made.items()}
    done = await pair.copy()
    assert (done.copied, done.kept, done.replaced, done.again) == (len(made), 0, 0, False)
    async with opened(pair.target) as ledger:
        assert {word: plain(await ledger.entry(task_id)) for word, task_id in made.items()} == before
        assert len(await ledger.outcomes(list(made.values()))) == 4


async def test_every_task_goes_on_where_it_was(pair: Pair) -> None:
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
    await pair.copy()
    async with opened(pair.target) as ledger:
        for word, task_id in made.items():
            answer = await ledger.claim(task_id, "x", LONG_S, kind="simulate", digest=b"two", alone=False)
            assert word == "unknown and called off" or answer == Conflict(), word
        answers = {word: await ledger.claim(task_id, "x", LONG_S, **ASKED) for word, task_id in made.items()}
        assert answers["done"] == Finished("done", 1)
        assert answers["dead"] == Finished("dead", 2)
        assert answers["called off"] == Finished("cancelled", 1)
        assert answers["unknown and called off"] == Finished("cancelled", 0)
        assert answers["asked and gone"] == Finished("cancelled", 2)
        retrying, sent, released = answers["retrying"], answers["sent"], answers["released"]
        assert isinstance(retrying, Taken)
        assert LONG_S - 60 < retrying.left_s <= LONG_S
        assert retrying.attempts == 2
        assert sent == Claimed(fence=1, crashes=())
        assert isinstance(released, Claimed)
        assert (released.fence, released.noticed) == (3, False)
        assert [(crash.worker, crash.alone) for crash in released.crashes or ()] == [("lost it", True)]
        crashed, revived = answers["crashed"], answers["revived"]
        assert isinstance(crashed, Claimed)
        assert (crashed.fence, crashed.noticed) == (2, True)
        assert [(crash.worker, crash.alone) for crash in crashed.crashes or ()] == [("killed it", True)]
        assert isinstance(revived, Claimed)
        assert (revived.fence, revived.crashes, revived.attempts) == (4, (), 0)


async def test_a_delay_that_is_over_holds_nobody_up_and_what_was_saved_is_there(pair: Pair) -> None:
    task_id = uuid4()
    async with opened(pair.source) as ledger:
        claim = await claimed(ledger, task_id)
        assert await ledger.save(task_id, claim.fence, '{"page": 3}')
        assert await ledger.release(task_id, claim.fence, attempts=1, next_s=0.01)
    await asyncio.sleep(0.05)  # a fast machine copies within less than the delay
    await pair.copy()
    async with opened(pair.target) as ledger:
        found = await claimed(ledger, task_id)
        assert (found.checkpoint, found.attempts, found.fence) == ('{"page": 3}', 1, 2)


async def test_a_letter_that_was_buried_before_is_sent_back_and_done_after_once(pair: Pair) -> None:
    task_id = uuid4()
    async with opened(pair.source) as ledger:
        await claimed(ledger, task_id, NOW_S)
        burial = (await claimed(ledger, task_id)).fence
        assert await ledger.bury(task_id, burial, 6, "failed: no")
    await pair.copy()
    async with opened(pair.target) as ledger:
        assert not await ledger.revive(task_id, burial - 1)
        assert await ledger.revive(task_id, burial)
        assert not await ledger.revive(task_id, burial)
        claim = await claimed(ledger, task_id)
        assert claim.fence > burial
        assert await ledger.complete(task_id, claim.fence, 1, None)
        assert not await ledger.revive(task_id, burial)


async def test_what_operators_did_and_what_is_paused_comes_along_once(pair: Pair) -> None:
    async with opened(pair.source) as ledger:
        for word in ("first", "second"):
            await ledger.board.note("ops@host", "pause", word, '{"queue": "q"}')
            await asyncio.sleep(0.01)
        await ledger.board.pause("q", "ops@host", "a deployment")
        await ledger.board.put(uuid4(), "gone", "{}")
        pauses = await ledger.board.pauses()
    pair.source.run("UPDATE workqueue_worker SET seen_at = seen_at - " + (
        "interval '11 seconds'" if pair.source.mark == "%s" else "11"
    ))  # fmt: skip
    async with opened(pair.target) as ledger:
        await ledger.board.note("ops@other", "resume", "between", "{}")
    done = await pair.copy()
    assert (done.notes, done.pauses) == (2, 1)
    assert (await pair.copy()).again
    async with opened(pair.target) as ledger:
        notes = await ledger.board.notes(9)
        assert [(note.who, note.why) for note in notes[2:]] == [
            ("ops@other", "between"), ("ops@host", "second"), ("ops@host", "first"),
        ]  # fmt: skip
        assert [note.what for note in notes[:2]] == ["ledger copy", "ledger copy"]
        assert json.loads(notes[0].told) == {"from": done.source, "copied": 0, "kept": 0, "replaced": 0}
        (pause,) = await ledger.board.pauses()
        assert (pause.queue, pause.who, pause.why) == ("q", "ops@host", "a deployment")
        assert abs(pause.at - pauses[0].at) < 0.001
        assert await ledger.board.seen(LONG_S) == []


# --- what both know -----------------------------------------------------------------------------------------------


async def left(ledger: Ledger, task_id: UUID, state: str, result: str = '"here"', digest: bytes = b"one") -> None:
    """Have the task be so in this ledger."""
    if state == "unknown":
        return
    if state == "sent":
        await ledger.record([Sent(task_id, "simulate", digest)])
        return
    if state == "cancelled":
        await ledger.cancel(task_id, f"by ops: {result}")
        return
    fence = (await claimed(ledger, task_id, NOW_S if state == "crashed" else LONG_S, digest=digest)).fence
    match state:
        case "tried":
            assert await ledger.release(task_id, fence, attempts=1, error=result)
        case "done":
            assert await ledger.complete(task_id, fence, 1, result)
        case "dead":
            assert await ledger.bury(task_id, fence, 1, f"failed: {result}")


@pytest.mark.parametrize(("theirs", "ours", "winner"), [
    ("sent", "done", "from"), ("sent", "dead", "from"), ("sent", "cancelled", "from"), ("sent", "tried", "from"),
    ("sent", "crashed", "from"), ("tried", "done", "from"), ("tried", "dead", "to"), ("tried", "tried", "to"),
    ("running", "done", "to"), ("done", "dead", "to"), ("dead", "done", "to"), ("cancelled", "done", "to"),
    ("done", "sent", "to"), ("sent", "sent", "to"), ("other", "done", "to"),
])  # fmt: skip
async def test_of_a_task_that_both_know_the_one_that_was_done_or_begun_is_kept(
    pair: Pair, theirs: str, ours: str, winner: str
) -> None:
    task_id = uuid4()
    async with opened(pair.source) as ledger:
        await left(ledger, task_id, ours, '"from"')
        before = plain(await ledger.entry(task_id))
    async with opened(pair.target) as target:
        digest = b"two" if theirs == "other" else b"one"
        await left(target, task_id, "tried" if theirs == "other" else theirs, '"to"', digest)
        if winner == "to":
            before = plain(await target.entry(task_id))
        done = await pair.copy()
        assert (done.copied, done.kept, done.replaced) == ((0, 1, 0) if winner == "to" else (0, 0, 1))
        assert plain(await target.entry(task_id)) == before
        answer = await target.claim(task_id, "x", LONG_S, **ASKED)
        assert (before.state in ("done", "dead", "cancelled")) == isinstance(answer, Finished)


async def test_one_that_was_done_under_a_lower_fence_gives_no_claim_of_the_other_ledger_back(pair: Pair) -> None:
    task_id = uuid4()
    async with opened(pair.source) as ledger:
        await left(ledger, task_id, "done")
    async with opened(pair.target) as target:
        for _ in range(2):
            await claimed(target, task_id, NOW_S)
        fence = (await claimed(target, task_id)).fence
        assert await target.release(task_id, fence)
        assert (await pair.copy()).replaced == 1
        assert not await target.complete(task_id, fence, 1, None)
        assert await target.claim(task_id, "x", LONG_S, **ASKED) == Finished("done", fence + 1)


# --- the door -----------------------------------------------------------------------------------------------------


def version(store: Store) -> tuple[int, int]:
    """As each version reads it before anything else; it refuses another major one than its own, which is 1."""
    ((text,),) = store.run("SELECT value FROM workqueue_meta WHERE key = 'schema_version'")
    major, minor = map(int, text.split("."))
    return major, minor


async def test_the_one_that_was_moved_is_opened_by_nobody_and_says_where_to(pair: Pair) -> None:
    async with opened(pair.source):
        assert version(pair.source)[0] == 1
    done = await pair.copy()
    with pytest.raises(LedgerClosed, match=r"was moved to .+ on \d{4}-\d\d-\d\d; set LEDGER_URL to that") as caught:
        await pair.source.open()
    assert done.target in str(caught.value)
    assert caught.value.exit_code == 2
    assert version(pair.source)[0] != 1
    assert version(pair.target)[0] == 1


async def test_whoever_has_it_open_all_the_same_changes_no_task_in_it(pair: Pair) -> None:
    """Such as a worker of the version before, which the board does not know, on a host that was cut off."""
    task_id, waits = uuid4(), uuid4()
    async with opened(pair.source) as ledger:
        fence = (await claimed(ledger, task_id, NOW_S)).fence
        await left(ledger, waits, "tried")
        await pair.copy(force=True)
        before = pair.source.rows()
        for change in (
            "INSERT INTO {} (id, state, fence, {}worker, lease_until) VALUES ('{:0>32}', 'running', 1, {}'old', {})",
            "UPDATE {} SET state = 'running', fence = fence + 1",
            "DELETE FROM {}",
        ):
            file = pair.source.table == "task"
            given = (pair.source.table, "holder, " if file else "", 1, "'', " if file else "", "0" if file else "now()")
            statement = change.format(*given) if "INSERT" in change else change.format(pair.source.table)
            with pytest.raises((sqlite3.IntegrityError, psycopg.errors.RaiseException), match="it was moved to"):
                pair.source.run(statement)
        for _ in range(2):  # on PostgreSQL the first is told to be tried again
            with pytest.raises((LedgerLost, LedgerBusy), match=r"it was moved to .* on .*; set LEDGER_URL") as caught:
                await ledger.claim(waits, "old", LONG_S, **ASKED)
        assert isinstance(caught.value, LedgerLost)
        with pytest.raises(LedgerLost):
            await ledger.complete(task_id, fence, 1, None)
        assert pair.source.rows() == before


async def test_a_ledger_that_is_being_filled_is_opened_by_nobody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or a task that was done, and is not copied yet, would be done again."""
    async with opened(pair.source) as ledger:
        await every_state(ledger)

    monkeypatch.setattr(copying, "_beside", killed)
    with pytest.raises(Killed):
        await pair.copy()
    for each, words in ((pair.source, "was moved to"), (pair.target, "is being filled from")):
        assert version(each)[0] != 1
        with pytest.raises(LedgerClosed, match=words):
            await each.open()
    third = Store(f"sqlite:{tmp_path / 'third.db'}")
    async with opened(third):
        pass
    for other, words in (
        (Pair(third, pair.target), "from there, or begin with a new one"),
        (Pair(pair.target, third), ""),
    ):
        with pytest.raises(NotToBeCopied, match=f"is being filled from .*{words}"):
            await other.copy()
    monkeypatch.undo()
    assert (await pair.copy()).again
    async with opened(pair.target):
        pass


async def test_what_can_not_be_meant_is_said(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageInvalid, match="there is no ledger at"):
        await pair.copy()
    with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedTable)):
        pair.source.rows()  # it was not made
    async with opened(pair.source):
        pass
    with pytest.raises(NotToBeCopied, match="are the same ledger"):
        await Pair(pair.source, pair.source).copy()
    third = Store(f"sqlite:{tmp_path / 'third.db'}")
    with pytest.raises(UsageInvalid, match="there is no ledger at"):
        await Pair(third, pair.target).copy()
    assert not (tmp_path / "third.db").exists()
    await pair.copy()
    with pytest.raises(NotToBeCopied, match=r"was moved to .*, and not to"):
        await Pair(pair.source, third).copy()
    with pytest.raises(NotToBeCopied, match=r"was moved to .*; copy to a new one"):
        await Pair(pair.target, pair.source).copy()
    for bad in ("none", "", "mysql://x"):
        with pytest.raises((UsageInvalid, SettingInvalid)):
            await Pair(pair.source, Store(bad)).copy()
    with pytest.raises(LedgerUnreachable):
        await Pair(Store("postgresql://u:secretword@127.0.0.1:1/x"), pair.target).copy()


# --- whoever works with it ------------------------------------------------------------------------------------------


async def test_it_is_refused_while_a_worker_is_seen_and_nothing_is_done(pair: Pair) -> None:
    me = uuid4()
    async with opened(pair.source) as ledger:
        await ledger.board.put(me, "w1", json.dumps(PUT))
    with pytest.raises(LedgerInUse, match=r"w1 \(vm:7\), seen \d\.\d s ago; stop them"):
        await pair.copy(force=True)
    async with opened(pair.source) as ledger:
        await ledger.board.remove(me)
    await pair.copy()


@pytest.mark.slow
async def test_it_is_refused_while_somebody_who_tells_nothing_has_it_open(pair: Pair) -> None:
    """Such as a worker of the version before, or an application."""
    held = await in_process(pair.source, "await asyncio.sleep(60)")
    with pytest.raises(LedgerInUse, match=r"(process \d+|a connection from .*) has it open"):
        await pair.copy()
    held.kill()
    await held.wait()
    await pair.copy()


async def test_it_is_refused_while_a_claim_is_held_and_both_are_as_they_were(pair: Pair) -> None:
    """By a worker whose heartbeat is not heard: a thread blocks it, for one."""
    task_id = uuid4()
    held = await in_process(
        pair.source, f"await ledger.claim(UUID('{task_id}'), 'w1', 3.0, kind='k', digest=b'one', alone=True)"
    )  # fmt: skip
    with pytest.raises(LedgerInUse, match="claims are held by w1"):
        await pair.copy(force=True)
    for each in (pair.source, pair.target):
        async with opened(each):
            assert version(each)[0] == 1
    held.kill()
    await held.wait()
    while True:  # a file knows that its holder is dead, a server waits for the end of the lease
        try:
            await pair.copy(force=True)
            break
        except LedgerInUse:
            assert pair.source.table != "task"
            await asyncio.sleep(0.2)
    async with opened(pair.target) as ledger:
        entry = await ledger.entry(task_id)
        assert entry is not None
        assert (entry.state, entry.held) == ("running", False)
        found = await claimed(ledger, task_id)
        assert [(crash.worker, crash.alone) for crash in found.crashes or ()] == [("w1", True)]


async def in_process(store: Store, work: str) -> asyncio.subprocess.Process:
    """A process that has the ledger open, does this, and waits."""
    code = f"""
import asyncio
from uuid import UUID
from workqueue.ledger import open_ledger
from workqueue.settings import Settings
async def main():
    ledger = await open_ledger(Settings(ledger_url={store.url!r}))
    await ledger.entry(UUID(int=1))
    print("open", flush=True)
    {work}
    print("done", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(1 if "sleep" in work else 2):
        assert await process.stdout.readline()
    return process


# --- killed ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Of a process that is dead: it says nothing more to either ledger."""


async def killed(*_: object) -> None:
    raise Killed


@dataclass
class Death:
    """It comes in place of this statement, and all that would follow: after each that is carried out."""

    at: int
    made: int = 0

    def step(self) -> None:
        if self.made >= self.at:
            raise Killed
        self.made += 1

    @contextmanager
    def patched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        def execute(whole: SqliteWhole, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
            self.step()
            return in_file(whole, statement, values)

        async def run(whole: PostgresWhole, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[Any]]:
            self.step()
            return await at_server(whole, statement, values)

        in_file, at_server = SqliteWhole._execute, PostgresWhole.run
        with monkeypatch.context() as patch:
            patch.setattr(SqliteWhole, "_execute", execute)
            patch.setattr(PostgresWhole, "run", run)
            yield

    async def of(self, work: Awaitable[object], monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether it was killed."""
        with self.patched(monkeypatch):
            try:
                await work
            except Killed:
                return True
        return False


@pytest.mark.slow
async def test_killed_at_any_statement_and_run_again_it_ends_right(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each statement where both are files; with a server among them, which takes ten times as long, each third.
    step = 1 if pair.source.table == pair.target.table else 3
    for at in count(step=step):
        one = await fresh(pair, at)
        async with opened(one.source) as ledger:
            made = await every_state(ledger)
            await ledger.board.note("ops@host", "pause", "why", "{}")
            await ledger.board.pause("q", "ops@host", "why")
            before = {word: plain(await ledger.entry(task_id)) for word, task_id in made.items()}
        if not await Death(at).of(one.copy(), monkeypatch):
            break
        # Nobody may work with what is not whole, and never with both.
        if await is_open(one.target):
            assert len(one.target.rows()) == (0 if await is_open(one.source) else len(made)), at
        await one.copy()
        assert [await is_open(one.source), await is_open(one.target)] == [False, True]
        async with opened(one.target) as ledger:
            assert {word: plain(await ledger.entry(task_id)) for word, task_id in made.items()} == before
            notes = await ledger.board.notes(9)
            assert [note.what for note in notes].count("pause") == 1
            assert notes[0].what == "ledger copy"
            assert len(await ledger.board.pauses()) == 1
    assert at > 20


@pytest.mark.slow
async def test_killed_at_any_statement_it_can_be_undone_and_so_can_the_undoing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    undone = 0
    for at in range(6, 60, 4):
        one = await fresh(pair, at)
        async with opened(one.source) as ledger:
            made = await every_state(ledger)
            before = {word: plain(await ledger.entry(task_id)) for word, task_id in made.items()}
        await Death(at).of(one.copy(), monkeypatch)
        if await is_open(one.source) and await is_open(one.target):
            continue  # it had not begun
        await Death(at // 2).of(one.reopen(), monkeypatch)
        if not await is_open(one.source) or not one.target.rows():
            with suppress(NotToBeCopied):  # it came to its end, and nothing was closed before
                await one.reopen()
        undone += 1
        async with opened(one.source) as ledger:
            assert {word: plain(await ledger.entry(task_id)) for word, task_id in made.items()} == before
            assert isinstance(await ledger.claim(made["sent"], "x", LONG_S, **ASKED), Claimed)
        if one.target.rows():
            assert not await is_open(one.target)
    assert undone > 5


async def fresh(pair: Pair, number: int) -> Pair:
    """The same two stores, with other databases."""

    def other(store: Store) -> Store:
        if store.table == "task":
            return Store(f"{store.url}.{number}")
        name = f"n{number}_{uuid4().hex}"
        store.run(f"CREATE DATABASE {name}")
        return Store(f"{store.url.rpartition('/')[0]}/{name}")

    return Pair(other(pair.source), other(pair.target))


async def is_open(store: Store) -> bool:
    try:
        await (await store.open()).close()
    except LedgerClosed:
        return False
    return True


# --- undone ---------------------------------------------------------------------------------------------------------


async def test_a_copy_is_undone_until_a_task_was_claimed_in_the_other_ledger(pair: Pair) -> None:
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
    await pair.copy()
    assert (await pair.reopen())[0] == pair.source.url or pair.source.mark == "%s"
    assert (await is_open(pair.source), await is_open(pair.target)) == (True, False)
    async with opened(pair.source) as ledger:
        await claimed(ledger, made["sent"])
        assert [note.what for note in await ledger.board.notes(1)] == ["ledger reopen"]
    with pytest.raises(NotToBeCopied, match="was not moved"):
        await pair.reopen()
    with pytest.raises(NotToBeCopied, match="copy to a new one"):
        await pair.copy()


@pytest.mark.parametrize("what", ["claimed", "done"])
async def test_it_is_not_undone_once_the_other_ledger_was_worked_with(pair: Pair, what: str) -> None:
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
    await pair.copy()
    await asyncio.sleep(1.0)  # a file keeps whole seconds of it
    async with opened(pair.target) as ledger:
        fence = (await claimed(ledger, made["sent"], NOW_S)).fence
        if what == "done":
            assert await ledger.complete(made["sent"], fence, 1, None)
    with pytest.raises(NotToBeCopied, match="was worked with"):
        await pair.reopen()
    assert (await is_open(pair.source), await is_open(pair.target)) == (False, True)
    async with opened(pair.target) as ledger:
        await claimed(ledger, made["released"])


@pytest.mark.slow
async def test_a_copy_whose_target_is_lost_makes_no_other_one_and_can_be_undone(pair: Pair) -> None:
    """Its disk was full, say, and somebody has deleted the half of it."""
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
    await pair.copy()
    with pytest.raises(NotToBeCopied, match="is not lost"):
        await reopen_lost(pair.source.url, pair.target.url, why=WHY)
    lose(pair.target)
    with pytest.raises(
        NotToBeCopied, match="that is not there any more; if it is lost, workqueue ledger reopen --lost"
    ):
        await pair.copy()
    assert not await exists(pair.target.url)  # an empty one, open, would have all tasks done again
    told = await command("reopen", pair.source.url, pair.target.url)
    assert (told.code, "that is not there any more" in told.err, "--lost" in told.err) == (2, True, True)
    async with opened(pair.target):
        pass  # somebody has made it anew
    with pytest.raises(NotToBeCopied, match="--lost opens"):
        await pair.copy()
    told = await command("reopen", "--lost", pair.source.url, pair.target.url, "--why", WHY)
    assert (told.code, "is open again" in told.out, "may be done again" in told.err) == (0, True, True)
    async with opened(pair.source) as ledger:
        await claimed(ledger, made["sent"])
    with pytest.raises(NotToBeCopied, match="was not moved"):
        await reopen_lost(pair.source.url, pair.target.url, why=WHY)


def lose(store: Store) -> None:
    if store.table == "task":
        for end in ("", "-wal", "-shm"):
            Path(store.url.removeprefix("sqlite:") + end).unlink(missing_ok=True)
        return
    for table in ("task", "pause", "worker", "audit", "meta"):
        store.run(f"DROP TABLE workqueue_{table} CASCADE")


async def test_a_target_that_is_full_is_said_with_what_is_closed_by_now(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: Whole, rows: Sequence[Row]) -> tuple[int, int]:
        raise LedgerUnreachable("there", "database or disk is full")

    async with opened(pair.source) as ledger:
        await every_state(ledger)
    with monkeypatch.context() as patched:
        patched.setattr(Whole, "put", full)
        with pytest.raises(CutShort, match=r"disk is full\. .* is closed, and not all of it is copied: run the same"):
            await pair.copy()
    assert (await is_open(pair.source), await is_open(pair.target)) == (False, False)
    await pair.copy()


async def test_nor_is_a_copy_that_was_cut_off_and_stays_closed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ledger was in use before, and somebody there has claimed one of the tasks since."""
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
    async with opened(pair.target) as target:
        monkeypatch.setattr(copying, "_beside", killed)
        with pytest.raises(Killed):
            await pair.copy()
        monkeypatch.undo()
        await asyncio.sleep(1.0)
        await claimed(target, made["sent"], NOW_S)
    with pytest.raises(NotToBeCopied, match="was worked with"):
        await pair.reopen()
    assert (await is_open(pair.source), await is_open(pair.target)) == (False, False)
    assert (await pair.copy()).again
    assert await is_open(pair.target)


# --- as a command ---------------------------------------------------------------------------------------------------


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "AMQP_URI": "amqp://nobody:secretword@127.0.0.1:1/"}
    command = (sys.executable, "-m", "workqueue", "ledger", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)


async def command(*arguments: str) -> Told:
    process = await start(*arguments)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Told(process.returncode, out.decode(), err.decode())


def rows_in(store: Store) -> int:
    try:
        return int(store.run(f"SELECT count(*) FROM {store.table}")[0][0])
    except (sqlite3.Error, psycopg.Error):
        return 0


def many(store: Store, number: int) -> None:
    """So many tasks that are done, in a ledger that exists."""
    if store.table == "task":
        with closing(sqlite3.connect(store.url.removeprefix("sqlite:"))) as file, file:
            file.executemany(
                "INSERT INTO task (id, state, fence, holder, worker, lease_until, kind, digest, result, finished_at,"
                " created_at) VALUES (?, 'done', 1, '', 'w', 0, 'simulate', x'00', '{}', 1790000000.5, 1790000000)",
                [(uuid4().bytes,) for _ in range(number)],
            )
        return
    store.run(
        "INSERT INTO workqueue_task (id, state, fence, worker, lease_until, kind, digest, result, finished_at,"
        " created_at) SELECT gen_random_uuid(), 'done', 1, 'w', now(), 'simulate', '\\x00', '{}', now(), now()"
        f" FROM generate_series(1, {number})"
    )


@pytest.mark.slow
async def test_the_command_is_killed_again_and_again_and_ends_right(pair: Pair) -> None:
    number = 20 * AT_ONCE
    async with opened(pair.source):
        pass
    many(pair.source, number)
    for part in (0, 9):
        process = await start("copy", pair.source.url, pair.target.url)
        while rows_in(pair.target) <= part * AT_ONCE:  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(0.001)
        process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not await is_open(pair.target)
    before = rows_in(pair.target)
    assert before < number
    told = await command("copy", pair.source.url, pair.target.url, "-o", "json")
    assert told.code == 0, told.err
    assert (told.value["copied"], told.value["kept"]) == (number - before, before)
    assert "was closed by an earlier copy to the same ledger" in told.err
    assert rows_in(pair.target) == number


@pytest.mark.slow
async def test_it_says_what_it_did_without_a_password_and_without_a_broker(pair: Pair) -> None:
    async with opened(pair.source) as ledger:
        made = await every_state(ledger)
    told = await command("copy", pair.source.url, pair.target.url, "--why", WHY)
    assert (told.code, told.out) == (0, f"ledger copy: {len(made)} copied, 0 kept, 0 replaced\n")
    assert "is closed; start workers and applications with the LEDGER_URL of" in told.err
    again = await command("copy", pair.source.url, pair.target.url, "-o", "json")
    assert (again.value["kept"], again.value["again"]) == (len(made), True)
    undone = await command("reopen", pair.source.url, pair.target.url)
    assert (undone.code, "is open again" in undone.out) == (0, True)
    refused = await command("copy", pair.source.url, pair.target.url)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    for each in (pair.source, pair.target):
        password = each.url.partition("@")[0].rpartition(":")[2] if each.mark == "%s" else "no password at all"
        for said in (told, again, undone, refused):
            assert password not in said.out + said.err
        for table in ("workqueue_meta", "workqueue_audit"):
            assert password not in str(pair.source.rows(table)) + str(pair.target.rows(table))


async def test_a_worker_stops_it_and_one_that_is_started_on_the_old_one_says_where_it_is_now(site: Site) -> None:
    tasks = simulate(3)
    worker = await site.worker("one")
    await site.send(tasks)
    await site.all_end(tasks)
    target = f"sqlite:{site.folder / 'new.db'}"
    told = await command("copy", site.ledger_url, target)
    assert (told.code, told.out, len(told.err.splitlines())) == (1, "", 1)
    assert f":{worker.process.pid}), seen " in told.err
    tasks += simulate(1)
    await site.send(tasks)  # it works on, and knows what it has done
    await site.all_end(tasks)
    worker.process.send_signal(signal.SIGTERM)
    await until(lambda: worker.process.poll() == 0, "it ends well")
    told = await command("copy", site.ledger_url, target)
    assert told.code == 0, told.err
    late = await site.worker("late", ready=False)
    await until(lambda: late.process.poll() is not None, "it does not start")
    assert late.process.returncode == 2
    assert f"was moved to {target} on " in late.text()
    assert len(late.text().splitlines()) == 1
    await forget_the_ledger(site)
    tasks += simulate(1)
    await site.send(tasks, LEDGER_URL=target)
    await site.worker("two", LEDGER_URL=target)
    await site.all_end(tasks)
    await until(lambda: site.depth_is(0), "the copies are settled")
    await site.all_end(tasks)


async def forget_the_ledger(site: Site) -> None:
    """As RabbitMQ does by itself, 30 s after the last worker ended."""
    async with site.amqp() as channel:
        for receive in contract.load("tests.generated.worker").receives.values():
            await channel.queue_delete(f"{receive.queue.name}.ledger")


async def test_a_frozen_worker_that_wakes_up_after_the_move_does_nothing_and_ends_with_3(site: Site) -> None:
    """It is not seen, as that of a host that was cut off, and is overruled by --force."""
    worker = await site.worker("one")
    worker.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(10.5)
    target = f"sqlite:{site.folder / 'new.db'}"
    told = await command("copy", site.ledger_url, target)
    assert (told.code, f"process {worker.process.pid} has it open" in told.err) == (1, True), told.err
    told = await command("copy", site.ledger_url, target, "--force")
    assert told.code == 0, told.err
    worker.process.send_signal(signal.SIGCONT)
    await site.publish(json.dumps(simulate(1)[0]).encode())
    await until(lambda: worker.process.poll() is not None, "it ends")
    assert worker.process.returncode == 3
    assert "it was moved to" in worker.text()
    assert not site.ended()
