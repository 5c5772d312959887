"""Lines that a worker writes about its tasks: like those of the log, and no reason to stop when nobody reads them."""

import io
import logging
import sys
import time
from datetime import datetime

import pytest

from workqueue.lifecycle import Format, Report


def test_a_line_looks_like_one_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_795_600_799.0307
    monkeypatch.setattr(time, "time", lambda: now_s)
    monkeypatch.setattr(time, "time_ns", lambda: round(now_s * 1e9))  # what logging asks from Python 3.13 on
    told, logged = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    log = logging.Logger("as lifecycle.run sets it up")
    log.addHandler(logging.StreamHandler(logged))
    log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    report = Report()
    for _ in range(3):
        log.warning("w1  done")
        report("w1  done")
        now_s += 0.5
    assert told.getvalue() == logged.getvalue()
    assert len(set(told.getvalue().splitlines())) == 3


def test_a_line_carries_the_time_at_which_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now()
    Report()("said")
    stamp, _, said = capsys.readouterr().err.rpartition(" ")
    assert said == "said\n"
    assert abs((datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f") - before).total_seconds()) < 60


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
def test_a_line_that_cannot_be_written_is_dropped(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    Report()("said")


EVIL = "w1  dead  \x1b[2J\n2026-01-01 w1  done\x00\u202e"
SHOWN = r"w1  dead  \x1b[2J\n2026-01-01 w1  done\x00\u202e"


def test_what_could_move_a_terminals_cursor_or_forge_a_line_is_shown_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Report()(EVIL)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith(f"{SHOWN}\n")
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (EVIL,), None)
    assert Format("%(message)s").format(record) == SHOWN


def test_a_traceback_keeps_its_lines_and_what_is_foreign_in_it_is_escaped() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "", 0, "failed", None, sys.exc_info())
    said = Format("%(message)s").format(record)
    assert said.startswith("failed\nTraceback (most recent call last):\n")
    assert said.endswith(r"ValueError: \x1b[2J")
