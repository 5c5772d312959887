"""A worker's log: one line for each event, as text, as JSON, or by way of `logging`; no reason to stop."""

import io
import json
import logging
import time
from dataclasses import asdict
from typing import Any, get_args

import pytest

from tests.harness import ROOT
from workqueue.observe.lines import NAMES, JsonFormat, JsonLines, TextLines, fields, lines, listener, to_logging
from workqueue.tasks import events
from workqueue.tasks.events import Event, Told
from workqueue.tasks.policy import Because, Reason

ID = "6a0e1c1e-3c53-4a3c-9c9b-2f2f4c9c0f01"


def event(what: events.What, **more: Any) -> Event:
    return Event("w1", "bill", "nap", ID, 0.0126, what)._replace(**more)


BURIED = "and a dead letter again; to have it tried, send that back with its headers"
SAID: list[tuple[Told, str]] = [
    (event(events.Done(1)), f"done  nap  {ID}  13 ms"),
    (event(events.Done(2)), f"done  nap  {ID}  attempt 2  13 ms"),
    (event(events.Started(2)), f"running  nap  {ID}  attempt 2"),
    (event(events.Running(), took_s=10.2), f"running  nap  {ID}  for 10 s"),
    (event(events.Retrying(1, 2.5, "E: no")), f"failed  nap  {ID}  attempt 1, again in 2.5 s: E: no  13 ms"),
    (
        event(events.Dead("gave-up", "no such file", "q.dead")),
        f"dead  nap  {ID}  in q.dead  gave-up: no such file  13 ms",
    ),
    (
        event(events.Dead("invalid", "no", "q.dead"), kind="message", id=""),
        "dead  message  in q.dead  invalid: no  13 ms",
    ),
    (event(events.Cancelled("by ops@host: no")), f"cancelled  nap  {ID}  by ops@host: no  13 ms"),
    (event(events.Skipped("cancelled")), f"cancelled already  nap  {ID}  13 ms"),
    (event(events.Skipped("done")), f"done already  nap  {ID}  13 ms"),
    (event(events.Skipped("dead", buried=True)), f"dead already  nap  {ID}  {BURIED}  13 ms"),
    (event(events.Delayed("taken", 0.5)), f"is taken  nap  {ID}, again in 0.5 s  13 ms"),
    (event(events.Delayed("crashed", 5, 2)), f"its worker died, or lost its claim (2)  nap  {ID}, again in 5 s  13 ms"),
    (event(events.Delayed("behind", 5)), f"comes after a copy that tells more  nap  {ID}, again in 5 s  13 ms"),
    (event(events.Delayed("alone", 10)), f"must run alone  nap  {ID}, again in 10 s  13 ms"),
    (
        event(events.Delayed("redelivered", 1, 10)),
        f"was delivered  nap  {ID}  10 times without an ack, again in 1 s  13 ms",
    ),
    (event(events.Delayed("returned", 300, 4)), f"sent back  nap  {ID}  for the 4th time, again in 300 s  13 ms"),
    (event(events.LostClaim(1)), f"lost its claim  nap  {ID}, again in 1 s  13 ms"),
    (event(events.HandedBack()), f"handed back  nap  {ID}  13 ms"),
    (
        events.Ready("w1", {"bills": 2, "mail": 1}, "/l.db"),
        "ready  takes 2 at a time from bills, 1 at a time from mail, ledger /l.db",
    ),
    (events.Paused("w1", "mail", "ops@host", ""), "paused  takes nothing from mail, by ops@host"),
    (events.Paused("w1", "mail", "ops@host", "a move"), "paused  takes nothing from mail, by ops@host: a move"),
    (events.Resumed("w1", "mail"), "resumed  takes tasks from mail again"),
    (events.Stopping("w1", 3), "stops  finishes what it has in hand: 3"),
    (events.Stopped("w1", 7, 1), "stopped  finished 7, handed back 1"),
]


@pytest.mark.parametrize(("told", "line"), SAID, ids=lambda value: value if isinstance(value, str) else "")
def test_each_event_is_one_line_of_text_and_one_of_json_that_says_as_much(told: Told, line: str) -> None:
    assert lines(told) == [f"w1  {line}"]
    stream = io.StringIO()
    JsonLines(stream)(told)
    (written,) = stream.getvalue().splitlines()
    said = json.loads(written)
    assert abs(said.pop("time") - time.time()) < 60
    assert said.pop("level") in ("info", "warning")
    assert said == json.loads(json.dumps(fields(told)))
    assert said["worker"] == "w1"
    if isinstance(told, Event):
        assert (said["event"], said["operation"], said["took_ms"]) == (
            NAMES[type(told.what)], "bill", round(told.took_s * 1000, 3),
        )  # fmt: skip


