"""The chaos suite, short, and that it sees what it is there to see."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.chaos import ODD_WAYS, OWN
from tests.harness import CHORES, ERRANDS, EXAMPLE, ROOT, TESTS
from tests.pages import source_with_mails
from tests.workers.main import ODD
from workqueue.dev.broker import ensure_installed
from workqueue.dev.programs import BrokerError
from workqueue.errors import ContractInvalid, InputInvalid
from workqueue.testing import WAIT_S, Scripts, copy_project, hurried
from workqueue.testing.chaos import faults
from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.command import check, first_of, main
from workqueue.testing.chaos.command import parse as parse_flags
from workqueue.testing.chaos.faults.operators import Operators
from workqueue.testing.chaos.load import make_tasks
from workqueue.testing.chaos.payloads import Line, addressed, read
from workqueue.testing.chaos.plan import ALL, HOSTS, KINDS, PEOPLE, PROVOKED, Fault, Kind, plan, usable
from workqueue.testing.chaos.run import Chaos
from workqueue.testing.chaos.settings import Payload, RunSettings
from workqueue.testing.chaos.workers import queued_s
from workqueue.testing.evidence import trail

SEED = 7
OPERATIONS = (ERRANDS.operation, CHORES.operation)


def chaos_of(folder: Path, seconds: float, tasks: int, *kinds: str, **more: Any) -> Chaos:
    """A run on the tests' own contract."""
    return Chaos(RunSettings(folder, ROOT, TESTS, SEED, seconds, tasks, odd_ways=ODD_WAYS, kinds=kinds, **more))


@pytest.fixture(scope="module")
def installed() -> None:
    ensure_installed()


@pytest.mark.soak
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kinds", [HOSTS, PEOPLE], ids=["hosts", "people"])
@pytest.mark.timeout(300)
async def test_every_kind_of_fault_loses_no_task_and_has_none_done_twice(
    tmp_path: Path, kinds: dict[str, Kind]
) -> None:
    wanted = usable([*kinds], own=True, ledger="sqlite")
    chaos = chaos_of(tmp_path, 2.0 * len(wanted), 1500, *wanted)
    result = await chaos.run()
    print(chaos.describe(), *trail(result.offending, chaos.evidence), sep="\n")  # shown if it fails
    assert result.kept
    assert result.sent >= 1500
    assert min(result.by_operation[name] for name in OPERATIONS) > 600
    assert set(chaos.hits) | set(chaos.misses) == set(wanted)
    assert len(chaos.hits) > len(wanted) * 0.7, chaos.misses


@pytest.mark.usefixtures("installed")
async def test_a_kill_between_effect_and_record_is_seen_and_told_from_a_broken_promise(tmp_path: Path) -> None:
    chaos = chaos_of(tmp_path, 4, 100, PROVOKED)
    result = await chaos.run()
    assert (
        len(result.honest) >= chaos.hits[PROVOKED] == 2
    )  # what ended in another operation beside it is done again too
    ends = Counter(note.id for note in chaos.evidence.notes if note.word == "end")
    met = Counter(
        note.id
        for life, notes in chaos.evidence.by_life
        for note in notes
        if note.word == "end" and life.killed and note.id not in life.told_done
    )
    assert all(ends[id] == 1 + met[id] >= 2 for id in result.honest)  # now and then both kills meet the same
    assert not result.twice
    assert result.kept, chaos.describe()


@pytest.mark.usefixtures("installed")
async def test_without_a_ledger_a_lost_ack_has_a_task_done_twice_and_that_is_seen(tmp_path: Path) -> None:
    chaos = chaos_of(tmp_path, 6, 300, "cut between effect and ack", ledger="none")
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
    kinds = tuple(KINDS)
    assert plan(1, 60, kinds, OPERATIONS) == plan(1, 60, kinds, OPERATIONS) != plan(2, 60, kinds, OPERATIONS)
    for seed in range(20):
        schedule = plan(seed, 60, kinds, OPERATIONS)
        assert {fault.kind for fault in schedule} == set(KINDS)
        assert [fault.at_s for fault in schedule] == sorted(fault.at_s for fault in schedule)
        assert all(0 <= fault.at_s <= 60 for fault in schedule)
        assert {fault.operation for fault in schedule} == set(OPERATIONS)


