"""The chaos suite, short, and that it sees what it is there to see."""

from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from tests.account import Evidence, Letter, Life, account, spans_between, trail
from tests.chaos import KINDS, PROVOKED, Chaos, plan
from tests.harness import Note
from tools.broker import ensure_installed

SEED = 7


@pytest.fixture(scope="module", autouse=True)
def _broker() -> None:
    ensure_installed()


async def test_every_kind_of_fault_loses_no_task_and_has_none_done_twice(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=SEED, seconds=28, tasks=1500)
    result = await chaos.run()
    print(chaos.describe(), *trail(result.offending, chaos.evidence), sep="\n")  # shown if it fails
    assert result.kept
    assert result.sent >= 1500
    assert set(chaos.hits) | set(chaos.misses) == set(KINDS)
    assert len(chaos.hits) > len(KINDS) * 0.7, chaos.misses


async def test_a_kill_between_effect_and_record_is_seen_and_told_from_a_broken_promise(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=SEED, seconds=4, tasks=100, kinds=[PROVOKED])
    result = await chaos.run()
    assert chaos.hits[PROVOKED] == len(result.honest) == 2
    ends = Counter(note.id for note in chaos.evidence.notes if note.word == "end")
    assert all(ends[id] == 2 for id in result.honest)
    assert not result.twice
    assert result.kept, chaos.describe()


async def test_without_a_ledger_a_lost_ack_has_a_task_done_twice_and_that_is_seen(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=SEED, seconds=6, tasks=300, ledger="none", kinds=["cut between effect and ack"])
    result = await chaos.run()
    assert result.twice
    assert not result.kept
    assert not result.lost
    chaos.keep_evidence()
    told = (tmp_path / "offending").read_text()
    for id in result.twice:
        assert id in told
    assert told.count("  record  end") >= 2
    assert "  done  " in told


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


def test_an_account_names_the_lost_the_dead_and_the_idle(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    at = datetime.fromtimestamp(79.5).isoformat(" ")  # a log has local times
    log.write_text(f"{at[:19]},500 busy  failed  simulate  blamed  attempt 1, again in 0.1 s: CancelledError\n")
    other.touch()
    busy, idle = Life("busy", 1, log, 0.0, termed=90.0, code=0), Life("idle", 2, other, 0.0, ended=60.0, code=1)
    ids = [f"task{number}" for number in range(80)]
    notes = [Note(word, id, "busy", 1, float(at)) for at, id in enumerate(ids) for word in ("start", "end")]
    seen = Evidence(
        given={**dict.fromkeys(ids, 0.0), "missing": 1.0, "buried": 1.0, "doomed": 79.0},
        failures={"doomed": None},
        poison={"poison-1": "", "poison-2": ""},
        notes=[*notes, Note("end", "eaten poison", "busy", 1, 80.0)],
        letters=[Letter(id, {"x-attempts": []}) for id in ("buried", "doomed", "doomed", "poison-1")],
        lives=[busy, idle],
        unhealthy=[(20.0, 30.0)],
        left_over=0,
        stuck=False,
        own_failures=False,
    )
    result = account(seen)
    assert (result.lost, result.dead_unexpected, result.dead) == ({"missing"}, {"buried"}, {"doomed"})
    assert (result.dead_again, result.poison_lost, result.unknown) == ({"doomed"}, {"poison-2"}, {"eaten poison"})
    assert (result.miscounted, result.by_sigterm) == ({"blamed"}, 1)
    assert [line.split(" got nothing for ")[1].split(",")[0] for line in result.idle] == ["20.0 s", "30.0 s"]
    assert "idle (other) ended with 1" in result.crashed[0]
    assert not result.kept