def test_every_event_has_a_line() -> None:
    assert {type(told.what) if isinstance(told, Event) else type(told) for told, _ in SAID} == NAMES.keys()


def test_a_traceback_follows_on_lines_of_its_own() -> None:
    told = event(events.Retrying(1, 1, "ValueError: no", ("Traceback:", '  File "x"')))
    assert lines(told)[1:] == ["w1      Traceback:", 'w1        File "x"']
    assert fields(told)["trace"] == ("Traceback:", '  File "x"')


def test_a_line_looks_like_one_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_795_600_799.0307
    monkeypatch.setattr(time, "time", lambda: now_s)
    monkeypatch.setattr(time, "time_ns", lambda: round(now_s * 1e9))  # what logging asks from Python 3.13 on
    told, logged = io.StringIO(), io.StringIO()
    log = logging.Logger("as lifecycle.prepare sets it up")
    log.addHandler(logging.StreamHandler(logged))
    log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    tell = TextLines(told)
    for number in range(3):
        log.warning(f"w1  stops  finishes what it has in hand: {number}")
        tell(events.Stopping("w1", number))
        now_s += 0.5
    assert told.getvalue() == logged.getvalue()
    assert len(set(told.getvalue().splitlines())) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\x1b", "\U000e0001"])
def test_a_line_of_text_that_a_pipe_would_not_take_whole_is_cut_and_marked(character: str, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, "backslashreplace")
    tell = TextLines(stream)
    for count in (100, 20_000):
        tell(event(events.Retrying(1, 1, "E: no", (character * count,))))
    stream.flush()
    first, short, second, long = raw.getvalue().splitlines(keepends=True)
    assert len(first) == len(second)
    assert not short.endswith(b" ...\n")
    assert long.endswith(b" ...\n")
    assert 4000 < len(long) <= 4096
    assert len(long.decode(encoding)) > 400


@pytest.mark.parametrize("kind", [TextLines, JsonLines])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
def test_a_line_that_cannot_be_written_is_dropped(kind: type[TextLines | JsonLines], error: Exception) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    kind(Gone())(event(events.Done(1)))


EVIL = "\x1b[2J\n2026-01-01 w1  done\x00\u202e"
SHOWN = r"\x1b[2J\n2026-01-01 w1  done\x00\u202e"


@pytest.mark.parametrize(
    "told",
    [
        event(events.Done(1), id=EVIL),
        event(events.Dead("failed", EVIL, "q.dead")),
        event(events.Retrying(1, 1, "", (EVIL,))),
    ],
    ids=["an id", "an error", "a traceback"],
)
def test_what_could_move_a_terminals_cursor_or_forge_a_line_is_shown_escaped(told: Event) -> None:
    count = 1 + len(getattr(told.what, "trace", ()))
    for kind in (TextLines, JsonLines):
        stream = io.StringIO()
        kind(stream)(told)
        said = stream.getvalue()
        assert said.count("\n") == (count if kind is TextLines else 1)
        assert said.replace("\n", "").isprintable()
    assert SHOWN in "".join(lines(told))


def test_where_logging_is_set_up_events_are_records_of_it_with_level_and_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tell = listener("text", configured=True)
    assert tell is to_logging
    with caplog.at_level(logging.INFO, "workqueue.events"):
        for told in (event(events.Done(1)), event(events.Dead("failed", "no", "q.dead"))):
            tell(told)
    assert [(record.levelname, record.event.what) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("INFO", events.Done(1)),
        ("WARNING", events.Dead("failed", "no", "q.dead")),
    ]


def test_other_lines_are_json_too_where_events_are() -> None:
    record = logging.LogRecord("workqueue.amqp", logging.WARNING, "", 0, "lost %s", ("it\x1b",), None)
    said = json.loads(JsonFormat().format(record))
    assert said.pop("time") > 0
    assert said == {"level": "warning", "event": "log", "logger": "workqueue.amqp", "message": "lost it\x1b"}


def test_the_docs_name_every_event_and_each_of_its_fields() -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    for told, _ in SAID:
        rows = [row for row in text.splitlines() if row.startswith(f"| `{fields(told)['event']}` |")]
        assert len(rows) == 1, told
        own = told.what.__slots__ if isinstance(told, Event) else tuple(asdict(told))
        assert all(f"`{name}`" in rows[0] for name in own), told
    for word in (*get_args(Because), *get_args(Reason)):
        assert f"`{word}`" in text
