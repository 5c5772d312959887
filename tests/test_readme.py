"""README and docs name the test that proves a claim: each is there, and so is every file and make target."""

import re

import pytest

from tests.harness import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
PROSE = re.sub(r"(?ms)^ *```.*?^ *```$", "", TEXT)


@pytest.fixture(scope="module")
def defined() -> set[str]:
    files = [ROOT / "test_workqueue.py", *(ROOT / "tests").rglob("test_*.py")]
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_test_that_it_names_exists(defined: set[str]) -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 90
    assert named - defined == set()


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"`((?:\w[\w.-]*/)*[\w.-]+\.(?:py|md|yaml))`", PROSE)) | set(
        re.findall(r"\]\(([^):#]+)\)", PROSE)
    )
    assert len(named) > 10
    folders = (ROOT, ROOT / "docs", ROOT / "workqueue")
    assert {name for name in named if not any((folder / name).exists() for folder in folders)} == set()


def test_every_make_target_that_it_names_exists() -> None:
    named = set(re.findall(r"(?m)(?:`|&& |^ +)make ([a-z][a-z0-9-]*)", TEXT))
    heads = re.findall(
        r"(?m)^([a-z][a-z0-9 -]*):", (ROOT / "Makefile").read_text() + (ROOT / "tests/development.mk").read_text()
    )
    assert {"demo", "check", "bench", "chaos"} <= named
    assert named - {target for head in heads for target in head.split()} == set()
