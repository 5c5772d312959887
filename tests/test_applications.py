"""The programs of docs/applications.md, as they are printed: each sends, and gets what a worker made of it."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import httpx
import pytest

from generated.worker import Application as worker_application
from generated.worker.messages import json as worker
from tests.harness import ROOT, Site
from tests.pages import blocks
from workqueue import TaskContext
from workqueue.client.status import State
from workqueue.dev.ports import free_port
from workqueue.testing import MemoryQueue, until
from workqueue.testing.given import Broker

PAGE = "applications.md"
PROGRAMS = {text.partition("\n")[0].removeprefix("# "): text for text in blocks(PAGE, "python") if text[:2] == "# "}
TEXT = "to be hashed\n"
CONFLICT = "this Idempotency-Key came with another request before"
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


WRONG = """
from generated.producer.client import Client, SyncClient
from generated.producer.messages.json import Checksum, ChecksumResult


async def wrong(queue: Client) -> None:
    handle = await queue.send(Checksum(kind="checksum", path="a"))
    await queue.send(Checksum(kind="checksum"))  # Missing named argument "path"
    await queue.send(Checksum(kind="checksum", path=1))  # "path" to "Checksum" has incompatible type "int"
    await queue.send("checksum")  # Argument 1 to "send" of "Client" has incompatible type "str"
    await queue.send(Checksum(kind="checksum", path="a"), within=3)  # Unexpected keyword argument "within"
    made: ChecksumResult = await handle.result()  # Incompatible types in assignment


def wrong_too(queue: SyncClient) -> None:
    handle = queue.send(Checksum(kind="checksum", path="a"))
    queue.send([Checksum(kind="checksum", path="a")])  # Argument 1 to "send" of "SyncClient" has incompatible type
    made: int = handle.result(timeout_s=1)  # Incompatible types in assignment
"""
"""Each line that a type checker finds, with what it says."""


def lay_down(folder: Path) -> None:
    for name, text in PROGRAMS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
async def place(site: Site, tmp_path: Path) -> Path:
    """A folder with the programs and a file for a worker, which is there, to hash."""
    lay_down(tmp_path)
    (tmp_path / "LICENSE").write_text(TEXT)
    await site.worker(WORKQUEUE_ROOT=str(tmp_path))
    return tmp_path


def environment(site: Site) -> dict[str, str]:
    own = {"AMQP_URI": site.uri, "LEDGER_URL": site.ledger_url, "PYTHONPATH": f"{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **own}


async def run(site: Site, place: Path, *command: str) -> tuple[int | None, str, str]:
    """A program's exit code, and what it said."""
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=place, env=environment(site), stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def server(site: Site, place: Path, module: str, *flags: str) -> AsyncIterator[httpx.AsyncClient]:
    """A web server on `{port}`, until the end of the block; it ends in good order and has said nothing of an error."""
    port = free_port(range(20_000, 30_000))
    command = [sys.executable, "-m", module, *(flag.format(port=port) for flag in flags)]
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=place, env=environment(site), stdout=log, stderr=log)  # noqa: ASYNC220
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:

            async def answers() -> bool:
                assert process.poll() is None, (place / "server.log").read_text()
                try:
                    await http.get("/")
                except httpx.TransportError:
                    return False
                return True

            await until(answers, f"{module} answers")
            yield http
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) in (0, -signal.SIGTERM)  # uvicorn's, when all is closed
        said = (place / "server.log").read_text()
        assert "Traceback" not in said, said
    finally:
        process.kill()
        process.wait()


