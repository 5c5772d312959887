"""What workqueue/dev/broker.py promises."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import ROOT
from workqueue.dev import broker, ports, programs
from workqueue.dev.folder import Record
from workqueue.dev.node import Node
from workqueue.dev.programs import BrokerError, find_server

NOWHERE = "amqp://127.0.0.1:1/"
CONNECTION_START = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0a"
CONTAINER = Record("wq-1@localhost", 20_001, 24_001, "cookie", engine="podman")
needs_server = pytest.mark.skipif(
    find_server() is None and "CI" not in os.environ, reason="no rabbitmq-server is installed here"
)


pytestmark = pytest.mark.broker


@contextmanager
def listener(greeting: bytes) -> Iterator[int]:
    """The port of a server that answers every connection with the same bytes and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    connection.recv(8)
                    connection.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_folder_that_can_not_be_had_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / ".broker")
    assert broker.main(["stop", "--folder", folder]) == 3
    assert capsys.readouterr().err == f"broker: {folder}/broker.json: Not a directory\n"


def test_the_address_of_the_folders_own_broker_in_amqp_uri_names_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make broker` prints it, and it stays in the environment when that broker is stopped."""
    monkeypatch.setenv("AMQP_URI", Node(tmp_path).uri)
    assert broker.find(tmp_path) is None
    with pytest.raises(BrokerError, match="nothing answers at AMQP_URI"):
        broker.find(tmp_path / "another")


def command(verb: str, folder: Path, amqp_uri: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workqueue", "broker", verb, "--folder", str(folder)],
        cwd=ROOT,
        env=os.environ | {"AMQP_URI": amqp_uri},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_server
def test_start_uri_and_stop_find_the_node_by_its_folder_alone(tmp_path: Path) -> None:
    if broker.answers(broker.DEFAULT_URI):
        pytest.skip("a broker answers at the default address, and so is preferred")
    uri = Node(tmp_path).uri
    try:
        for verb in ("start", "uri", "start"):
            done = command(verb, tmp_path)
            assert (done.returncode, done.stdout) == (0, uri + "\n"), verb
    finally:
        done = command("stop", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "stopped" in done.stderr
    assert not Node(tmp_path).running()


def test_a_broker_that_answers_at_amqp_uri_is_used_and_nothing_is_made(tmp_path: Path) -> None:
    with listener(CONNECTION_START) as port:
        answering = f"amqp://me:secret@127.0.0.1:{port}/"
        for verb in ("start", "uri"):
            done = command(verb, tmp_path / "none", f"{NOWHERE}, {answering}")
            assert (done.returncode, done.stdout) == (0, f"{NOWHERE}, {answering}\n")  # whole: it may be the next to go
            assert "secret" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_broker_of_amqp_uri_that_does_not_answer_is_not_replaced_by_a_private_one(tmp_path: Path) -> None:
    for verb in ("start", "uri"):
        done = command(verb, tmp_path / "none", NOWHERE)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.count("\n") == 1
        assert "unset AMQP_URI" in done.stderr
    assert not (tmp_path / "none").exists()


def test_without_a_broker_uri_ends_with_3_and_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMQP_URI", raising=False)
    monkeypatch.setattr(broker, "DEFAULT_URI", NOWHERE)
    assert broker.main(["uri", "--folder", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().err == "broker: no broker answers: `workqueue broker start` brings one up\n"


def test_a_uri_that_is_none_ends_with_2_and_keeps_the_password_to_itself(tmp_path: Path) -> None:
    for uri in ("http://me:secret@host:80/", "amqp://me:secret/@host"):
        done = command("start", tmp_path / "none", uri)
        assert done.returncode == 2
        assert "AMQP_URI must be like amqp://" in done.stderr
        assert "secret" not in done.stderr


def test_stop_with_nothing_running_says_so_and_succeeds(tmp_path: Path) -> None:
    done = command("stop", tmp_path / "none")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing is running" in done.stderr


def test_a_server_that_does_not_speak_amqp_is_no_broker() -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n") as port:
        assert not broker.answers(f"amqp://127.0.0.1:{port}/")
        assert broker.answers(f"amqps://127.0.0.1:{port}/")  # TLS would need certificates to say more


def test_interrupted_it_ends_with_130_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(folder: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(broker, "stop_private", interrupt)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert broker.main(["stop", "--folder", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "broker: interrupted\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


START = f"""
import sys
from workqueue.dev import broker
broker.DEFAULT_URI = {NOWHERE!r}
sys.exit(broker.main(["start", "--folder", sys.argv[1]]))
"""


@pytest.mark.skipif(shutil.which("epmd") is None, reason="needs epmd")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_told_to_end_while_its_node_starts_it_ends_the_node_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    server = tmp_path / "bin" / "rabbitmq-server"
    server.parent.mkdir()
    server.with_name("rabbitmq-env").touch()
    server.write_text("#!/bin/sh\nexec sleep 60\n")
    server.chmod(0o755)
    environment = {**os.environ, "AMQP_URI": "", "PATH": f"{server.parent}:{os.environ['PATH']}"}
    made = Node(tmp_path / "node")
    with subprocess.Popen(
        [sys.executable, "-c", START, str(made.folder)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as starting:
        assert programs.until(made.running, 30)
        starting.send_signal(number)
        _, said = starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert said.splitlines()[1:] == ["broker: interrupted; what it was starting is stopped again"]
    assert not made.running()
    assert ports.epmd(made.record.epmd_port, b"n") == b""


def test_an_interrupted_start_of_a_container_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 0) -> str:
        ran.append(command[1])
        if command[1] == "run":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(broker, "run", run)
    monkeypatch.setattr(broker, "answers", lambda uri: False)
    with pytest.raises(KeyboardInterrupt):
        broker.start_container(tmp_path, "docker")
    assert ran == ["rm", "run", "stop"]


def test_the_container_is_published_on_loopback_and_shows_no_secret() -> None:
    made = broker.container_command(CONTAINER)
    assert made[:3] == ["podman", "run", "--detach"]
    assert "127.0.0.1:20001:5672" in made
    assert "wq-1:/var/lib/rabbitmq" in made
    assert made[-1] == "docker.io/library/rabbitmq:4.0"
    assert CONTAINER.password not in " ".join(made)


def test_without_a_server_a_container_is_used_and_found_again_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    passwords: list[str] = []

    def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 0) -> str:
        ran.append(command)
        if command[:1] == ["docker"]:
            raise BrokerError("no daemon")
        if command[1] == "run":
            assert env is not None
            passwords.append(env["RABBITMQ_DEFAULT_PASS"])
        return "abc\n" if command[1] == "ps" else ""

    monkeypatch.setattr(broker, "run", run)
    monkeypatch.setattr(broker, "find_server", lambda: None)
    monkeypatch.setattr(broker, "answers", lambda uri: passwords != [])
    uri = broker.start_private(tmp_path)
    record = Record.load(tmp_path)
    assert record is not None
    assert (record.engine, record.uri) == ("podman", uri)
    assert ran[-1] == broker.container_command(record)
    assert passwords == [record.password]
    assert broker.start_private(tmp_path) == uri
    assert ran[-1] == broker.container_command(record)  # it answers, so nothing was done
    assert broker.stop_private(tmp_path)
    assert ran[-1][:2] == ["podman", "stop"]


@pytest.mark.parametrize("had_policy", [True, False])
def test_installing_keeps_the_service_from_starting_and_cleans_up_when_apt_fails(
    had_policy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    if had_policy:
        policy.write_text("theirs")
    during: list[str] = []
    real_run = programs.run

    def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 0) -> str:
        if "apt-get" not in command:
            return real_run(command)
        during.append(policy.read_text())
        raise BrokerError("E: Unable to locate package")

    monkeypatch.setattr(broker, "POLICY", str(policy))
    monkeypatch.setattr(broker, "run", run)
    monkeypatch.setattr(broker, "find_server", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(BrokerError, match="Unable to locate"):
        broker.ensure_installed()
    assert during == ["theirs" if had_policy else "#!/bin/sh\nexit 101\n"] * 2
    assert policy.exists() == had_policy


def test_where_nothing_can_be_installed_the_message_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "find_server", lambda: None)
    monkeypatch.setattr(broker, "find_engine", lambda: "")
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(BrokerError, match=r"install RabbitMQ .* start docker or podman, or set AMQP_URI"):
        broker.start_private(tmp_path)
