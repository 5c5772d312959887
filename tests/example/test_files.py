"""The files that the example's producer makes tasks of."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from tests.example import Simulate, script
from workqueue.errors import InputInvalid, UsageInvalid
from workqueue.settings import Settings

producer = script("main-producer.py")


def files(paths: Any, settings: Settings = Settings()) -> Any:  # noqa: B008  # frozen
    return producer.files(paths, settings)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("b/2", "b/1", "a/deep/er/x", "c", "odd name\n"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return root


def found(*paths: Path | str) -> list[str]:
    made = list(files(map(str, paths)))
    assert all(isinstance(path, Path) for path in made), made
    return [str(path) for path in made]


def problem(*paths: Path | str) -> str:
    (only,) = files(map(str, paths))
    assert isinstance(only, InputInvalid)
    return str(only)


def test_every_regular_file_below_a_path_is_found_once_in_a_steady_order(tree: Path) -> None:
    expected = [str(tree / name) for name in ("c", "odd name\n", "a/deep/er/x", "b/1", "b/2")]
    assert found(tree) == expected
    assert found(tree / "a" / ".." / ".") == expected


def test_paths_are_taken_in_their_order_and_a_file_may_be_named_itself(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    assert found("b", "c", "a") == [str(tree / name) for name in ("b/1", "b/2", "c", "a/deep/er/x")]


def test_links_below_a_path_are_not_followed_and_a_loop_of_folders_ends(tree: Path) -> None:
    before = found(tree)
    (tree / "b" / "link").symlink_to(tree.parent / "outside" / "secret")
    (tree / "b" / "folder").symlink_to(tree.parent / "outside")
    (tree / "b" / "up").symlink_to(tree)
    (tree / "b" / "broken").symlink_to(tree / "nothing")
    assert found(tree) == before


def test_a_link_that_is_named_itself_is_followed_to_what_it_means(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree / "c")
    assert found(tree.parent / "link") == [str(tree / "c")]


def test_special_files_below_a_path_are_no_files_and_one_that_is_named_is_told(tree: Path) -> None:
    before = found(tree)
    os.mkfifo(tree / "b" / "pipe")
    assert found(tree) == before
    assert problem(tree / "b" / "pipe") == f"{tree}/b/pipe: is not a regular file"


def test_a_missing_path_is_told_and_the_others_are_read(tree: Path) -> None:
    made = list(files([str(tree / "nothing"), str(tree / "c")]))
    assert str(made[0]) == f"{tree}/nothing: there is no such file or folder"
    assert made[1:] == [tree / "c"]


def test_an_unreadable_file_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK or Path(path).name != "c")  # root reads all
    assert problem(tree / "c") == f"{tree}/c: can't be read (permission denied)"


def test_an_unreadable_folder_is_told_after_what_could_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    made = list(files([str(tree)]))
    assert [path.name for path in made if isinstance(path, Path)] == ["c", "odd name\n", "1", "2"]
    assert str(made[-1]) == f"{tree}/a/deep: can't be read (Permission denied)"


@pytest.mark.parametrize("name", ["x" * 300, "loop"])
def test_a_path_that_can_be_no_file_is_told(name: str, tree: Path) -> None:
    (tree / "loop").symlink_to("loop")
    assert "loop" in problem(tree / name) or "x" in problem(tree / name)


def tasks(given: argparse.Namespace) -> Any:
    return producer.tasks(given, Settings())


def asked(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"paths": [], "jsonl": None, "simulate": 0, "seconds": 0.0, **given})


def test_the_producer_makes_one_task_for_each_file_and_each_of_them_another_id(tree: Path) -> None:
    made = list(tasks(asked(paths=[str(tree), str(tree / "nothing")])))
    assert isinstance(made.pop(), InputInvalid)
    assert [task.payload.path for task in made] == found(tree)
    assert len({task.id for task in made}) == len(made)
    simulated = list(tasks(asked(simulate=3, seconds=0.5)))
    assert [task.payload for task in simulated] == [Simulate(kind="simulate", seconds=0.5)] * 3


def test_a_file_name_that_is_not_unicode_is_told_and_stops_nothing(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/aa\xff")).write_text("x")
    made = list(tasks(asked(paths=[str(tree)])))
    assert len([task for task in made if isinstance(task, InputInvalid)]) == 1
    assert len(made) == len(list(files([str(tree)])))


def test_the_ledgers_own_files_are_left_out(tree: Path) -> None:
    before = found(tree)
    for name in (
        ".workqueue/ledger.db",
        ".workqueue/ledger.db.holders/set-up",
        "b/l.db",
        "b/l.db-wal",
        "b/l.db.holders/x",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    settings = Settings(ledger_url=f"sqlite:{tree}/b/l.db")
    assert [str(path) for path in files([str(tree)], settings)] == before
    (named,) = files([str(tree / "b" / "l.db-wal")], settings)
    assert str(named) == f"{tree}/b/l.db-wal: belongs to the ledger"


def test_a_file_that_is_named_itself_and_has_a_name_that_is_not_unicode_is_told(tree: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tree) + b"/aa\xff"))
    path.write_text("x")
    assert "has a name that is not UTF-8" in problem(path)


def test_just_one_of_paths_lines_and_simulated_tasks_is_asked_for() -> None:
    for given in ({}, {"paths": ["a"], "simulate": 1}, {"paths": ["a"], "jsonl": "-"}):
        with pytest.raises(UsageInvalid, match=r"name what to send: PATH\.\.\., or --jsonl FILE, or --simulate N; see"):
            tasks(asked(**given))
