"""The two scripts as people meet them: flags, one clear line for each error, and the documented exit code."""

import asyncio
import json
import re
import shlex
import signal
import socket
import ssl
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.example import simulate
from tests.harness import EXAMPLE, Site, task
from workqueue.process.signals import SAME_S
from workqueue.testing import until
from workqueue.testing.proxy import Proxy

pytestmark = [pytest.mark.example, pytest.mark.broker]


@pytest.fixture
def nowhere(tmp_path: Path) -> Site:
    """A site whose broker's port is closed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Site(tmp_path, f"amqp://guest:secret@127.0.0.1:{port}/", scripts=EXAMPLE)


def one_line(text: str, *parts: str) -> None:
    (line,) = text.strip().splitlines()
    assert "Traceback" not in text
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name what to send"),
        (["--simulate", "3", "--timeout", "1"], "--timeout needs --wait"),
        (["--simulate", "0"], "'0' is not a whole number from 1 up"),
        (["--simulate", "3", "--seconds", "nan"], "'nan' is not a number of seconds"),
        (["--simulate", "3", "a-path"], "name what to send"),
        (["--bogus"], "--bogus"),
        (["--simulate", "3", "--results", "x"], "--results needs --wait"),
    ],
)
async def test_a_wrong_flag_of_the_producer_is_one_line_and_exit_2(nowhere: Site, flags: list[str], said: str) -> None:
    produced = await nowhere.producer(*flags)
    assert produced.code == 2
    one_line(produced.err, "main-producer.py", said)


@pytest.mark.parametrize(
    ("flags", "said"), [(["--concurrency", "none"], "'none'"), (["--bogus"], "--bogus"), (["two"], "two")]
)
async def test_a_wrong_flag_of_the_worker_is_one_line_and_exit_2(nowhere: Site, flags: list[str], said: str) -> None:
    worker = await nowhere.worker("w", *flags, ready=False)
    assert await worker.ended() == 2
    one_line(worker.text(), "main-worker.py", said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AMQP_URI", "http://localhost", "use amqp://"),
        ("LEDGER_URL", "mysql://x", "use sqlite:PATH"),
        ("WORKQUEUE_DRAIN_S", "soon", "use a number of seconds"),
        ("WORKQUEUE_WINDOW", "0", "use a whole number"),
    ],
)
async def test_a_bad_setting_is_one_line_with_its_name_and_value_and_exit_2(
    nowhere: Site, name: str, value: str, said: str
) -> None:
    produced = await nowhere.producer("--simulate", "1", **{name: value})
    assert produced.code == 2
    one_line(produced.err, name, value, said)
    worker = await nowhere.worker("w", ready=False, **{name: value})
    assert await worker.ended() == 2
    one_line(worker.text(), name, value, said)


async def test_a_misspelt_setting_is_a_line_that_names_the_nearest_one(site: Site) -> None:
    produced = await site.producer("--simulate", "1", WORKQUEUE_DRAINS="3")
    assert produced.code == 0
    first, account = produced.err.splitlines()
    assert first.endswith("WORKQUEUE_DRAINS is no setting, and is ignored; the nearest is WORKQUEUE_DRAIN_S")
    assert account.startswith("sent: 1 confirmed")
    worker = await site.worker(WORKQUEUE_RECONECT_S="3")
    assert "the nearest is WORKQUEUE_RECONNECT_S" in worker.text()


async def test_a_folder_that_is_none_is_one_line_of_the_worker_and_exit_2(nowhere: Site) -> None:
    for folder in ("/no/such/folder", "a" * 300, __file__):
        worker = await nowhere.worker(f"w{len(folder)}", ready=False, WORKQUEUE_ROOT=folder)
        assert await worker.ended() == 2
        assert worker.text() == f"main-worker.py: WORKQUEUE_ROOT={folder!r}: name a folder that exists\n"


async def test_an_unreachable_broker_is_one_line_without_the_password_and_exit_3(nowhere: Site) -> None:
    produced = await nowhere.producer("--simulate", "1")
    assert produced.code == 3
    one_line(produced.err, "no broker", "guest:***@127.0.0.1", "check AMQP_URI", "export AMQP_URI=$(make -s broker)")
    worker = await nowhere.worker("w", ready=False)
    assert await worker.ended() == 3
    one_line(worker.text(), "no broker", "guest:***@127.0.0.1", "check AMQP_URI")


async def test_a_peer_that_hangs_up_is_no_broker(tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        site = Site(tmp_path, f"amqp://guest:secret@127.0.0.1:{port}/", scripts=EXAMPLE)
        for produced in [await site.producer("--simulate", "1") for _ in range(3)]:
            assert produced.code == 3
            one_line(produced.err, "no broker")


async def test_a_wrong_password_is_one_line_and_exit_3(site: Site) -> None:
    wrong = re.sub(r":[^:@/]+@", ":wrong@", site.uri)
    produced = await site.producer("--simulate", "1", AMQP_URI=wrong)
    assert produced.code == 3
    one_line(produced.err, "refused", "***")
    worker = await site.worker("w", ready=False, AMQP_URI=wrong)
    assert await worker.ended() == 3
    one_line(worker.text(), "refused", "***")


async def test_by_tls_tasks_are_done_and_a_certificate_of_nobodys_is_one_line_and_exit_3(site: Site) -> None:
    trusted, stranger = trustme.CA(), trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trusted.issue_cert("127.0.0.1").configure_cert(tls)
    for name, authority in (("trusted", trusted), ("stranger", stranger)):
        authority.cert_pem.write_to_path(site.folder / name)
    plain = urlsplit(site.uri)
    async with Proxy(plain.port or 0, tls) as proxy:
        secure = site.uri.replace("amqp:", "amqps:").replace(f":{plain.port}/", f":{proxy.port}/")
        good, bad = (f"{secure}?cafile={site.folder / name}" for name in ("trusted", "stranger"))
        await site.worker("w", AMQP_URI=good)
        assert (await site.producer("--simulate", "20", "--wait", AMQP_URI=good)).code == 0
        assert len(proxy.flows) == 1  # the worker's; the producer's has ended
        for unknown in (bad, secure):
            produced = await site.producer("--simulate", "1", AMQP_URI=unknown)
            assert produced.code == 3
            one_line(produced.err, "certificate", "***")
        site.stop()


async def test_of_several_brokers_the_first_that_answers_is_used(site: Site, nowhere: Site) -> None:
    assert (await site.producer("--simulate", "1", AMQP_URI=f"{nowhere.uri},{site.uri}")).code == 0
    await until(lambda: site.depth_is(1), "the task is queued")


async def test_an_unusable_ledger_is_one_line_and_exit_3(site: Site) -> None:
    worker = await site.worker("w", ready=False, LEDGER_URL="sqlite:/proc/no/ledger.db")
    assert await worker.ended() == 3
    one_line(worker.text(), "no ledger", "/proc/no/ledger.db", "check LEDGER_URL")


async def test_a_sent_task_carries_the_properties_that_the_contract_says(site: Site) -> None:
    (sent,) = simulate(1)
    await site.send([sent])
    async with site.amqp() as channel:
        message = await (await channel.get_queue("task-queue")).get()
        assert message is not None
    assert json.loads(message.body) == sent
    assert (message.delivery_mode, message.content_type, message.type) == (2, "application/json", "task")
    assert message.message_id == sent["id"]
    assert message.timestamp is not None
    assert str(message.app_id).startswith("producer-")
    assert message.headers["x-contract"] == "1.0.0"


async def test_a_task_that_the_broker_cannot_route_is_refused_and_the_next_ones_are_sent(site: Site) -> None:
    process = await site.start_producer("--jsonl", "-", WORKQUEUE_WINDOW="1")
    assert process.stdin is not None
    process.stdin.write(json.dumps(simulate(1)[0]).encode() + b"\n")
    await until(lambda: site.depth_is(1), "the first is queued")
    async with site.amqp() as channel:
        await channel.queue_delete("task-queue")
    process.stdin.write(json.dumps(simulate(1)[0]).encode() + b"\n")
    process.stdin.close()
    assert process.stderr is not None
    said = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    assert "was refused: there is no queue 'task-queue' to take it" in said
    assert "sent: 1 confirmed, 1 refused, 0 unknown" in said


async def test_bad_lines_and_unreadable_paths_are_named_and_everything_good_is_still_sent(site: Site) -> None:
    (good,) = simulate(1)
    lines = f'{json.dumps(good)}\nnot json\n{{"kind": "nonsense"}}\n\n{{"kind": "simulate", "seconds": 0}}\n'
    produced = await site.producer("--jsonl", "-", lines=lines)
    assert produced.code == 2
    first, second, account = produced.err.strip().splitlines()
    assert "-:2: not JSON" in first
    assert "-:3: /payload: no such kind" in second
    assert account == "sent: 2 confirmed, 0 refused, 0 unknown, 2 unreadable"

    (site.folder / "here").write_text("x")
    produced = await site.producer(str(site.folder / "here"), str(site.folder / "gone"))
    assert produced.code == 2
    assert "gone: there is no such file or folder" in produced.err
    assert "sent: 1 confirmed" in produced.err


async def test_a_task_that_dies_makes_exit_1_and_the_results_say_why(site: Site) -> None:
    await site.worker()
    (site.folder / "real").write_text("x")
    paths = ["real", "../outside", "/etc/passwd", "missing"]
    lines = {line["id"]: line for line in await site.run([task({"kind": "checksum", "path": path}) for path in paths])}
    by_path = {line["result"]["path"] if line["result"] else line["error"]: line for line in lines.values()}
    assert by_path["real"]["state"] == "done"
    errors = " ".join(str(line["error"]) for line in lines.values() if line["state"] == "dead")
    assert errors.count("leads out of") == 2
    assert "missing: No such file" in errors
    produced = await site.producer("--jsonl", "-", "--wait", lines=json.dumps(task({"kind": "checksum", "path": ".."})))
    assert produced.code == 1


async def test_results_that_cannot_be_written_are_one_line_and_nothing_is_sent(site: Site) -> None:
    produced = await site.producer("--simulate", "1", "--wait", "--results", "/no/such/folder/results")
    assert produced.code == 2
    one_line(produced.err, "--results", "/no/such/folder/results")


async def test_an_interrupted_producer_accounts_for_what_it_sent_and_exits_130(site: Site) -> None:
    process = await site.start_producer("--jsonl", "-")
    assert process.stdin is not None
    process.stdin.write(b"".join(json.dumps(one).encode() + b"\n" for one in simulate(7)))
    await process.stdin.drain()  # and left open: the producer waits for more
    await until(lambda: site.depth_is(7), "seven tasks are queued")
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert "sent: 7 confirmed, 0 refused, 0 unknown, the rest not tried" in err.decode()


async def test_a_second_signal_ends_a_worker_at_once_and_its_task_goes_to_another(site: Site) -> None:
    tasks = simulate(1, seconds=6.0)
    worker = await site.worker("hasty")
    await site.send(tasks)
    await until(site.record, "the task has begun")
    worker.signal(signal.SIGTERM)
    await until(lambda: worker.says("stops"), "it drains")
    await asyncio.sleep(SAME_S)  # one that comes sooner is the first once more
    worker.signal(signal.SIGTERM)
    assert await worker.ended(within_s=4.0) == 130
    await site.worker("heir")
    await site.all_end(tasks)


@asynccontextmanager
async def at_work(site: Site, worker: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """At the end of the block this worker does what is sent, and exits with 0 when it is told to end."""
    try:
        yield
        assert (await site.send(simulate(3), "--wait")).code == 0
        worker.terminate()
        assert await worker.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            worker.kill()


async def test_a_worker_whose_lines_nobody_reads_any_more_works_on(site: Site) -> None:
    command, environment = [sys.executable, "main-worker.py", "unheard"], site._environment({})
    environment.pop("PYTHONUNBUFFERED", None)  # else the interpreter has nothing left to write at its end
    worker = await asyncio.create_subprocess_exec(*command, cwd=site.project, env=environment, stderr=PIPE)
    async with at_work(site, worker):
        assert worker.stderr is not None
        while b"ready" not in await worker.stderr.readline():
            pass
        worker._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined]  # there is no other way
        await asyncio.sleep(0.1)


async def test_a_worker_without_a_standard_error_works_all_the_same(site: Site) -> None:
    command, environment = f"exec {shlex.quote(sys.executable)} main-worker.py mute 2>&-", site._environment({})
    async with at_work(site, await asyncio.create_subprocess_shell(command, cwd=site.project, env=environment)):
        pass


async def test_at_the_end_of_a_drain_the_task_goes_back_and_that_is_no_failed_attempt(site: Site) -> None:
    tasks = simulate(1, seconds=4.0)
    worker = await site.worker("impatient", WORKQUEUE_DRAIN_S="0.3")
    await site.send(tasks)
    await until(site.record, "the task has begun")
    worker.signal(signal.SIGTERM)
    assert await worker.ended(within_s=3.0) == 0
    assert "finished 0, handed back 1" in worker.text()
    await site.worker("heir")
    await site.all_end(tasks)
    (line,) = await site.run(tasks)
    assert (line["worker"], line["attempts"]) == ("heir", 1)
