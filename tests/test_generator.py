"""What compiling a contract leaves behind in a process and on a terminal: nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from tests.harness import ROOT
from tests.test_lint import PRINT, at, changed, compiles, project
from workqueue import contract
from workqueue.compiler import command, generate
from workqueue.compiler.clients import Types
from workqueue.compiler.samples import matching
from workqueue.testing import stand_in

IMPORTED = """
import signal
before = signal.getsignal(signal.SIGINT)
import workqueue.compiler.generate
assert signal.getsignal(signal.SIGINT) is before, signal.getsignal(signal.SIGINT)
"""
pytestmark = pytest.mark.slow
SOUND = (r"^[\w .äöüß-]+$", r"^[\p{L} ]+$", r"^\p{Lu}\p{L}*$")
PATTERNS = (*SOUND, r"^.+@.+$", r"^.{5}$", r"^[[a-z]+$", r"^[a&&b]+$", r"^[&&a]||[~~b]$")


def test_importing_the_compiler_leaves_ctrl_c_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_warning_of_a_pattern_reaches_the_terminal(tmp_path: Path) -> None:
    def add(document: object) -> None:
        for number, pattern in enumerate(SOUND):
            at(f"{PRINT}/properties/p{number}", {"type": "string", "pattern": pattern})(document)

    folder = project(tmp_path, changed(add))
    command = [sys.executable, "-m", "workqueue", "generate", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_warns_when_values_are_made_of_it(pattern: str) -> None:
    assert list(matching(pattern))


def test_a_set_of_letters_is_a_set() -> None:
    assert "]" not in "".join(matching(r"^[\p{L} ]+$"))


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_a_folder_without_a_spec_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        assert command.main([*arguments, str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"generate: {tmp_path / name / 'spec'}: there is no such folder; name the one that holds spec/"


def test_a_file_in_the_place_of_generated_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec").mkdir()
    (tmp_path / "generated").write_text("of weeks")
    assert command.main([str(tmp_path)]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert (tmp_path / "generated").read_text() == "of weeks"


RESULTS: dict[str, tuple[dict[str, object], str]] = {
    "a list": ({"type": "array", "items": {"type": "integer"}}, "BaseModel | None"),
    "a number": ({"type": "integer"}, "BaseModel | None"),
    "an object without properties": ({"type": "object", "additionalProperties": False}, "BaseModel | None"),
}


@compiles
@pytest.mark.parametrize(("result", "returned"), RESULTS.values(), ids=RESULTS)
def test_what_a_handler_returns_is_a_model_whatever_the_result_is(
    result: dict[str, object], returned: str, tmp_path: Path
) -> None:
    folder = project(
        tmp_path, changed(at("components/schemas/Receipt", {"title": "Receipt", "x-max-bytes": 999, **result}))
    )
    generate.build(folder, tmp_path / "made")
    typed = (tmp_path / "made" / "billing" / "handlers.py").read_text()
    assert f"Awaitable[{returned}] | {returned}]" in typed
    received, models = receive(tmp_path / "made" / "billing"), generate.load(tmp_path / "made" / "billing")
    assert stand_in.result(received, models) is None
    assert Types("Bill", cast(Any, received), models.messages.json).results == ["Any"]  # the plain value


def with_a_dotted_operation(document: Any) -> None:
    """`orders.place` beside `bill`, on queues of its own."""
    channels, bill = document["channels"], document["operations"]["bill"]
    text = json.dumps([{f"o-{name}": channel for name, channel in channels.items()}, bill])
    text = text.replace("billing.", "orders.").replace("#/channels/", "#/channels/o-")
    more, document["operations"]["orders.place"] = json.loads(text)
    channels.update(more)


TYPED = """
from contextlib import asynccontextmanager
from collections.abc import AsyncIterator
from made.billing import Application
from made.billing.handlers import run_worker
from made.billing.messages.json import Job, Receipt
from workqueue import Settings, TaskContext

async def handle(task: Job, context: TaskContext[int]) -> Receipt: return Receipt(number=context.resources)
async def other(task: Job, context: TaskContext[str]) -> Receipt: return Receipt(number=1)
async def takes(task: Receipt, context: TaskContext[int]) -> Receipt: return task
async def gives(task: Job, context: TaskContext[int]) -> int: return 1

@asynccontextmanager
async def numbers(settings: Settings) -> AsyncIterator[int]:
    yield 1

"""
NO_MATCH = 'No overload variant of "run_worker" matches'
CALLS = {
    '{"bill": handle, "orders.place": handle}': "",
    '{"bill": other, "orders.place": handle}': NO_MATCH,
    '{"bill": handle, "orders.place": takes}': NO_MATCH,
    '{"bill": handle, "orders.place": gives}': NO_MATCH,
    '{"bill": handle}': NO_MATCH,
}


@compiles
@pytest.mark.broker  # a type checker takes its seconds
def test_an_operation_with_a_dot_in_its_name_leaves_the_types_of_the_others_as_they_are(tmp_path: Path) -> None:
    generate.build(project(tmp_path, changed(with_a_dotted_operation)), tmp_path / "made")
    lines = [f"run_worker(Application, {call}, lifespan=numbers)" for call in CALLS]
    (tmp_path / "typed.py").write_text(TYPED + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "typed.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    for number, (call, error) in enumerate(CALLS.items(), TYPED.count("\n") + 1):
        found = [line for line in done.stdout.splitlines() if f"typed.py:{number}: error" in line]
        assert bool(found) == bool(error), (call, done.stdout)
        assert error in "".join(found), (call, done.stdout)


def receive(package: Path) -> contract.Receive:
    (found,) = contract.read(json.loads((package / "contract.json").read_bytes())).receives.values()
    return found
