"""Standard output that takes all of a text, or says why not."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT
from workqueue.cli import operate

NOISY = """
import signal
from workqueue.cli import main
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
code = main(["records"])
signal.setitimer(signal.ITIMER_REAL, 0)
raise SystemExit(code)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_long_answer_is_whole_though_signals_come_while_nobody_reads(unbuffered: str) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen([sys.executable, "-c", NOISY], stdout=writer, cwd=ROOT, env=environment) as command:
        os.close(writer)
        with open(reader, "rb") as pipe:
            told = b""
            while piece := pipe.read1(3000):
                told += piece
                time.sleep(0.02)
    quiet = subprocess.run([sys.executable, "-m", "workqueue", "records"], cwd=ROOT, capture_output=True, check=True)
    assert (command.returncode, len(told)) == (0, len(quiet.stdout))
    assert told == quiet.stdout


def test_a_file_that_can_not_be_read_is_named_and_is_not_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = operate.app()

    @commands.command()
    def read() -> None:
        (tmp_path / "settings").read_text()

    assert operate.call(commands, "workqueue read", []) == 2
    assert capsys.readouterr().err == f"workqueue read: {tmp_path}/settings: No such file or directory\n"