async def hashed(http: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    """Begin a checksum over HTTP; its status once it is done."""
    begun = await http.post("/checksums", json={"kind": "checksum", "path": "LICENSE"}, headers=headers)
    assert begun.status_code == 202, begun.text
    found: dict[str, Any] = {}

    async def done() -> bool:
        found.update((await http.get(f"/checksums/{begun.json()['id']}")).json())
        return bool(found["state"] == "done")

    await until(done, "it is done")
    return found


pytestmark = [pytest.mark.broker, pytest.mark.example]


async def test_the_shortest_program_prints_what_the_page_says_and_so_does_the_blocking_one(
    site: Site, place: Path
) -> None:
    (shown,) = blocks(PAGE, "text")
    pattern = "".join(".+" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", shown))
    for name in ("shortest.py", "shortest_blocking.py"):
        code, out, err = await run(site, place, name)
        assert (code, err) == (0, "")
        assert re.fullmatch(pattern, out), out
        assert DIGEST in out


async def test_fastapi_under_uvicorn(site: Site, place: Path) -> None:
    async with server(site, place, "uvicorn", "--port", "{port}", "fastapi_app:app") as http:
        status = await hashed(http)
        assert (status["worker"], status["attempt"]) == ("worker1", 1)
        result = await http.get(f"/checksums/{status['id']}/result")
        assert (result.status_code, result.json()["digest"]) == (200, DIGEST)
        same = {(await hashed(http, **{"Idempotency-Key": "k"}))["id"] for _ in range(2)}
        assert len(same) == 1
        broken = await http.post("/checksums", json={"kind": "checksum", "path": "x", "more": 1})
        assert (broken.status_code, "more" in broken.text) == (422, True)
        assert (await http.get(f"/checksums/{uuid4()}")).status_code == 404
        gone = (await http.post("/checksums", json={"kind": "checksum", "path": "nothing"})).json()
        dead = await http.get(f"/checksums/{gone['id']}/result")
        assert (dead.status_code, "gave-up" in dead.text) == (409, True)


def test_a_program_is_tested_as_it_is_on_a_broker_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(task: worker.Task, context: TaskContext[None]) -> worker.ChecksumResult:
        assert isinstance(task.payload, worker.Checksum)
        path = task.payload.path
        return worker.ChecksumResult(kind="checksum", path=path, algorithm="sha256", digest=DIGEST, size=3)

    lay_down(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AMQP_URI", "amqp://127.0.0.1:1/")  # nobody's
    app = import_module("fastapi_app").app
    with warnings.catch_warnings(action="ignore"):  # it asks for another HTTP library
        client = import_module("starlette.testclient").TestClient
    with MemoryQueue(worker_application, {"process_task": handle}, None) as queue, client(app) as http:
        begun = http.post("/checksums", json={"kind": "checksum", "path": "x"}, headers={"Idempotency-Key": "k"})
        assert http.get(f"/checksums/{begun.json()['id']}/result").json()["size"] == 3
        again = http.post("/checksums", json={"kind": "checksum", "path": "y"}, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()) == (422, {"detail": CONFLICT})
        ended = time.monotonic() + 20
        while not queue.dead_letters and time.monotonic() < ended:
            time.sleep(0.01)
        assert [letter.headers["x-reason"] for letter in queue.dead_letters] == ["conflict"]


async def test_flask_under_gunicorn_with_four_workers_forked_after_the_client_was_made(
    site: Site, place: Path, node: Broker
) -> None:
    flags = ("--workers", "4", "--preload", "--bind", "127.0.0.1:{port}", "flask_app:app")
    async with server(site, place, "gunicorn", *flags) as http:
        statuses = await asyncio.gather(*(hashed(http) for _ in range(20)))
        assert len({status["id"] for status in statuses}) == 20
        result = await http.get(f"/checksums/{statuses[0]['id']}/result")
        assert (result.status_code, result.json()["digest"]) == (200, DIGEST)
        for wrong in ({}, {"kind": "checksum", "path": ""}, {"kind": "checksum", "path": 5}):
            assert (await http.post("/checksums", json=wrong)).status_code == 422
        assert (await http.get(f"/checksums/{UUID(int=1)}")).status_code == 404
        keyed = [
            await http.post("/checksums", json={"kind": "checksum", "path": path}, headers={"Idempotency-Key": "k"})
            for path in ("LICENSE", "LICENSE", "README.md")
        ]
        assert [answer.status_code for answer in keyed] == [202, 202, 422]
        assert keyed[0].json() == keyed[1].json()
        vhost = site.uri.rpartition("/")[2]
        connected = await asyncio.to_thread(node.ctl, "list_connections", "vhost", "client_properties")
        processes = set(re.findall(rf"(?m)^{vhost}\t.*client-(\d+)", connected))
        assert len(processes) > 1


async def test_a_management_command_and_a_view_of_django(site: Site, place: Path) -> None:
    code, out, err = await run(site, place, "django_app.py", "checksum", "LICENSE", "LICENSE")
    assert (code, out, err) == (0, f"{DIGEST}  LICENSE\n" * 2, "")
    code, out, err = await run(site, place, "django_app.py", "checksum", "nothing")
    assert (code, out) == (1, "")
    assert "gave-up: nothing: No such file" in err
    async with server(site, place, "gunicorn", "--threads", "4", "--bind", "127.0.0.1:{port}", "django_app") as http:
        assert (await hashed(http))["worker"] == "worker1"


async def test_a_script_that_is_run_again_sends_the_same_tasks(site: Site, place: Path) -> None:
    for _ in range(2):
        assert await run(site, place, "hash_all.py", "LICENSE") == (0, f"{DIGEST}  LICENSE\n", "")
    assert len(site.ended()) == 1
    code, out, err = await run(site, place, "hash_all.py", "LICENSE", "nothing")
    assert (code, out) == (1, f"{DIGEST}  LICENSE\n")
    assert "gave-up" in err


def test_the_states_of_the_page_are_those_there_are() -> None:
    _, _, rest = (ROOT / "docs" / PAGE).read_text().partition("## Status")
    assert tuple(re.findall(r"(?m)^\| `(\w+)` \|", rest.partition("## Results")[0])) == get_args(State)


def test_a_type_checker_finds_nothing_in_the_programs_and_all_that_is_wrong(tmp_path: Path) -> None:
    lay_down(tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    flags = ["--strict", "--explicit-package-bases", "--follow-imports=silent"]
    flags += ["--ignore-missing-imports", "--allow-subclassing-any"]  # Django brings no types
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *flags, "."],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": f"{ROOT}:{tmp_path}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *found, _ = [line for line in done.stdout.splitlines() if ": note:" not in line]
    wrong = [(number, line.partition("  # ")[2]) for number, line in enumerate(WRONG.splitlines(), 1) if "  # " in line]
    assert len(found) == len(wrong), done.stdout
    for line, (number, said) in zip(found, wrong, strict=True):
        assert line.startswith(f"wrong.py:{number}: error: "), done.stdout
        assert said in line, done.stdout


def test_the_programs_are_formatted(tmp_path: Path) -> None:
    lay_down(tmp_path)
    ours = ["--config", str(ROOT / "pyproject.toml")]
    own = ["--config", 'lint.isort.known-first-party=["generated", "workqueue", "jobs"]']
    for command in (["check", *own], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *ours, "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
