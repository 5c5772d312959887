"""The worker script's one real job: what it hashes, and what it refuses to read."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.example import Checksum, script
from workqueue import contract
from workqueue.codec import ResultCodec
from workqueue.settings import Settings
from workqueue.verdicts import GiveUp

Hash = Callable[[Any, Path], Any]
ALGORITHMS = ("sha256", "sha512", "blake2b")


@pytest.fixture(scope="module")
def checksum() -> Hash:
    return partial(script("main-worker.py").checksum, settings=Settings(ledger_url="none"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file, beside a secret."""
    below = tmp_path / "root"
    (below / "folder").mkdir(parents=True)
    (below / "file").write_bytes(b"content")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "file").write_text("secret")
    return below.resolve()


def job(path: str | Path, algorithm: str = "sha256") -> Any:
    return Checksum.model_validate({"kind": "checksum", "path": str(path), "algorithm": algorithm})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("content", [b"", b"content", bytes(range(256)) * 5000], ids=["empty", "short", "1 MB"])
def test_the_result_is_digest_and_size_and_keeps_the_contract(
    algorithm: str, content: bytes, checksum: Hash, root: Path
) -> None:
    (root / "data").write_bytes(content)
    result = checksum(job("data", algorithm), root)
    assert (result.path, result.algorithm, result.size) == ("data", algorithm, len(content))
    assert result.digest == hashlib.new(algorithm, content).hexdigest()
    (receive,) = contract.load("generated.worker").receives.values()
    ResultCodec(receive).encode(result)


def test_every_algorithm_of_the_contract_is_known(checksum: Hash, root: Path) -> None:
    (receive,) = contract.load("generated.worker").receives.values()
    named = receive.message.schema["components"]["schemas"]["Checksum"]["properties"]["algorithm"]["enum"]
    assert {checksum(job("file", name), root).algorithm for name in named} == set(ALGORITHMS)
    assert checksum(Checksum(kind="checksum", path="file"), root).algorithm == "sha256"


def test_a_path_may_be_relative_absolute_or_a_link_as_long_as_it_stays_below_the_root(
    checksum: Hash, root: Path
) -> None:
    (root / "link").symlink_to("file")
    (root / "folder" / "up").symlink_to("..")
    expected = hashlib.sha256(b"content").hexdigest()
    for path in ("file", root / "file", "folder/../file", "link", "folder/up/file", f"../{root.name}/file"):
        assert checksum(job(path), root).digest == expected


def test_what_leads_out_of_the_root_is_refused_unread(checksum: Hash, root: Path) -> None:
    (root / "link").symlink_to("../secret")
    (root / "absolute").symlink_to(root.parent / "secret")
    (root / "folder" / "out").symlink_to(root.parent)
    (root / "chain").symlink_to("link")
    outside: list[str | Path] = [
        "../secret",
        "folder/../../secret",
        "/etc/passwd",
        root.parent / "secret",
        "../root-too/file",
    ]
    for path in [*outside, "link", "absolute", "chain", "folder/out/secret", "..", "/", "../nothing"]:
        with pytest.raises(GiveUp, match=r"leads out of .*WORKQUEUE_ROOT"):
            checksum(job(path), root)


def test_what_is_no_regular_file_is_given_up_and_does_not_block(checksum: Hash, root: Path) -> None:
    os.mkfifo(root / "pipe")
    for path in ("folder", ".", "pipe"):
        with pytest.raises(GiveUp, match="is not a regular file"):
            checksum(job(path), root)


def test_what_is_not_there_or_may_not_be_read_is_given_up(
    checksum: Hash, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "broken").symlink_to("nothing")
    for path in ("nothing", "folder/nothing", "broken"):
        with pytest.raises(GiveUp, match=f"^{path}: No such file or directory$"):
            checksum(job(path), root)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read all
    with pytest.raises(GiveUp, match=r"^file: Permission denied$"):
        checksum(job("file"), root)


@pytest.mark.parametrize("path", ["file/below", "x" * 300, "loop"])
def test_a_path_that_can_never_be_a_file_is_given_up(path: str, checksum: Hash, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    with pytest.raises(GiveUp):
        checksum(job(path), root)
