"""The chaos suite, short, and that it sees what it is there to see."""

import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from tests.chaos import ODD_WAYS, OWN
from tests.harness import EXAMPLE, ROOT, TESTS
from tests.workers.main import ODD
from workqueue.dev.broker import ensure_installed
from workqueue.dev.programs import BrokerError
from workqueue.observe.lines import JsonLines, TextLines
from workqueue.tasks import events
from workqueue.tasks.events import Event
from workqueue.testing import WAIT_S, Note, Scripts, copy_project, hurried
from workqueue.testing.account import Evidence, Letter, Life, Told, account, parse, spans_between, trail
from workqueue.testing.chaos.command import check, first_of
from workqueue.testing.chaos.command import parse as parse_flags
from workqueue.testing.chaos.faults import Faults
from workqueue.testing.chaos.plan import ALL, HOSTS, KINDS, PEOPLE, PROVOKED, Kind, plan, usable
from workqueue.testing.chaos.run import Chaos, queued_s

SEED = 7
TESTED: dict[str, Any] = {"project": ROOT, "scripts": TESTS, "odd_ways": ODD_WAYS}


@pytest.fixture(scope="module")
def installed() -> None:
    ensure_installed()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kinds", [HOSTS, PEOPLE], ids=["hosts", "people"])
@pytest.mark.timeout(300)
async def test_every_kind_of_fault_loses_no_task_and_has_none_done_twice(
    tmp_path: Path, kinds: dict[str, Kind]
) -> None:
    wanted = usable([*kinds], own=True, server=False)
    chaos = Chaos(tmp_path, **TESTED, seed=SEED, seconds=2.0 * len(wanted), tasks=1500, kinds=wanted)
    result = await chaos.run()
    print(chaos.describe(), *trail(result.offending, chaos.evidence), sep="\n")  # shown if it fails
    assert result.kept
    assert result.sent >= 1500
    assert set(chaos.hits) | set(chaos.misses) == set(wanted)
    assert len(chaos.hits) > len(wanted) * 0.7, chaos.misses


@pytest.mark.usefixtures("installed")
async def test_a_kill_between_effect_and_record_is_seen_and_told_from_a_broken_promise(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, **TESTED, seed=SEED, seconds=4, tasks=100, kinds=[PROVOKED])
    result = await chaos.run()
    assert chaos.hits[PROVOKED] == len(result.honest) == 2
    ends = Counter(note.id for note in chaos.evidence.notes if note.word == "end")
    assert all(ends[id] == 2 for id in result.honest)
    assert not result.twice
    assert result.kept, chaos.describe()


@pytest.mark.usefixtures("installed")
async def test_without_a_ledger_a_lost_ack_has_a_task_done_twice_and_that_is_seen(tmp_path: Path) -> None:
    chaos = Chaos(
        tmp_path, **TESTED, seed=SEED, seconds=6, tasks=300, ledger="none", kinds=["cut between effect and ack"]
    )
    result = await chaos.run()
    assert result.twice
    assert not result.kept
    assert not result.lost
    chaos.keep_evidence()
    told = (tmp_path / "offending").read_text()
    for id in result.twice:
        assert id in told
    assert told.count("  record  end") >= 2
    assert '"event": "done"' in told


def test_the_same_seed_gives_the_same_schedule_and_a_minute_has_every_kind() -> None:
    assert plan(1, 60, tuple(KINDS)) == plan(1, 60, tuple(KINDS)) != plan(2, 60, tuple(KINDS))
    for seed in range(20):
        schedule = plan(seed, 60, tuple(KINDS))
        assert {fault.kind for fault in schedule} == set(KINDS)
        assert [fault.at_s for fault in schedule] == sorted(fault.at_s for fault in schedule)
        assert all(0 <= fault.at_s <= 60 for fault in schedule)


def test_time_between_moments_is_counted_without_what_is_taken_out() -> None:
    assert list(spans_between([0, 10, 20], [(4, 6), (9, 12), (11, 13)])) == [(0, 4), (6, 9), (13, 20)]
    assert list(spans_between([0, 10], [(-1, 11)])) == []


def uuids(count: int) -> list[str]:
    return [str(UUID(int=number)) for number in range(count)]