def test_the_same_seed_gives_the_same_tasks_spread_over_all_operations(tmp_path: Path) -> None:
    settings = RunSettings(tmp_path, ROOT, TESTS, SEED, 60, 1000, odd_ways=ODD_WAYS)
    tasks = make_tasks(settings, OPERATIONS)
    assert tasks == make_tasks(settings, OPERATIONS) != make_tasks(replace(settings, seed=SEED + 1), OPERATIONS)
    assert len({task.id for task in tasks}) == 1000 < len(tasks)
    assert all(400 < sum(task.operation == name for task in tasks) < 600 for name in OPERATIONS)
    assert chaos_of(tmp_path, 60, 1000, *KINDS).operations == OPERATIONS


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
    assert set(faults.by_kind(anybody, anybody, anybody, anybody, anybody, SEED)) == set(ALL)
    assert set(ODD_WAYS) == set(ODD)


async def test_of_two_pauses_of_a_queue_none_ends_within_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def ask(self: Operators, *arguments: str) -> Any:
        asked.append(arguments)
        await asyncio.sleep(0.01)
        return {"others": [], "consumers": 0}

    monkeypatch.setattr(Operators, "_ask", ask)
    house: Any = SimpleNamespace(at={"do_errand": SimpleNamespace(queue="errands")})
    book = Book({}, own=False)
    operators = Operators(house, {}, book, {}, random.Random(SEED))
    pauses = (Fault(0.0, "queue paused", 1, "do_errand", seconds) for seconds in (0.01, 0.05))
    await asyncio.gather(*map(operators.by_kind["queue paused"], pauses))
    assert [verb for verb, _ in asked] == ["pause", "resume"] * 2
    (_, (_, first_till)), (_, (second_since, _)) = book.paused
    assert first_till < second_since


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--handler", "my-worker.py"], "name tasks of it with --payloads"),
        (["--hurry"], "name tasks of it with --payloads"),
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
    assert read(str(mine)) == [(f"{mine}:1", {"kind": "polish"}), (f"{mine}:3", {"kind": "smash"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, ": No such file or directory"),
        ("", ": is empty; give a line of JSON for each payload"),
        ("{}\n{", ":2: is not JSON (Expecting property name"),
        ("[]", ":1: is no JSON object"),
        ('\n{"kind": "polish"}', ":2: fits the message of no operation ("),
    ],
)
def test_payloads_that_nothing_can_send_are_one_line_that_names_theirs_and_exit_2(
    tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.jsonl"
    if text is not None:
        mine.write_text(text)
    assert main(["--payloads", str(mine)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"chaos: {mine}{said}")


def test_each_payload_goes_to_the_first_operation_whose_message_it_fits() -> None:
    errand, chore = TESTS.operations(ROOT).values()
    assert chore.send is not None
    schema = json.loads(json.dumps(chore.send.message.schema).replace('"nap"', '"doze"'))
    other = replace(chore, send=replace(chore.send, message=replace(chore.send.message, schema=schema)))
    both = {"do_errand": errand, "do_chore": other}
    nap: dict[str, Any] = {"kind": "nap", "seconds": 1}
    doze, fits_both = {**nap, "kind": "doze"}, {"kind": "digest", "text": "a"}
    lines: list[Line] = [("mine:1", nap), ("mine:2", doze), ("mine:3", fits_both)]
    assert addressed(lines, both) == (
        Payload("do_errand", nap), Payload("do_chore", doze), Payload("do_errand", fits_both),
    )  # fmt: skip
    with pytest.raises(
        InputInvalid, match=r"^mine:4: fits the message of no operation \(do_errand: .*; do_chore: .*\)$"
    ):
        addressed([("mine:4", {"kind": "nip"})], both)
    with pytest.raises(ContractInvalid, match="nothing sends to do_errand; "):
        addressed(lines, {"do_errand": replace(errand, send=None)})


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


@pytest.mark.soak
@pytest.mark.example
@pytest.mark.usefixtures("installed")
@pytest.mark.timeout(300)
async def test_chaos_runs_on_the_examples_kinds_with_its_real_handlers(tmp_path: Path) -> None:
    project = copy_project(ROOT, tmp_path / "project", hurried(ROOT / "spec", lease_s=10))
    (tmp_path / "run").mkdir()
    kinds = ("worker killed", "connections cut", "cut between copy and ack", "odd handlers")
    chaos = Chaos(RunSettings(tmp_path / "run", project, EXAMPLE, SEED, 6, 300, kinds=kinds))
    result = await chaos.run()
    assert result.kept, chaos.describe()
    assert set(chaos.hits | chaos.misses) == set(kinds) - {"odd handlers"}
    assert len(result.done) > 250


@pytest.mark.example  # whose spec/ is made somebody else's
@pytest.mark.usefixtures("installed")
@pytest.mark.timeout(300)
async def test_chaos_runs_on_all_operations_of_somebody_elses_contract_with_handlers_of_theirs(tmp_path: Path) -> None:
    project = users_project(tmp_path)
    scripts = Scripts("generated", str(project / "my-worker.py"), ("main-producer.py",))
    mail = {"kind": "mail", "to": "a@example.com", "text": "é"}
    lines: list[dict[str, Any]] = [*[{"kind": "polish", "shine": 0.5}] * 9, {"kind": "smash"}, *[mail] * 5]
    payloads = addressed([("mine", line) for line in lines], scripts.operations(project))
    kinds = ("worker killed", "connections cut", "poison sent", "cut between copy and ack", "odd handlers")
    (tmp_path / "run").mkdir()
    chaos = Chaos(RunSettings(tmp_path / "run", project, scripts, SEED, 8, 300, payloads=payloads, kinds=kinds))
    result = await chaos.run()
    assert result.kept, chaos.describe()
    assert set(chaos.hits | chaos.misses) == set(kinds) - {"odd handlers"}
    assert result.poison_sent > 15
    assert 0 < len(result.dead) < len(result.done)
    assert len(result.dead | result.done) == result.sent
    assert result.by_operation["mend"] > result.by_operation["send_mail"] > 50


def users_project(folder: Path) -> Path:
    """A project whose contract has kinds, names and delays of somebody else, and mails beside them. One of its handlers
    is an object."""
    source = source_with_mails(folder / "source")
    for document in (source / "spec").glob("*.yaml"):
        document.write_text(theirs(document.read_text()))
    project = copy_project(source, folder / "project", hurried(source / "spec", lease_s=10))
    (project / "my-worker.py").write_text(THEIR_WORKER)
    (project / "mending.py").write_text("def polished(shine):\n    return shine / 2\n")
    (project / "main-producer.py").write_text(THEIR_PRODUCER)
    return project


def theirs(text: str) -> str:
    text = text.replace("task-queue", "workshop").replace("process_task", "mend").replace("submit_task", "ask")
    common = yaml.safe_load(text)
    schemas = common.get("components", {}).get("schemas", {})
    if "Checksum" not in schemas:
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


def closed(title: str, kind: str, **properties: Any) -> dict[str, Any]:
    properties = {"kind": {"type": "string", "const": kind}, **properties}
    shape = {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}
    return {"title": title, **shape}


THEIR_WORKER = '''"""A worker of somebody else, one of whose handlers is a plain object."""

import sys

from generated.worker import Application
from generated.worker.messages.json import MailSent, Polished
from mending import polished
from workqueue import run_worker


class Mend:
    def __call__(self, task, run):
        if task.payload.kind == "smash":
            raise ValueError("it is in pieces")
        return Polished(kind="polish", shine=polished(task.payload.shine))


async def send_mail(task, run):
    return MailSent(kind="mail", server="localhost")


sys.exit(run_worker(Application, {"mend": Mend(), "send_mail": send_mail}, about=__doc__))
'''

THEIR_PRODUCER = '''"""Their producer."""

import sys

from generated.producer import Application
from workqueue import run_producer

sys.exit(run_producer(Application, about=__doc__))
'''
