"""The log of what is no event: nothing foreign in it moves a terminal's cursor, or looks like a line of its own."""

import logging
import sys

from workqueue.lifecycle import Format

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
