"""Lines of the log that are no events move no cursor and look like no others; a signal before the loop goes on."""

import asyncio
import json
import logging
import signal
import sys
import time

import pytest

from workqueue.lifecycle import Format, say
from workqueue.process.signals import Signals

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


async def test_a_signal_just_before_the_script_says_what_to_do_at_the_first_one_is_that_first_one() -> None:
    """It may come while the contract is read, on the loop and before the worker is made."""
    told: list[str] = []
    fresh = Signals()
    assert fresh.attach()
    fresh._receive(signal.SIGINT, None)
    fresh.on_first(lambda: told.append("end"), None)
    await asyncio.sleep(0.01)  # nobody has cancelled this
    assert set(told) == {"end"}
