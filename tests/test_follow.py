"""Following tasks that were sent, through a ledger that answers as it is told."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.harness import ROOT
from workqueue import codec
from workqueue.client.sending import Outgoing
from workqueue.codec import Body
from workqueue.errors import InputInvalid, NotSent, SettingInvalid
from workqueue.ledger import LedgerBusy, Outcome
from workqueue.ledger.none import NoLedger
from workqueue.producer import ResultsFile, follow
from workqueue.producer.follow import Follower


class Told(NoLedger):
    """Knows of `finished`; is busy at first."""

    def __init__(self) -> None:
        self.finished: set[UUID] = set()
        self.largest = self.asked = 0

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        self.asked += 1
        self.largest = max(self.largest, len(ids))
        if self.asked == 1:
            raise LedgerBusy
        return [Outcome(task_id, "done", "w", 1, "{}", None, 0.0) for task_id in ids if task_id in self.finished]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.001)
    monkeypatch.setattr(follow, "LOOK_AT", 10)


def tasks(count: int) -> list[Any]:
    return [SimpleNamespace(id=uuid4()) for _ in range(count)]


def outgoing(task: Any, text: bytes = b'{"payload": {"kind": "nap"}}') -> Outgoing:
    return Outgoing(task.id, "nap", Body(text), "send_errand", is_new=True)


def send(follower: Follower, given: list[Any]) -> list[Any]:
    """Those that are read, of which each but the unreadable is sent."""
    read = list(follower.noting(iter(given)))
    for task in read:
        if not isinstance(task, InputInvalid):
            follower.sending(outgoing(task))
    return read


async def test_it_ends_when_all_are_finished_and_records_each_once() -> None:
    ledger, results, sent = Told(), io.StringIO(), tasks(105)
    ledger.finished = {task.id for task in sent}
    with Follower(ledger, results) as follower:
        assert send(follower, sent) == sent
        await follower.finish()
    assert follower.done == 105
    assert {json.loads(line)["id"] for line in results.getvalue().splitlines()} == {str(task.id) for task in sent}
    assert ledger.largest <= 20


async def test_tasks_that_stay_unfinished_do_not_hide_those_behind_them() -> None:
    ledger, sent = Told(), tasks(205)
    stuck, others = sent[:55], sent[55:]
    ledger.finished = {task.id for task in others}
    with Follower(ledger, None) as follower:
        send(follower, sent)
        while follower.done < len(others):  # noqa: ASYNC110  # what is watched is not ours
            await asyncio.sleep(0.001)
        ledger.finished |= {task.id for task in stuck}
        await follower.finish()
    assert follower.done == len(sent)


async def test_what_was_refused_is_not_waited_for() -> None:
    ledger, sent = Told(), tasks(2)
    ledger.finished = {sent[0].id}
    with Follower(ledger, None) as follower:
        send(follower, [*sent, InputInvalid("x", "is bad")])
        follower.problem(NotSent(str(sent[1].id), "is too large"))
        await follower.finish()
    assert (follower.done, follower.dead) == (1, 0)


async def test_an_error_of_its_own_ends_it_instead_of_the_wait_never_ending() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    ledger, sent = Told(), tasks(1)
    ledger.finished = {sent[0].id}
    with Follower(ledger, Full()) as follower:
        send(follower, sent)
        with pytest.raises(OSError, match="No space left"):
            await follower.finish()


class Known(NoLedger):
    """Knows the payload of whatever is asked, and that it is done."""

    def __init__(self, digest: bytes | None) -> None:
        self.digest = digest

    async def outcomes(self, ids: Sequence[UUID]) -> list[Outcome]:
        return [Outcome(one, "done", "w", 2, '{"a": 1}', None, 0.0, digest=self.digest) for one in ids]


SENT, OTHER = codec.digest(b'{"payload": {"kind": "nap"}}'), codec.digest(b'{"payload": 1}')


@pytest.mark.parametrize("known", [None, SENT, OTHER])
async def test_the_outcome_of_another_payload_under_the_same_id_is_told_as_a_conflict(
    capsys: pytest.CaptureFixture[str], known: bytes | None
) -> None:
    results, sent = io.StringIO(), tasks(1)
    with Follower(Known(known), results) as follower:
        (noted,) = follower.noting(iter(sent))
        await asyncio.sleep(0.05)  # it is not sent yet, and what is known is not of this task
        assert (follower.done, follower.dead) == (0, 0)
        follower.sending(outgoing(noted))
        await follower.finish()
    (line,) = map(json.loads, results.getvalue().splitlines())
    if known == OTHER:
        assert (follower.done, follower.dead) == (0, 1)
        assert (line["state"], line["result"], line["error"].partition(":")[0]) == ("dead", None, "conflict")
        assert f"task {noted.id}: its id is known with another payload" in capsys.readouterr().err
    else:
        assert (follower.done, follower.dead) == (1, 0)
        assert (line["state"], line["result"], line["error"]) == ("done", {"a": 1}, None)


RESULTS = """
import sys
from workqueue.producer import ResultsFile
print("first", file=sys.stdout, flush=True)
with ResultsFile(sys.argv[1]) as results:
    results.write("a result\\n")
print("and what is printed after it")
"""


@pytest.mark.parametrize(("mode", "kept"), [("w", []), ("a", ["earlier"])])
def test_results_on_a_standard_output_that_is_a_file_are_its_lines(tmp_path: Path, mode: str, kept: list[str]) -> None:
    (tmp_path / "out").write_text("earlier\n")
    with (tmp_path / "out").open(mode) as out:
        subprocess.run([sys.executable, "-c", RESULTS, "/dev/stdout"], cwd=ROOT, stdout=out, check=True)
    said = (tmp_path / "out").read_text().splitlines()
    assert said == [*kept, "first", "a result", "and what is printed after it"]


def test_results_on_standard_output_are_refused_for_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingInvalid, match="name a file: standard output has the table"):
        ResultsFile("-")
    assert not list(tmp_path.iterdir())


def test_a_file_of_results_has_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a longer line than there will be\n")
    subprocess.run([sys.executable, "-c", RESULTS, str(tmp_path / "results")], cwd=ROOT, check=True)
    assert (tmp_path / "results").read_text() == "a result\n"
