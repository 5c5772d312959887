"""When the Makefile compiles: whenever spec/ has changed, whatever the names there, and never without a word on what is
left of it. Python is a stand-in, that compiles in no time."""

import os
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest

from tests.harness import ROOT

PYTHON = f"""#!/bin/sh
echo "$@" >>calls
test "$*" = "-m workqueue generate" || exit 0
test -d spec || PYTHONPATH={quote(str(ROOT))} exec {quote(sys.executable)} "$@"
touch generated/__init__.py
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Set up and compiled, long ago."""
    files = {
        "Makefile": (ROOT / "Makefile").read_text(), "requirements.txt": "", ".venv/bin/python": PYTHON,
        "spec/deep/down.yaml": "", "spec/a.asyncapi.yaml": "", "generated/__init__.py": "", ".venv/installed": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    for number, name in enumerate((*files, "spec/deep", "spec", "generated/__init__.py", ".venv/installed"), 1):
        os.utime(tmp_path / name, (number, number))
    return tmp_path


Made = tuple[int, list[str], list[str]]
"""The exit code, what Python was given to run, and what was said."""


def make(project: Path, target: str = "types") -> Made:
    (project / "calls").write_text("")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", target], cwd=project, env=own, capture_output=True, text=True, check=False)
    ran = (project / "calls").read_text().splitlines()
    while (project / "calls").stat().st_mtime_ns <= (project / "generated/__init__.py").stat().st_mtime_ns:
        (project / "calls").touch()  # until the clock of files has moved on: what is changed now is later
    return done.returncode, ran, done.stderr.splitlines()


COMPILED: Made = (0, ["-m workqueue generate", "-m mypy"], [])
AS_IT_IS: Made = (0, ["-m mypy"], [])
NAMES = ["a:b.yaml", "a\tb", "a b", "a;b", "a$b", "a#b", "a%b", "a\\b", "a'b", "*", "a\nb", "deep/ü"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_of_any_name_that_is_new_has_the_contract_compiled_once(project: Path, name: str) -> None:
    assert make(project) == AS_IT_IS
    (project / "spec" / name).write_text("")
    assert make(project) == COMPILED
    assert make(project) == AS_IT_IS


def test_a_file_that_has_changed_or_gone_has_the_contract_compiled(project: Path) -> None:
    (project / "spec" / "deep" / "down.yaml").write_text("changed")
    assert make(project) == COMPILED
    (project / "spec" / "deep" / "down.yaml").unlink()
    assert make(project) == COMPILED
    assert make(project) == AS_IT_IS
    (project / "generated" / "__init__.py").unlink()
    assert make(project) == COMPILED


def test_what_changes_while_the_contract_is_compiled_is_compiled_next(project: Path) -> None:
    (project / "spec" / "a").touch()
    python = project / ".venv/bin/python"
    python.write_text(
        f"{PYTHON}until test spec/b -nt generated/__init__.py; do touch spec/b; done\n"
    )  # the clock has steps
    assert make(project) == COMPILED
    python.write_text(PYTHON)
    assert make(project) == COMPILED
    assert make(project) == AS_IT_IS


def test_a_spec_may_be_a_link_to_a_folder_elsewhere(project: Path) -> None:
    (project / "spec").rename(project / "elsewhere")
    (project / "spec").symlink_to("elsewhere")
    assert make(project) == AS_IT_IS
    (project / "elsewhere" / "b").touch()
    assert make(project) == COMPILED


@pytest.mark.slow
def test_a_worker_does_not_run_on_the_modules_of_a_spec_that_is_gone(project: Path) -> None:
    (project / "spec").rename(project / "elsewhere")
    code, ran, said = make(project, "worker1")
    assert (code, ran) == (2, ["-m workqueue generate"])
    assert said[0] == "generate: spec: there is no such folder; name the one that holds spec/"
    assert [line[:9] for line in said[1:]] == ["make: ***"]


def test_a_module_that_would_be_imported_in_the_place_of_the_package_is_one_line(project: Path) -> None:
    (project / "workqueue.py").touch()
    code, ran, (said,) = make(project)
    assert (code, ran) == (2, [])
    assert "*** workqueue.py would be imported here in the place of the package; give it another name." in said
