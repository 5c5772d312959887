"""The example's handler against somebody who changes the folder under it: it reads what it checked, or nothing."""

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.example import Checksum, script
from tests.harness import Site
from workqueue.settings import Settings
from workqueue.testing import WAIT_S
from workqueue.verdicts import GiveUp

ATTACK_S = 1.0
INSIDE, OUTSIDE = hashlib.sha256(b"inside").hexdigest(), hashlib.sha256(b"outside").hexdigest()

Hash = Callable[..., Any]


@pytest.fixture(scope="module")
def checksum() -> Hash:
    return partial(script("main-worker.py").checksum, settings=Settings(ledger_url="none"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "folder" / "file").write_text("inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("outside")
    return (tmp_path / "root").resolve()


@contextmanager
def attacked(swap: Callable[[], None]) -> Iterator[None]:
    ended = threading.Event()

    def attack() -> None:
        while not ended.is_set():
            swap()

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def seen(checksum: Hash, root: Path, path: str, *wanted: str) -> Counter[str]:
    """What came of many tries while the attack goes on, and until all that is wanted came too: the two threads may run
    in step for long."""
    came: Counter[str] = Counter()
    began_s = time.monotonic()
    while (took_s := time.monotonic() - began_s) < ATTACK_S or (not came.keys() >= {*wanted} and took_s < WAIT_S):
        try:
            came[checksum(Checksum(kind="checksum", path=path), root).digest] += 1
        except GiveUp:
            came["refused"] += 1
    return came


def swapping(target: Path, *others: Callable[[Path], None]) -> Callable[[], None]:
    """Puts one after the other in the place of `target`, each in one step."""

    def swap() -> None:
        for make in others:
            new = target.with_name("new")
            make(new)
            if target.is_dir() and not target.is_symlink():
                target.rename(target.with_name("old"))
                new.rename(target)
                (target.with_name("old") / "file").unlink()
                target.with_name("old").rmdir()
            elif new.is_dir() and not new.is_symlink():
                target.unlink()
                new.rename(target)
            else:
                new.replace(target)

    return swap


def good_file(path: Path) -> None:
    path.write_text("inside")


def good_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("inside")


def test_a_link_that_is_swapped_in_for_the_file_is_never_followed_out(checksum: Hash, root: Path) -> None:
    target = root / "folder" / "file"
    swap = swapping(target, good_file, lambda new: new.symlink_to("../../outside/file"))
    with attacked(swap):
        came = seen(checksum, root, "folder/file", INSIDE, "refused")
    assert came[INSIDE]
    assert came["refused"]
    assert set(came) <= {INSIDE, "refused"}


def test_a_link_that_is_swapped_in_for_a_folder_is_never_followed_out(checksum: Hash, root: Path) -> None:
    swap = swapping(root / "folder", good_folder, lambda new: new.symlink_to("../outside"))
    with attacked(swap):
        came = seen(checksum, root, "folder/file", INSIDE)
    assert OUTSIDE not in came
    assert came[INSIDE]


def test_a_pipe_that_is_swapped_in_blocks_nobody(checksum: Hash, root: Path) -> None:
    with attacked(swapping(root / "folder" / "file", good_file, os.mkfifo)):
        came = seen(checksum, root, "folder/file", INSIDE)
    assert came[INSIDE]
    assert set(came) <= {INSIDE, "refused", hashlib.sha256(b"").hexdigest()}  # a file that is just being written


def test_no_descriptor_is_left_open(checksum: Hash, root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to("folder/file")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("folder/file", "link", "pipe", "folder", "folder/none", "folder/file/none", "../outside/file"):
        for _ in range(5):
            with suppress(GiveUp):
                checksum(Checksum(kind="checksum", path=path), root)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_that_stays_inside_is_followed(checksum: Hash, root: Path) -> None:
    (root / "link").symlink_to("folder")
    assert checksum(Checksum(kind="checksum", path="link/file"), root).digest == INSIDE


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.holders/set-up"])
def test_the_ledgers_own_files_are_never_opened(checksum: Hash, root: Path, name: str) -> None:
    (root / "ledger.db.holders").mkdir()
    (root / name).write_text("")
    (root / "link").symlink_to(name)
    for path in (name, "link", str(root / name)):
        with pytest.raises(GiveUp, match="belongs to the ledger"):
            checksum(
                Checksum(kind="checksum", path=path), root, settings=Settings(ledger_url=f"sqlite:{root}/ledger.db")
            )


@pytest.mark.example
async def test_with_all_defaults_a_projects_own_folder_can_be_checksummed_again_and_again(fast: Site) -> None:
    """The ledger lies in that folder: a worker that opened and closed it would lose its locks, and the ledger."""
    fast.environment |= {"LEDGER_URL": "", "WORKQUEUE_ROOT": ""}
    for number in range(3):
        await fast.worker(f"w{number}")
    for _ in range(3):
        produced = await fast.producer(".", "--wait", "--timeout", "60")
        assert produced.code == 0, produced.err
        assert ", 0 dead, in" in produced.out
    assert max(fast.ended().values()) == 1
    assert (fast.project / ".workqueue" / "ledger.db").exists()
    for worker in fast.workers:
        assert worker.says(f"ready  takes 1 at a time from task-queue, ledger {fast.project}/.workqueue/ledger.db")


@pytest.mark.example
async def test_the_default_ledger_is_one_and_the_same_from_wherever_a_process_is_started(
    site: Site, tmp_path: Path, fast_example: Path
) -> None:
    for number, project in enumerate((tmp_path, tmp_path / "a b", tmp_path / "ä")):
        project.mkdir(exist_ok=True)
        site.environment |= {"LEDGER_URL": "", "PYTHONPATH": str(fast_example)}
        site.project = project
        worker = await site.worker(f"w{number}", script=str(fast_example / "main-worker.py"))
        assert worker.says(f"ready  takes 1 at a time from task-queue, ledger {fast_example}/.workqueue/ledger.db")
        assert not (project / ".workqueue").exists()
