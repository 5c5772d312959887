"""The generator script on a copy of the project: the same bytes every time, and a check that misses nothing."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import pytest

from tests.harness import ROOT
from workqueue.compiler import command

COMMON, WORKER = "spec/common.asyncapi.yaml", "spec/worker.asyncapi.yaml"

# What the generator uses is deprecated here and there. Python says so by default in no program, but in every test.
pytestmark = [
    pytest.mark.broker,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

Generate = Callable[..., tuple[int, str]]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's spec and generated modules, in a folder of their own."""
    for name in ("spec", "generated"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def generate(copy: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Runs the script on the copy with these arguments; gives its exit code and what it said on standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        code = command.main([*arguments, str(copy)])
        said = capsys.readouterr()
        assert said.out == ""
        return code, said.err

    return run


def tree(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for what Python keeps of modules that were imported from it."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_same_spec_makes_the_same_bytes_and_they_are_the_ones_in_the_project(
    copy: Path, generate: Generate
) -> None:
    before = tree(copy / "generated")
    for _ in range(2):
        assert generate() == (0, "")
        assert tree(copy / "generated") == before
    shutil.rmtree(copy / "generated")
    code, said = generate("--check")
    assert (code, len(said.splitlines())) == (1, 1)
    assert generate() == (0, "")
    assert tree(copy / "generated") == before


def test_generating_removes_what_is_not_made(copy: Path, generate: Generate) -> None:
    (copy / "generated" / "old").mkdir()
    (copy / "generated" / "old" / "file.py").touch()
    (copy / "generated" / "worker" / "stale.py").touch()
    edit(copy / "generated/worker/router.py", "class", "klass")
    assert generate() == (0, "")
    assert generate("--check") == (0, "")


def test_the_check_says_nothing_when_all_is_as_it_should_be_and_touches_nothing(copy: Path, generate: Generate) -> None:
    (copy / "generated" / "worker" / "__pycache__").mkdir()
    (copy / "generated" / "worker" / "__pycache__" / "router.pyc").touch()
    before = tree(copy)
    assert generate("--check") == (0, "")
    assert tree(copy) == before


@pytest.mark.example
def test_the_check_names_every_file_that_is_changed_missing_or_extra(copy: Path, generate: Generate) -> None:
    generated = copy / "generated"
    edit(generated / "worker/contract.json", '"x-prefetch": 1', '"x-prefetch": 2')  # the same length
    edit(generated / "producer/messages/json/__init__.py", "Checksum", "checksum")
    (generated / "producer/router.py").unlink()
    shutil.rmtree(generated / "worker/parameters")
    (generated / "worker/extra.py").touch()
    (generated / "other").mkdir()
    before = tree(copy)
    code, said = generate("--check")
    assert code == 1
    assert sorted(line.partition(" ")[0] for line in said.splitlines()) == [
        "generated/other",
        "generated/producer/messages/json/__init__.py",
        "generated/producer/router.py",
        "generated/worker/contract.json",
        "generated/worker/extra.py",
        "generated/worker/parameters",
    ]
    assert all(line.endswith("is not what spec/ makes; run `make generate`") for line in said.splitlines())
    assert tree(copy) == before


@pytest.mark.example
@pytest.mark.parametrize(
    ("document", "old", "new", "stale"),
    [
        (COMMON, "maximum: 86400", "maximum: 86401", {"contract.json", "messages/json/__init__.py"}),
        (COMMON, "x-max-bytes: 65536", "x-max-bytes: 65537", {"contract.json"}),
        (WORKER, "x-crash-limit: 3", "x-crash-limit: 4", {"contract.json"}),
    ],
)
def test_the_check_fails_for_a_changed_spec(
    document: str, old: str, new: str, stale: set[str], copy: Path, generate: Generate
) -> None:
    edit(copy / document, old, new)
    code, said = generate("--check")
    assert code == 1
    named = {line.partition(" ")[0].removeprefix("generated/worker/") for line in said.splitlines()}
    assert {name for name in named if not name.startswith("generated/")} == stale
    assert ("generated/producer/contract.json" in named) == (document == COMMON)


BROKEN: dict[str, tuple[str, str, str, str]] = {
    "a reference that leads nowhere": (
        COMMON,
        "#/components/schemas/Result'",
        "#/components/schemas/Nothing'",
        "Nothing",
    ),
    "a document that is not there": (
        WORKER,
        "$ref: ./common.asyncapi.yaml#/channels/dead",
        "$ref: ./no.yaml#/a",
        "no.yaml",
    ),
    "a channel that refers to itself": (
        WORKER,
        "retry1s:\n    $ref: ./common.asyncapi.yaml#/channels/retry1s",
        "retry1s:\n    $ref: '#/channels/retry1s'",
        "retry1s",
    ),
    "no YAML": (COMMON, "asyncapi: 3.1.0", "asyncapi: [", "common.asyncapi.yaml"),
}


@pytest.mark.parametrize(("document", "old", "new", "named"), BROKEN.values(), ids=BROKEN)
def test_a_spec_that_cannot_be_compiled_is_one_line_and_changes_nothing(
    document: str, old: str, new: str, named: str, copy: Path, generate: Generate
) -> None:
    edit(copy / document, old, new)
    before = tree(copy)
    for arguments in ([], ["--check"]):
        code, said = generate(*arguments)
        assert code == 2
        assert all(line.startswith("generate: spec/") for line in said.splitlines())
        assert 1 <= len(said.splitlines()) <= 2  # a reference may be followed from two places
        assert named in said
        assert tree(copy) == before


@pytest.mark.example
def test_a_disk_that_takes_nothing_is_one_line_and_changes_nothing(copy: Path) -> None:
    before = tree(copy)
    command = f"ulimit -f 0; exec {quote(sys.executable)} -m workqueue generate {quote(str(copy))}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"generate: {copy}") or done.stderr.startswith("generate: /"), done.stderr
    assert tree(copy) == before


def test_two_schemas_of_one_name_are_one_line(copy: Path, generate: Generate) -> None:
    """In one contract.json they could not be told apart."""
    edit(
        copy / COMMON,
        "oneOf:\n            - $ref: '#/components/schemas/Checksum'",
        "oneOf:\n            - $ref: own.yaml#/Checksum",
    )
    edit(copy / COMMON, "$ref: '#/components/schemas/Simulate'", "$ref: '#/components/schemas/Checksum'")
    (copy / "spec/own.yaml").write_text("Checksum: {type: object}\n")
    code, said = generate()
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "two schemas are named Checksum" in said


def test_a_schema_may_refer_to_itself(copy: Path, generate: Generate) -> None:
    edit(
        copy / COMMON,
        "    Attempt:\n      title: Attempt\n",
        "    Attempt:\n      title: Attempt\n      dependencies:\n        cause:\n"
        "          $ref: '#/components/schemas/Attempt'\n",
    )
    assert generate() == (0, "")
    assert b'"cause"' in (copy / "generated/worker/contract.json").read_bytes()


def test_a_spec_without_operations_is_one_line(copy: Path, generate: Generate) -> None:
    (copy / WORKER).unlink()
    (copy / "spec/producer.asyncapi.yaml").unlink()
    code, said = generate()
    assert code == 2
    assert "nothing to generate" in said
