"""Standard input, output and error that are closed, full, or not read: tasks are done, and the exit code is right."""

import asyncio
import json
import os
import shlex
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.example import simulate
from tests.harness import EXAMPLE, Site
from workqueue.testing import until

pytestmark = [pytest.mark.example, pytest.mark.broker]  # the example is what the commands start


CLOSED = [" <&-", " >&-", " 2>&-", " <&- >&- 2>&-"]


async def shell(site: Site, command: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and error of a command of the shell; `PY` in it is this interpreter."""
    process = await asyncio.create_subprocess_shell(
        command.replace("PY ", f"{shlex.quote(sys.executable)} "),
        cwd=site.project,
        env=site._environment(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("closed", CLOSED)
async def test_with_one_of_the_three_or_all_closed_both_scripts_do_their_work_and_exit_0(
    site: Site, closed: str
) -> None:
    pid = shlex.quote(str(site.folder / "pid"))
    worker = asyncio.ensure_future(shell(site, f"echo $$ >{pid}; exec PY main-worker.py w{closed}"))
    code, _, err = await shell(site, f"exec PY main-producer.py --simulate 20 --wait --timeout 60{closed}")
    assert code == 0, err
    os.kill(int((site.folder / "pid").read_text()), signal.SIGTERM)
    code, _, err = await worker
    assert code == 0, err


@pytest.mark.parametrize("closed", CLOSED)
async def test_with_one_of_the_three_or_all_closed_a_bad_setting_is_exit_2_and_no_broker_exit_3(
    tmp_path: Path, closed: str
) -> None:
    site = Site(tmp_path, "amqp://127.0.0.1:1/", scripts=EXAMPLE)
    assert (await shell(site, f"exec PY main-worker.py w{closed}"))[0] == 3
    assert (await shell(site, f"exec PY main-producer.py --simulate 1{closed}"))[0] == 3
    assert (await shell(site, f"exec PY main-worker.py w{closed}", WORKQUEUE_DRAIN_S="x"))[0] == 2
    assert (await shell(site, f"exec PY main-producer.py --bogus{closed}"))[0] == 2


async def test_a_standard_input_that_is_closed_is_no_empty_one(site: Site) -> None:
    code, _, err = await shell(site, "exec PY main-producer.py --jsonl - <&-")
    assert code == 2
    assert "-: can't be read (it is closed)" in err


async def test_results_that_a_full_disk_does_not_take_are_one_line_and_the_account_is_printed(site: Site) -> None:
    await site.worker()
    code, _, err = await shell(site, "exec PY main-producer.py --simulate 5 --wait --results /dev/full")
    assert code == 2
    assert err.splitlines() == [
        "sent: 5 confirmed, 0 refused, 0 unknown",
        "main-producer.py: /dev/full: can't be written (No space left on device)",
    ]


async def test_a_table_that_a_full_disk_does_not_take_is_one_line(site: Site) -> None:
    await site.worker()
    code, _, err = await shell(site, "exec PY main-producer.py --simulate 5 --wait >/dev/full")
    assert code == 2
    assert err.splitlines()[-1] == "main-producer.py: standard output: can't be written (No space left on device)"
    assert "Traceback" not in err


async def test_a_reader_of_the_table_that_has_gone_changes_nothing(site: Site) -> None:
    await site.worker()
    command = "{ PY main-producer.py --simulate 5 --wait; echo $? >&2; } | true"
    _, _, err = await shell(site, command)
    assert err.splitlines() == ["sent: 5 confirmed, 0 refused, 0 unknown", "0"]


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
async def test_a_name_that_the_output_cannot_show_is_shown_escaped(site: Site, environment: dict[str, str]) -> None:
    await site.worker("wörker")
    code, out, err = await shell(site, "exec PY main-producer.py --simulate 5 --wait", **environment)
    assert (code, err) == (0, "sent: 5 confirmed, 0 refused, 0 unknown\n")
    assert r"w\xf6rker" in out


async def test_a_worker_with_a_name_that_its_log_cannot_show_works(site: Site) -> None:
    worker = await site.worker("wörker", PYTHONIOENCODING="ascii")
    assert worker.says("ready")
    await site.run(simulate(3))
    assert len(worker.says("done")) == 3
    assert r"w\xf6rker" in worker.text()


@pytest.mark.parametrize("arguments", ["$(printf '\\377')", "w --only $(printf '\\377')"])
async def test_an_argument_that_is_not_utf_8_is_one_line_and_exit_2(site: Site, arguments: str) -> None:
    code, _, err = await shell(site, f"exec PY main-worker.py {arguments}")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


async def test_a_path_that_is_not_utf_8_is_told_and_the_others_are_sent(site: Site) -> None:
    (site.folder / "good").write_text("x")
    (site.folder / os.fsdecode(b"bad\xff")).write_text("x")
    folder = shlex.quote(str(site.folder))
    code, _, err = await shell(site, f"exec PY main-producer.py {folder}/good {folder}/bad*")
    assert code == 2
    assert "has a name that is not UTF-8" in err
    assert "sent: 1 confirmed, 0 refused, 0 unknown, 1 unreadable" in err


async def test_foreign_text_goes_to_no_terminal_as_it_is(site: Site) -> None:
    worker = await site.worker()
    evil = "id\x1b[2J\nworker1  done  forged"
    await site.publish(b"not json", message_id=evil)
    await until(lambda: worker.says("dead"), "it is a dead letter")
    assert "\x1b" not in worker.text()
    assert not [line for line in worker.text().splitlines() if line.startswith("worker1")]
    produced = await site.producer("--jsonl", "-", lines=json.dumps({"kind": "\x1b[2J\nx"}))
    assert produced.code == 2
    assert "\x1b" not in produced.err
    produced = await site.producer("no\x1b[2Jsuch\nfile")
    assert "\x1b" not in produced.err
    assert len(produced.err.splitlines()) == 2