def test_an_account_names_the_lost_the_dead_and_the_idle(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    *ids, missing, buried, doomed, blamed, eaten = uuids(85)
    said = {"time": 79.5, "event": "retrying", "id": blamed, "attempt": 1, "error": "CancelledError"}
    log.write_text(json.dumps(said))
    other.touch()
    busy, idle = Life("busy", 1, log, 0.0, termed=90.0, code=0), Life("idle", 2, other, 0.0, ended=60.0, code=1)
    notes = [Note(word, id, "busy", 1, float(at)) for at, id in enumerate(ids) for word in ("start", "end")]
    seen = Evidence(
        given={**dict.fromkeys(ids, 0.0), missing: 1.0, buried: 1.0, doomed: 79.0},
        failures={doomed: None},
        poison={"poison-1": "", "poison-2": ""},
        notes=[*notes, Note("end", eaten, "busy", 1, 80.0)],
        letters=[Letter(id, {"x-attempts": []}) for id in (buried, doomed, doomed, "poison-1")],
        lives=[busy, idle],
        unhealthy=[(20.0, 30.0)],
        left_over=0,
        stuck=False,
        own_failures=False,
    )
    result = account(seen)
    assert (result.lost, result.dead_unexpected, result.dead) == ({missing}, {buried}, {doomed})
    assert (result.dead_again, result.poison_lost, result.unknown) == ({doomed}, {"poison-2"}, {eaten})
    assert (result.miscounted, result.by_sigterm) == ({blamed}, 1)
    assert [line.split(" got nothing for ")[1].split(",")[0] for line in result.idle] == ["20.0 s", "30.0 s"]
    assert "idle (other) ended with 1" in result.crashed[0]
    assert not result.kept


def crowd(tmp_path: Path) -> tuple[Evidence, dict[str, str]]:
    """A process of two tasks at a time that a deadly task killed, after another one had ended beside it."""
    log = tmp_path / "log"
    log.touch()
    names = dict(zip(("good", "deadly", "odd", "flooded"), uuids(4), strict=True))
    wide = Life("wide", 1, log, 0.0, ended=3.0, code=-9, concurrency=2)
    heir = Life("heir", 2, log, 3.0, ended=9.0, termed=8.0, code=0)
    good, deadly, odd, flooded = names.values()
    notes = [("start", good, wide, 1.0), ("start", deadly, wide, 1.5), ("end", good, wide, 2.0)]
    notes += [("start", good, heir, 4.0), ("end", good, heir, 5.0), ("start", odd, heir, 6.0)]
    letters = [Letter(deadly, {"x-reason": "crashed"})]
    letters += [Letter(id, {"x-reason": "failed"}) for id in (odd, flooded)]
    seen = Evidence(
        given=dict.fromkeys(names.values(), 0.0),
        failures={good: 0, deadly: 0, odd: 0, flooded: None},
        poison={},
        notes=[Note(word, id, life.name, life.pid, at) for word, id, life, at in notes],
        letters=letters,
        lives=[wide, heir],
        unhealthy=[],
        left_over=0,
        stuck=False,
        own_failures=False,
        odd=frozenset([odd]),
        deadly=frozenset([deadly]),
        flooded=frozenset([flooded]),
    )
    return seen, names


def test_a_deadly_task_may_kill_and_die_and_what_it_undid_beside_it_is_in_the_honest_window(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    result = account(seen)
    assert result.kept, result
    assert result.honest == {names["good"]}
    assert result.dead == {names["deadly"], names["odd"], names["flooded"]}


def test_a_good_task_that_is_convicted_is_a_broken_promise_even_if_it_was_sent_back(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    result = account(replace(seen, moved=[Letter(names["good"], {"x-reason": "crashed"})]))
    assert result.convicted == result.dead_unexpected == {names["good"]}
    assert not result.kept


def test_an_odd_task_that_ends_and_is_dead_for_it_may_end_again_when_it_was_sent_back(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    ends = [Note("end", names["odd"], "heir", 2, at) for at in (6.5, 7.0)]
    sent_back = [Letter(names["odd"], {"x-reason": "gave-up"})]
    assert account(replace(seen, notes=[*seen.notes, *ends])).twice == {names["odd"]}
    assert account(replace(seen, notes=[*seen.notes, *ends], moved=sent_back)).kept
    ends.append(Note("end", names["odd"], "heir", 2, 7.5))
    assert account(replace(seen, notes=[*seen.notes, *ends], moved=sent_back)).twice == {names["odd"]}


def test_poison_of_which_just_the_headers_are_wrong_is_a_task_once_it_was_sent_back(tmp_path: Path) -> None:
    seen, _ = crowd(tmp_path)
    task = uuids(9)[-1]
    notes = [*seen.notes, Note("end", task, "heir", 2, 6.5)]
    seen = replace(seen, notes=notes, poison={"poison-1": ""}, curable={"poison-1": task})
    assert account(seen).poison_lost == {"poison-1"}
    assert task in account(seen).unknown
    cured = account(replace(seen, moved=[Letter("poison-1", {"x-reason": "invalid"})]))
    assert not cured.poison_lost
    assert task not in cured.unknown


@pytest.mark.parametrize("name", ["deadly", "flooded"])
def test_a_task_that_is_begun_without_end_is_a_broken_promise(tmp_path: Path, name: str) -> None:
    seen, names = crowd(tmp_path)
    many = [Note("start", names[name], "heir", 2, 6.0)] * 10
    assert account(replace(seen, notes=[*seen.notes, *many])).overtried == {names[name]}


def test_what_goes_with_a_deleted_queue_is_the_operators_loss_and_no_more_than_that(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    without = replace(seen, letters=seen.letters[:1], deleted=2, stuck=True)  # waited for, and it did not come
    assert account(without).lost == {names["odd"], names["flooded"]}
    assert account(without).kept
    assert not account(replace(without, deleted=1)).kept
    assert account(replace(without, deleted=1)).stuck
    assert account(replace(without, left_over=1)).stuck
    assert account(replace(without, poison={"poison-1": ""})).stuck


def test_the_log_of_a_worker_is_read_as_it_writes_it_and_as_older_ones_do() -> None:
    (id,) = uuids(1)
    for what, expected in (
        (events.Done(2), Told(0.0, "done", id, 2)),
        (events.Retrying(1, 0.1, "told to fail"), Told(0.0, "retrying", id, 1, "told to fail")),
        (events.Dead("failed", "E"), Told(0.0, "dead", id, 1, "E")),
        (events.Delayed("crashed", 0.1, 2), Told(0.0, "delayed", id)),
        (events.HandedBack(), Told(0.0, "handed_back", id)),
    ):
        event = Event("w 1", "do", "nap", id, 0.005, what)
        written = io.StringIO()
        for kind in (JsonLines, TextLines):
            kind(written)(event)
        told, older = map(parse, written.getvalue().splitlines())
        assert told is not None
        assert older is not None
        assert replace(told, at=0.0) == expected
        assert (older.event, older.id, older.attempt) == (expected.event, id, expected.attempt)
        assert expected.error in older.error
        assert abs(told.at - older.at) < 60
    for line in (
        "2026-11-25 09:30:00,123 w 1  ready  takes 1 at a time from errands",
        '{"event": "ready"}',
        '{"ev',
        "",
    ):
        assert parse(line) is None


def test_a_process_that_gets_no_processor_is_not_called_idle() -> None:
    spin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    with ExitStack() as closing:
        busy = [closing.enter_context(subprocess.Popen([sys.executable, "-c", spin])) for _ in range(3)]
        for process in busy:
            closing.callback(process.kill)
        deadline = time.monotonic() + WAIT_S
        while not all(queued_s(process.pid, 0.0) > 1.0 for process in busy):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert queued_s(busy[0].pid, 7.0) == 7.0


def test_every_kind_of_fault_can_be_carried_out_and_every_odd_way_has_a_handler() -> None:
    anybody: Any = None
    assert set(Faults(anybody, 1).by_kind) == set(ALL)
    assert set(ODD_WAYS) == set(ODD)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--handler", "my-worker.py"], "name tasks of it with --payloads"),
        (["--hurry"], "name tasks of it with --payloads"),
        (["--payloads", "/no/such/file"], "--payloads /no/such/file: No such file"),
        (["--faults", "rain"], "there is no such fault: rain"),
        (["--faults", "ledger silent"], "none of these faults is possible"),
        (["--concurrency", "0"], "numbers above 0"),
        (["--old", "HEAD", "--payloads", "x"], "--old runs the example"),
    ],
)
def test_what_chaos_cannot_run_is_said_with_exit_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_flags(flags, OWN)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_without_the_examples_kinds_payloads_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        parse_flags([])
    assert ended.value.code == 2
    assert "name payloads of them with --payloads" in capsys.readouterr().err


def test_payloads_may_be_whole_tasks_as_for_the_producer(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"kind": "polish"}\n\n{"id": "x", "created_at": "y", "payload": {"kind": "smash"}}\n')
    assert parse_flags(["--payloads", str(mine)]).payloads == [{"kind": "polish"}, {"kind": "smash"}]


def test_a_script_that_does_not_start_is_said_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "worker.py").write_text("from argparse import ArgumentParser\nArgumentParser().parse_args()\n")
    (tmp_path / "producer.py").write_text("from argparse import ArgumentParser as Checksum, NoSuchKind\n")
    check(tmp_path, Scripts("generated", "worker.py", ("worker.py",)))
    check(ROOT, TESTS)
    with pytest.raises(subprocess.CalledProcessError, match=r"producer\.py"):
        check(tmp_path, Scripts("generated", "worker.py", ("producer.py",)))
    assert "NoSuchKind" in capfd.readouterr().err


def test_what_went_wrong_in_a_fault_is_found_however_deep_it_is() -> None:
    wrong = BrokerError("rabbitmqctl took too long")
    assert first_of(ExceptionGroup("faults", [ExceptionGroup("one", [wrong])])) is wrong
    assert first_of(wrong) is wrong


@pytest.mark.example
@pytest.mark.usefixtures("installed")
@pytest.mark.timeout(300)
async def test_chaos_runs_on_the_examples_kinds_with_its_real_handlers(tmp_path: Path) -> None:
    project = copy_project(ROOT, tmp_path / "project", hurried(ROOT / "spec", lease_s=10))
    (tmp_path / "run").mkdir()
    kinds = ["worker killed", "connections cut", "cut between copy and ack", "odd handlers"]
    chaos = Chaos(tmp_path / "run", seed=SEED, seconds=6, tasks=300, project=project, scripts=EXAMPLE, kinds=kinds)
    result = await chaos.run()
    assert result.kept, chaos.describe()
    assert set(chaos.hits | chaos.misses) == set(kinds) - {"odd handlers"}
    assert len(result.done) > 250


@pytest.mark.example  # whose spec/ is made somebody else's
@pytest.mark.usefixtures("installed")
@pytest.mark.timeout(300)
async def test_chaos_runs_on_a_contract_of_somebody_elses_with_a_handler_of_theirs(tmp_path: Path) -> None:
    project = users_project(tmp_path / "project")
    scripts = Scripts("generated", str(project / "my-worker.py"), ("main-producer.py",))
    payloads: list[dict[str, Any]] = [{"kind": "polish", "shine": 0.5}] * 9 + [{"kind": "smash"}]
    kinds = ["worker killed", "connections cut", "poison sent", "cut between copy and ack", "odd handlers"]
    (tmp_path / "run").mkdir()
    chaos = Chaos(
        tmp_path / "run", seed=SEED, seconds=8, tasks=200, project=project, scripts=scripts, payloads=payloads,
        kinds=kinds,
    )  # fmt: skip
    result = await chaos.run()
    assert result.kept, chaos.describe()
    assert set(chaos.hits | chaos.misses) == set(kinds) - {"odd handlers"}
    assert result.poison_sent > 15
    assert 0 < len(result.dead) < len(result.done)
    assert len(result.dead | result.done) == result.sent


def users_project(folder: Path) -> Path:
    """A project whose contract has kinds, names and delays of somebody else, and a handler that is an object."""

    def theirs(text: str) -> str:
        text = text.replace("task-queue", "workshop").replace("process_task", "mend").replace("submit_task", "ask")
        common = yaml.safe_load(text)
        schemas = common.get("components", {}).get("schemas")
        if schemas is None:
            return text
        for name in ("Checksum", "Simulate", "ChecksumResult", "SimulateResult"):
            del schemas[name]
        shine = {"type": "number", "minimum": 0, "maximum": 1}
        limit = {"x-time-limit-s": 60}
        schemas["Polish"] = closed("Polish", "polish", shine=shine) | limit
        schemas["Smash"] = closed("Smash", "smash") | limit
        schemas["Polished"] = closed("Polished", "polish", shine=shine)
        refs = [{"$ref": f"#/components/schemas/{name}"} for name in ("Polish", "Smash")]
        schemas["Task"]["properties"]["payload"]["oneOf"] = refs
        schemas["Result"]["oneOf"] = [{"$ref": "#/components/schemas/Polished"}]
        example = common["components"]["messages"]["task"]["examples"][0]
        example["payload"]["payload"] = {"kind": "smash"}
        common["components"]["messages"]["task"]["examples"] = [example]
        return yaml.safe_dump(common, sort_keys=False)

    spec = tmp_spec(folder.with_name("spec"), theirs)
    hurry = hurried(spec, lease_s=10)
    copy_project(ROOT, folder, lambda text: hurry(theirs(text)))
    (folder / "my-worker.py").write_text(THEIR_WORKER)
    (folder / "mending.py").write_text("def polished(shine):\n    return shine / 2\n")
    (folder / "main-producer.py").write_text(THEIR_PRODUCER)
    return folder


def tmp_spec(folder: Path, edit: Callable[[str], str]) -> Path:
    folder.mkdir()
    for document in (ROOT / "spec").glob("*.yaml"):
        (folder / document.name).write_text(edit(document.read_text()))
    return folder


def closed(title: str, kind: str, **properties: Any) -> dict[str, Any]:
    properties = {"kind": {"type": "string", "const": kind}, **properties}
    shape = {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}
    return {"title": title, **shape}


THEIR_WORKER = '''"""A worker of somebody else, whose handler is a plain object."""

import sys

from generated.worker import Application
from generated.worker.messages.json import Polished
from mending import polished
from workqueue import run_worker


class Mend:
    def __call__(self, task, run):
        if task.payload.kind == "smash":
            raise ValueError("it is in pieces")
        return Polished(kind="polish", shine=polished(task.payload.shine))


sys.exit(run_worker(Application, {"mend": Mend()}, about=__doc__))
'''

THEIR_PRODUCER = '''"""Their producer."""

import sys

from generated.producer import Application
from workqueue import run_producer

sys.exit(run_producer(Application, about=__doc__))
'''
