"""Standard output that takes all of a text, or says why not."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from tests.harness import ROOT

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
