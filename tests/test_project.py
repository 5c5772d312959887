"""Copies of a project whose contract says something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT
from workqueue.testing import Scripts, by_key, hurried

DOCUMENT: dict[str, Any] = {
    "channels": {
        "later": {"x-message-ttl": 600_000},
        "soon": {"x-message-ttl": 1000},
        "again": {"x-message-ttl": 1000},
    },
    "operations": {"work": {"x-lease-s": 30}},
}


@pytest.mark.parametrize(("name", "written"), [("a.asyncapi.json", json.dumps), ("a.asyncapi.yaml", yaml.safe_dump)])
def test_a_contract_is_hurried_in_whatever_way_it_is_written(name: str, written: Any, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / name).write_text(written(DOCUMENT))
    (tmp_path / "workqueue.schema.json").write_text(json.dumps({"properties": {"x-message-ttl": {"minimum": 1}}}))
    text = hurried(tmp_path, lease_s=2)(written(DOCUMENT))
    made = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
    assert {key: channel["x-message-ttl"] for key, channel in made["channels"].items()} == {
        "later": 150, "soon": 100, "again": 100,
    }  # fmt: skip
    assert made["operations"]["work"]["x-lease-s"] == 2


def test_what_an_anchor_shares_is_written_out_for_each() -> None:
    edit = by_key(lambda key, value: value + 1 if key == "n" else value)
    assert "*" not in edit("a: &a {n: 1}\nb: *a\n")


def test_what_sends_is_what_the_producer_s_script_imports(tmp_path: Path) -> None:
    """An application before it sends to the same queues, and to no other: no flag would say where."""
    shutil.copytree(ROOT / "tests" / "generated", tmp_path / "generated")
    sends = tmp_path / "generated" / "a_kiosk" / "contract.json"
    sends.parent.mkdir()
    document = json.loads((tmp_path / "generated" / "producer" / "contract.json").read_bytes())
    first = next(iter(document["operations"]))
    sends.write_text(json.dumps({**document, "operations": {first: document["operations"][first]}}))
    scripts = Scripts("generated", "main-worker.py", ("main-producer.py",))
    script = tmp_path / "main-producer.py"
    script.write_text("from generated.producer import Application\n")
    assert all(one.to for one in scripts.operations(tmp_path).values())
    script.write_text("import sys\n")  # it says nothing of it
    assert not all(one.to for one in scripts.operations(tmp_path).values())
