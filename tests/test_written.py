"""What the commands for operators write: all of it or an error, and in a table whatever a terminal's width."""

import asyncio
import io
import os
import subprocess
import sys
from datetime import UTC, datetime
from shlex import quote
from uuid import UUID

import pytest
from rich.console import Console, RenderableType

from tests.harness import ROOT, Site
from tests.operators import workqueue
from workqueue.cli.letters import grouped, listed, opened
from workqueue.cli.tables import rendered
from workqueue.ops.letters import Letter, Opened, groups

IDS = [f"01a21971-dcf2-70d7-8b50-78d8459289c{n}" for n in range(3)]
ERRORS = ["short", "x" * 1000, "\u4e16" * 500]
NOW = datetime.now(UTC)
LETTERS = [
    Letter("key", id, "task-queue", "checksum", "gave-up", error, NOW, "worker1", 1, 0, "1.0.0", 150, None)
    for id, error in zip(IDS, ERRORS, strict=True)
]


@pytest.mark.parametrize("body", ["", "no JSON", "[" * 10_000, "[" * 10_000 + "]" * 10_000], ids=len)
def test_a_letter_is_shown_whatever_its_body_is(body: str) -> None:
    assert rendered(opened(Opened(LETTERS[0], body, {}, (), "")), Console(file=io.StringIO(), width=100))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.slow
def test_output_that_cannot_be_written_is_one_line_and_a_reader_that_is_gone_is_none(
    unbuffered: str,
) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    shell = f"{quote(sys.executable)} -m workqueue records >/dev/full; echo $? >&2; "
    shell += f"{{ {quote(sys.executable)} -m workqueue records; echo $? >&2; }} | true"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    line = "workqueue records: standard output: can't be written (No space left on device)"
    assert done.stderr.splitlines() == [line, "1", "0"]


async def full(site: Site, *arguments: str) -> tuple[int | None, list[str]]:
    """What a command says whose standard output is a full disk, and its exit code."""
    command = (sys.executable, "-m", "workqueue", *arguments, "--project", str(site.project / "tests"))
    own = {**os.environ, "AMQP_URI": site.uri, "LEDGER_URL": site.ledger_url}
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", 'exec "$@" >/dev/full', "sh", *command, stderr=asyncio.subprocess.PIPE, cwd=site.project, env=own
    )
    _, err = await process.communicate()
    return process.returncode, err.decode().splitlines()


async def test_what_was_done_is_told_on_standard_error_where_standard_output_is_full(fast: Site) -> None:
    await fast.worker("one")
    problem = "standard output: can't be written (No space left on device)"
    fields = ("nap", "seconds=0", "failures=0", *fast.to)
    code, said = await full(fast, "send", *fields)
    assert (code, said[0]) == (1, f"{problem}, which would say:")
    id = str(UUID(said[1]))
    assert (await workqueue(fast, "send", *fields, "--id", id, "--wait", "20")).code == 0
    assert fast.ended() == {id: 1}
    code, said = await full(fast, "send", *fields, "--id", id, "--wait", "20")
    assert (code, said[1]) == (1, id)
    assert '"attempt":1' in said[2]
    code, said = await full(fast, "pause", fast.queue)
    assert (code, said[1].startswith(f"{fast.queue} is paused")) == (1, True)
    code, said = await full(fast, "resume", fast.queue, "-o", "json")
    assert (code, said[1], '  "paused": false,' in said) == (1, "{", True)
    code, said = await full(fast, "cancel", id)
    assert (code, said[2].split()[:2]) == (1, [id, "done"])
    code, said = await full(fast, "forget", id, "--yes")
    assert (code, said[2].split()[:3]) == (1, [id, "done", "erased"])
    code, said = await full(fast, "purge", fast.queue, "--yes")
    assert (code, said[-1]) == (1, "purge: 0 of 0 messages")
    assert await full(fast, "workers") == (1, [f"workqueue workers: {problem}"])


def lines(part: RenderableType, width: int, *, terminal: bool = True) -> list[str]:
    file = io.StringIO()
    told = rendered(part, Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return told.splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_keeps_its_short_columns_however_long_an_error_is(width: int) -> None:
    for part, short in (
        (grouped(groups(LETTERS)), ["letters", "sendable", "kind", "reason", "oldest", "newest", "queue", "error"]),
        (listed(LETTERS), ["id", "kind", "reason", "died", "attempts", "worker", "sendable", "error"]),
    ):
        told = lines(part, width)
        assert told[0].split() == short
        place = told[0].index("error")
        for line in told[1:]:
            assert "checksum" in line
            assert "gave-up" in line
            assert "\u2026" not in line[:place]
            assert "short" in line or line.endswith("\u2026")
        cells = max(len(line) + line.count("\u4e16") for line in told)
        assert place + 29 <= cells <= max(width, place + 30)
    assert [line.split()[0] for line in told[1:]] == IDS


def test_rows_on_a_pipe_are_whole_and_have_no_spaces_at_their_ends() -> None:
    told = lines(listed(LETTERS), 80, terminal=False)
    assert [line for line in told if line != line.rstrip()] == []
    assert [line.split()[-1] for line in told[1:]] == ERRORS
