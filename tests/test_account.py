"""What the judgement on a chaos run sees: each broken promise in evidence that is made up."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.harness import CHORES, ERRANDS
from workqueue.observe.lines import JsonLines, TextLines
from workqueue.tasks import events
from workqueue.tasks.events import Event
from workqueue.testing import Note
from workqueue.testing.account import account
from workqueue.testing.evidence import Evidence, Letter, Life, Told, parse, spans_between


def test_time_between_moments_is_counted_without_what_is_taken_out() -> None:
    assert list(spans_between([0, 10, 20], [(4, 6), (9, 12), (11, 13)])) == [(0, 4), (6, 9), (13, 20)]
    assert list(spans_between([0, 10], [(-1, 11)])) == []


def uuids(count: int) -> list[str]:
    return [str(UUID(int=number)) for number in range(count)]


def test_an_account_names_the_lost_the_dead_and_the_idle(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    *ids, missing, buried, doomed, blamed, eaten = uuids(85)
    event = {"time": 79.5, "event": "retrying", "id": blamed, "attempt": 1, "error": "CancelledError"}
    log.write_text(json.dumps(event))
    other.touch()
    busy, idle = Life("busy", 1, log, 0.0, termed=90.0, code=0), Life("idle", 2, other, 0.0, ended=60.0, code=1)
    notes = [Note(word, id, "busy", 1, float(at)) for at, id in enumerate(ids) for word in ("start", "end")]
    given = {**dict.fromkeys(ids, 0.0), missing: 1.0, buried: 1.0, doomed: 79.0}
    poison = {"poison-1": "", "poison-2": ""}
    seen = Evidence(
        given=given,
        receives=dict.fromkeys([*given, *poison], ERRANDS),
        failures={doomed: None},
        poison=poison,
        notes=[*notes, Note("end", eaten, "busy", 1, 80.0)],
        letters=[letter(id, {"x-attempts": []}) for id in (buried, doomed, doomed, "poison-1")],
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
    said = [line.split(" got nothing of do_errand for ")[1].split(",")[0] for line in result.idle]
    assert said == ["20.0 s", "30.0 s"]
    assert "idle (other) ended with 1" in result.crashed[0]
    assert not result.kept


def letter(id: str, headers: dict[str, Any], operation: str = ERRANDS.operation) -> Letter:
    return Letter(id, headers, operation)


def crowd(tmp_path: Path) -> tuple[Evidence, dict[str, str]]:
    """A process of two errands at a time that a deadly one killed, after another one had ended beside it."""
    log = tmp_path / "log"
    log.touch()
    names = dict(zip(("good", "deadly", "odd", "flooded"), uuids(4), strict=True))
    wide = Life("wide", 1, log, 0.0, ended=3.0, code=-9, concurrency=2)
    heir = Life("heir", 2, log, 3.0, ended=9.0, termed=8.0, code=0)
    good, deadly, odd, flooded = names.values()
    notes = [("start", good, wide, 1.0), ("start", deadly, wide, 1.5), ("end", good, wide, 2.0)]
    notes += [("start", good, heir, 4.0), ("end", good, heir, 5.0)]
    notes += [("start", id, heir, 6.0) for id in (odd, flooded) for _ in range(ERRANDS.max_attempts)]
    letters = [letter(deadly, {"x-reason": "crashed"})]
    letters += [letter(id, {"x-reason": "failed"}) for id in (odd, flooded)]
    seen = Evidence(
        given=dict.fromkeys(names.values(), 0.0),
        receives=dict.fromkeys(names.values(), ERRANDS),
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
    result = account(replace(seen, moved=[letter(names["good"], {"x-reason": "crashed"})]))
    assert result.convicted == result.dead_unexpected == {names["good"]}
    assert not result.kept


def test_an_odd_task_that_ends_and_is_dead_for_it_may_end_again_when_it_was_sent_back(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    ends = [Note("end", names["odd"], "heir", 2, at) for at in (6.5, 7.0)]
    sent_back = [letter(names["odd"], {"x-reason": "gave-up"})]
    assert account(replace(seen, notes=[*seen.notes, *ends])).twice == {names["odd"]}
    assert account(replace(seen, notes=[*seen.notes, *ends], moved=sent_back)).kept
    ends.append(Note("end", names["odd"], "heir", 2, 7.5))
    assert account(replace(seen, notes=[*seen.notes, *ends], moved=sent_back)).twice == {names["odd"]}


def test_a_task_that_is_begun_after_it_was_cancelled_is_a_broken_promise_and_one_that_is_not_is_not_lost(
    tmp_path: Path,
) -> None:
    (seen, _), (*_, more) = crowd(tmp_path), uuids(5)
    given, receives = {**seen.given, more: 0.0}, {**seen.receives, more: ERRANDS}
    seen = replace(seen, given=given, receives=receives, failures={**seen.failures, more: 0})
    assert account(seen).lost == {more}
    for told in (5.0, None):
        assert account(replace(seen, called_off={more: told})).kept
    begun = Note("start", more, "heir", 2, 6.0)
    for told, wrong in ((5.0, {more}), (6.5, set()), (None, set())):
        result = account(replace(seen, called_off={more: told}, notes=[*seen.notes, begun]))
        assert (result.begun_cancelled, result.kept) == (wrong, not wrong)


def test_more_tasks_of_a_paused_queue_than_were_in_hand_are_a_broken_promise(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    told = {
        operation: account(replace(seen, paused=[(operation, span)])).begun_paused
        for operation, span in ((ERRANDS.operation, (3.5, 7.0)), (CHORES.operation, (3.5, 7.0)))
    }
    assert told == {ERRANDS.operation: {names["good"], names["odd"], names["flooded"]}, CHORES.operation: set()}
    assert account(replace(seen, paused=[(ERRANDS.operation, (3.5, 5.5))])).kept  # one, which may have been in hand


def test_poison_of_which_just_the_headers_are_wrong_is_a_task_once_it_was_sent_back(tmp_path: Path) -> None:
    seen, _ = crowd(tmp_path)
    task = uuids(9)[-1]
    notes = [*seen.notes, Note("end", task, "heir", 2, 6.5)]
    seen = replace(seen, notes=notes, poison={"poison-1": ""}, curable={"poison-1": task})
    assert account(seen).poison_lost == {"poison-1"}
    assert task in account(seen).unknown
    cured = account(replace(seen, moved=[letter("poison-1", {"x-reason": "invalid"})]))
    assert not cured.poison_lost
    assert task not in cured.unknown


@pytest.mark.parametrize("name", ["deadly", "flooded"])
def test_a_task_that_is_begun_without_end_is_a_broken_promise(tmp_path: Path, name: str) -> None:
    seen, names = crowd(tmp_path)
    many = [Note("start", names[name], "heir", 2, 6.0)] * 10
    assert account(replace(seen, notes=[*seen.notes, *many])).overtried == {names[name]}


def chores(seen: Evidence, *ids: str) -> Evidence:
    """The same, had these been sent to the other operation."""
    return replace(seen, receives={**seen.receives, **dict.fromkeys(ids, CHORES)})


def test_a_dead_letter_of_one_operation_among_those_of_another_is_a_broken_promise(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    strays = chores(seen, names["deadly"])
    assert account(strays).astray == {names["deadly"]}
    assert not account(strays).kept
    found = [letter(names["deadly"], {"x-reason": "crashed"}, CHORES.operation), *seen.letters[1:]]
    assert account(replace(strays, letters=found)).kept
    poison = replace(chores(seen, "poison-1"), poison={"poison-1": ""}, letters=[*seen.letters, letter("poison-1", {})])
    assert account(poison).astray == {"poison-1"}
    assert account(replace(strays, letters=found, moved=[letter(names["deadly"], {})])).astray == {names["deadly"]}


def test_a_task_of_one_operation_that_the_handler_of_another_began_is_a_broken_promise(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    by_errands = replace(seen, notes=[replace(note, operation=ERRANDS.operation) for note in seen.notes])
    assert account(by_errands).kept
    by_both = [*by_errands.notes, Note("start", names["good"], "heir", 2, 6.0, CHORES.operation)]
    assert account(replace(by_errands, notes=by_both)).astray == {names["good"]}
    assert not account(replace(by_errands, notes=by_both)).kept


@pytest.mark.parametrize("name", ["deadly", "flooded"])
def test_the_limits_of_a_task_are_those_of_its_own_operation(tmp_path: Path, name: str) -> None:
    seen, names = crowd(tmp_path)
    limit = {"deadly": CHORES.crash_limit, "flooded": CHORES.max_attempts}[name] + 3
    some = [note for note in seen.notes if note.id != names[name]]
    seen = replace(seen, notes=[*some, *[Note("start", names[name], "heir", 2, 6.0)] * (limit + 1)])
    assert account(seen).overtried == ({names[name]} if name == "deadly" else set())
    letters = [replace(one, operation=CHORES.operation) if one.id == names[name] else one for one in seen.letters]
    assert account(replace(chores(seen, names[name]), letters=letters)).overtried == {names[name]}


def test_a_task_that_had_the_attempts_of_another_operation_is_miscounted(tmp_path: Path) -> None:
    seen, names = crowd(tmp_path)
    flooded = names["flooded"]
    others = [note for note in seen.notes if note.id != flooded]
    few = [note for note in seen.notes if note.id == flooded][: CHORES.max_attempts]
    assert account(replace(seen, notes=[*others, *few])).miscounted == {flooded}  # given up like a chore
    told = {"x-reason": "failed", "x-attempts": ["told to fail"] * ERRANDS.max_attempts}
    many = [*seen.letters[:-1], letter(flooded, told)]
    assert account(replace(seen, letters=many)).kept
    as_chore = [*seen.letters[:-1], letter(flooded, told, CHORES.operation)]
    assert account(replace(chores(seen, flooded), letters=as_chore)).miscounted == {flooded}  # tried like an errand


def test_a_worker_that_gets_nothing_of_one_operation_is_idle_however_busy_it_is_with_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    ids = uuids(120)
    errands, other = ids[:60], ids[60:]
    busy, half = Life("busy", 1, log, 0.0, termed=70.0, code=0), Life("half", 2, log, 0.0, termed=70.0, code=0)
    notes = [Note(word, id, "half", 2, at) for at, id in enumerate(errands) for word in ("start", "end")]
    notes += [Note(word, id, "busy", 1, at) for at, id in enumerate(other) for word in ("start", "end")]
    seen = Evidence(
        given={id: float(at) for some in (errands, other) for at, id in enumerate(some)},
        receives=dict.fromkeys(errands, ERRANDS) | dict.fromkeys(other, CHORES),
        failures={}, poison={}, notes=notes, letters=[], lives=[busy, half], unhealthy=[], left_over=0, stuck=False,
        own_failures=False,
    )  # fmt: skip
    assert sorted(line.partition(" for ")[0] for line in account(seen).idle) == [
        "busy (log) got nothing of do_errand",
        "half (log) got nothing of do_chore",
    ]
    shared = replace(seen, notes=[replace(note, pid=1 + int(note.at) % 2) for note in notes])
    assert account(shared).kept


def test_an_operation_of_which_there_was_little_to_get_has_nobody_idle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    (only,) = uuids(1)
    seen = Evidence(
        given={only: 0.0}, receives={only: ERRANDS}, failures={}, poison={},
        notes=[Note(word, only, "other", 2, 60.0) for word in ("start", "end")], letters=[],
        lives=[Life("bored", 1, log, 0.0, termed=70.0, code=0), Life("other", 2, log, 0.0, termed=70.0, code=0)],
        unhealthy=[], left_over=0, stuck=False, own_failures=False,
    )  # fmt: skip
    assert account(seen).kept


def test_a_worker_whose_turn_it_is_not_yet_is_not_idle(tmp_path: Path) -> None:
    """The broker gives to each consumer in turn, and this worker has one of 101."""
    log = tmp_path / "log"
    log.touch()
    ids = uuids(90)
    many = Life("many", 2, log, 0.0, termed=70.0, code=0, concurrency=100)
    seen = Evidence(
        given={id: at * 0.5 for at, id in enumerate(ids)}, receives=dict.fromkeys(ids, ERRANDS), failures={}, poison={},
        notes=[Note(word, id, "many", 2, at * 0.5) for at, id in enumerate(ids) for word in ("start", "end")],
        letters=[], lives=[Life("one", 1, log, 0.0, termed=70.0, code=0), many],
        unhealthy=[], left_over=0, stuck=False, own_failures=False,
    )  # fmt: skip
    assert account(seen).kept
    (told,) = account(replace(seen, lives=[seen.lives[0], replace(many, concurrency=50)])).idle
    assert told.startswith("one (log) got nothing of do_errand")


def test_a_worker_that_was_there_long_before_any_task_is_idle_only_from_then_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    ids = uuids(60)
    seen = Evidence(
        given=dict.fromkeys(ids, 15.0), receives=dict.fromkeys(ids, ERRANDS), failures={}, poison={},
        notes=[Note(word, id, "early", 1, 20.0) for id in ids for word in ("start", "end")], letters=[],
        lives=[Life("early", 1, log, 0.0, termed=70.0, code=0)], unhealthy=[], left_over=0, stuck=False,
        own_failures=False,
    )  # fmt: skip
    assert account(seen).kept
    (told,) = account(replace(seen, notes=[replace(note, at=30.0) for note in seen.notes])).idle
    assert "got nothing of do_errand for 15.0 s, from 15.000" in told


def test_processes_of_one_number_are_told_apart_by_their_times(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    ids = uuids(80)
    notes = [Note(word, id, "first", 1, float(at)) for at, id in enumerate(ids) for word in ("start", "end")]
    lives = [Life("first", 1, log, 0.0, killed=40.0, ended=40.0, code=-9)]
    lives += [Life("later", 1, log, 40.5, termed=79.5, code=0)]
    seen = Evidence(
        given={id: float(at) for at, id in enumerate(ids)}, receives=dict.fromkeys(ids, ERRANDS), failures={},
        poison={}, notes=notes, letters=[], lives=lives, unhealthy=[], left_over=0, stuck=False, own_failures=False,
    )  # fmt: skip
    assert account(seen).kept
    # The last one that the first process did is done again: within its honest window, whatever the later one has done.
    again = [Note(word, ids[40], "later", 1, 79.0) for word in ("start", "end")]
    assert account(replace(seen, notes=[*notes, *again])).honest == {ids[40]}


@pytest.mark.parametrize(("ended", "is_honest"), [(26.0, True), (3.0, False)])
def test_what_could_not_be_recorded_by_the_end_of_a_drain_is_in_the_honest_window(
    tmp_path: Path, ended: float, is_honest: bool
) -> None:
    seen, names = crowd(tmp_path)
    wide, heir = seen.lives
    lives = [replace(wide, termed=0.5, ended=0.5 + ended, code=0), replace(heir, began=0.0)]
    assert (account(replace(seen, lives=lives)).honest == {names["good"]}) is is_honest


def test_of_two_operations_in_one_process_each_has_an_honest_window_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    errand, chore, heir = *uuids(2), Life("heir", 2, log, 3.0, ended=9.0, termed=8.0, code=0)
    killed = Life("killed", 1, log, 0.0, killed=3.0, ended=3.0, code=-9)
    ends = [Note("end", errand, "killed", 1, 1.0), Note("end", chore, "killed", 1, 2.0)]
    seen = Evidence(
        given={errand: 0.0, chore: 0.0}, receives={errand: ERRANDS, chore: CHORES}, failures={}, poison={},
        notes=[*ends, Note("end", errand, "heir", 2, 4.0)], letters=[], lives=[killed, heir], unhealthy=[],
        left_over=0, stuck=False, own_failures=False,
    )  # fmt: skip
    assert account(seen).honest == {errand}
    assert account(replace(seen, receives={errand: ERRANDS, chore: ERRANDS})).twice == {errand}


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
        (events.Dead("failed", "E", "q.dead"), Told(0.0, "dead", id, 1, "E")),
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
