"""The log of what is no event: nothing foreign in it moves a terminal's cursor, or looks like a line of its own."""

import json
import logging
import sys
import time

import pytest

from workqueue.lifecycle import Format, say

EVIL = "w1  dead  \x1b[2J\n2026-01-01 w1  done\x00\u202e"
SHOWN = r"w1  dead  \x1b[2J\n2026-01-01 w1  done\x00\u202e"


def test_what_could_move_a_terminals_cursor_or_forge_a_line_is_shown_escaped() -> None:
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


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_script_says_of_itself_is_one_line_of_the_form_of_its_log(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKQUEUE_LOG_FORMAT", form)
    monkeypatch.setattr(sys, "argv", ["/somewhere/main-worker.py"])
    say(ValueError(EVIL))
    out, said = capsys.readouterr()
    assert (out, said.count("\n"), said[-1]) == ("", 1, "\n")
    if form == "text":
        assert said == f"main-worker.py: {SHOWN}\n"
    else:
        line = json.loads(said)
        assert abs(line.pop("time") - time.time()) < 60
        assert line == {"level": "error", "event": "log", "logger": "main-worker.py", "message": SHOWN}
