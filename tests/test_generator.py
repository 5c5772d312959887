"""What compiling a contract leaves behind in a process and on a terminal: nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.test_lint import PRINT, at, changed, project
from workqueue.compiler.samples import matching

IMPORTED = """
import signal
before = signal.getsignal(signal.SIGINT)
import workqueue.compiler.generate
assert signal.getsignal(signal.SIGINT) is before, signal.getsignal(signal.SIGINT)
"""
pytestmark = pytest.mark.compiler
SOUND = (r"^[\w .äöüß-]+$", r"^[\p{L} ]+$", r"^\p{Lu}\p{L}*$")
PATTERNS = (*SOUND, r"^[[a-z]+$", r"^[a&&b]+$", r"^[&&a]||[~~b]$")


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
