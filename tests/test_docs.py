"""The pages in docs/ say what is so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.pages import blocks, source_with_mails
from workqueue import contract
from workqueue.testing import copy_project, vhost
from workqueue.testing.given import Broker

SPINE_LINES = 1200


def test_the_files_to_read_first_are_there_and_no_more_than_an_hours_work() -> None:
    text = (ROOT / "docs/reading.md").read_text()
    spine = re.findall(r"(?m)^\| \d \| `([^`]+)`", text)
    assert len(spine) == 8
    assert sum(len((ROOT / name).read_text().splitlines()) for name in spine) <= SPINE_LINES


def test_every_file_that_the_way_of_a_task_names_is_there() -> None:
    named = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", (ROOT / "docs/reading.md").read_text()))
    assert len(named) > 15
    assert {name for name in named if not (ROOT / "workqueue" / name).exists() and not (ROOT / name).exists()} == set()


def test_every_room_of_the_package_is_on_the_page() -> None:
    _, _, rest = (ROOT / "docs/reading.md").read_text().partition("## Rooms")
    named = set(re.findall(r"`([a-z]+)/?`", rest.partition("## Where")[0]))
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "workqueue").iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__main__", "__pycache__"} <= named


@pytest.mark.slow
@pytest.mark.example
def test_the_second_operation_works_as_it_is_printed(tmp_path: Path, node: Broker) -> None:
    project = copy_project(source_with_mails(tmp_path / "source"), tmp_path / "project")
    loaded = contract.read(json.loads((project / "generated/worker/contract.json").read_bytes()))
    assert [receive.operation for receive in loaded.receives.values()] == ["process_task", "send_mail"]
    assert loaded.receives["mails"].max_attempts == 2
    models = "from generated.worker.messages.json import Mail, MailSent, MailTask; import generated.producer"
    done = subprocess.run([sys.executable, "-c", models], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (project / "mails.jsonl").write_text('{"kind": "mail", "to": "a@example.com", "text": "é"}\n')
    command = [sys.executable, "main-producer.py", "--jsonl", "mails.jsonl", "--to", "submit_mail"]
    sent = subprocess.run(
        command, cwd=project, env={**os.environ, "AMQP_URI": vhost(node)}, capture_output=True, text=True, check=False
    )
    assert (sent.returncode, sent.stderr) == (0, "sent: 1 confirmed, 0 refused, 0 unknown\n")


@pytest.mark.example
@pytest.mark.slow
def test_the_tests_without_a_broker_that_are_printed_pass(tmp_path: Path) -> None:
    printed, _ = blocks("testing.md", "python")
    (tmp_path / "test_printed.py").write_text(printed)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.broker
@pytest.mark.example
def test_the_tests_that_are_printed_pass(tmp_path: Path) -> None:
    _, printed = blocks("testing.md", "python")
    project = copy_project(ROOT, tmp_path / "project")
    (project / "test_printed.py").write_text(printed)
    command = [sys.executable, "-m", "pytest", "test_printed.py"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr
