"""What an owner of this project says in spec/ changes the verdict of no test but those of the example."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import EXAMPLE, ROOT, fast_copy

PARTS = ("spec", "tests", "workqueue", "pyproject.toml", "main-worker.py", "main-producer.py")
OF_EVERY_CONTRACT = ("tests/test_contract.py", "tests/test_processor.py", "tests/test_policy.py")


pytestmark = [pytest.mark.broker, pytest.mark.example]  # which is changed here as an owner would change it


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def run(copy: Path, *arguments: str) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def compile_changed(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = copy / "spec" / "common.asyncapi.yaml"
    common = yaml.safe_load(document.read_text())
    change(common)
    document.write_text(yaml.safe_dump(common, sort_keys=False))
    run(copy, "-m", "workqueue", "generate")


def recipe() -> dict[str, Any]:
    """The schema that README tells an owner to add, as it stands there."""
    _, _, rest = (ROOT / "README.md").read_text().partition("## Make it your own")
    (block,) = re.findall(r"```yaml\n(.*?)```", rest, re.DOTALL)[:1]
    schemas: dict[str, Any] = yaml.safe_load(block)
    return schemas


def added(common: dict[str, Any], schemas: dict[str, Any]) -> None:
    common["components"]["schemas"].update(schemas)
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in schemas]
    common["components"]["schemas"]["Task"]["properties"]["payload"]["oneOf"] += refs


def with_the_recipe_and_a_map_and_a_date(common: dict[str, Any]) -> None:
    added(common, recipe())
    words = {"type": "object", "additionalProperties": {"type": "string"}}
    day = {"type": "string", "format": "date"}
    properties = {"kind": {"type": "string", "const": "post"}, "words": words, "day": day}
    shape = {"type": "object", "additionalProperties": False, "required": [*properties], "properties": properties}
    added(common, {"Post": {"title": "Post", **shape}})


def without_the_examples_kinds(common: dict[str, Any]) -> None:
    schemas = common["components"]["schemas"]
    for name in ("Checksum", "Simulate", "ChecksumResult", "SimulateResult"):
        del schemas[name]
    schemas["Task"]["properties"]["payload"]["oneOf"] = []
    added(common, {name: {**recipe()["Resize"], "title": name} for name in ("Resize",)})
    schemas["Result"]["oneOf"] = [{"$ref": "#/components/schemas/Resize"}]
    common["components"]["messages"]["task"].pop("examples")


@pytest.mark.parametrize("change", [with_the_recipe_and_a_map_and_a_date, without_the_examples_kinds])
def test_a_changed_contract_compiles_and_leaves_the_tests_of_the_runtime_as_they_were(
    copy: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    compile_changed(copy, change)
    run(copy, "-c", "import generated.worker, generated.producer; from workqueue import contract as c; "
                    "c.load('generated.worker'), c.load('generated.producer')")  # fmt: skip
    run(copy, "-m", "pytest", *OF_EVERY_CONTRACT)


def test_without_the_examples_kinds_its_tests_are_left_out_all_others_stay_and_the_demo_says_what_it_needs(
    copy: Path,
) -> None:
    compile_changed(copy, without_the_examples_kinds)
    for name in ("test_workqueue.py", "README.md"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "docs", copy / "docs")
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert collected.returncode == 0, collected.stdout[-3000:]
    assert "tests/example" not in collected.stdout
    assert "test_workqueue.py" in collected.stdout
    demo = subprocess.run(
        [sys.executable, "-m", "workqueue", "demo"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert demo.returncode == 2
    makes = subprocess.run(
        ["make", "--dry-run", "producer", "ARGS="], cwd=ROOT, capture_output=True, text=True, check=True
    )
    asks = next(line for line in makes.stdout.splitlines() if line.startswith("grep "))
    asked = subprocess.run(["sh", "-c", asks], cwd=copy, capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stderr.startswith("spec/ has no kind Checksum; say what to send: ")) == (2, True)
    assert demo.stderr.startswith("demo: it has files checksummed, and the contract in spec/ has no kind Checksum; to ")


def test_a_copy_whose_contract_is_hurried_has_short_delays_whatever_they_were(tmp_path: Path) -> None:
    project = fast_copy(tmp_path / "project", lease_s=3, limit_s=9, scripts=EXAMPLE)
    (receive,) = (operation.receive for operation in EXAMPLE.operations(project).values())
    assert [rung.delay_s for rung in receive.rungs] == [0.1, 0.15, 0.2, 0.25, 0.3][: len(receive.rungs)]
    assert receive.lease_s == 3.0
    assert set(receive.time_limits_s.values()) == {9.0}
    (as_it_is,) = (operation.receive for operation in EXAMPLE.operations(ROOT).values())
    assert [rung.queue.name for rung in receive.rungs] == [rung.queue.name for rung in as_it_is.rungs]
