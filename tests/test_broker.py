"""What tools/broker.py promises, most of it with a real node."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tools import broker
from tools.broker import BrokerError, Node, Record

SCRIPT = Path(broker.__file__)
CONNECTION_START = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0a"
needs_server = pytest.mark.skipif(
    broker.find_server() is None and "CI" not in os.environ, reason="no rabbitmq-server is installed here"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("a folder with spaces")) as node:
        yield node


@pytest.fixture
def fake_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start script that is up to the test to write, in place of RabbitMQ's."""
    script = tmp_path / "rabbitmq-server"
    monkeypatch.setattr(broker, "find_server", lambda: script)
    return script


def write_script(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)


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


def command(verb: str, folder: Path, amqp_uri: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), verb, "--folder", str(folder)],
        env=os.environ | {"AMQP_URI": amqp_uri},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


NOWHERE = "amqp://127.0.0.1:1/"


@needs_server
def test_everything_the_node_listens_on_is_on_loopback(node: Node) -> None:
    if shutil.which("ss") is None:
        pytest.skip("needs ss")
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line for line in lines if f"pid={node.record.pid}," in line or f":{node.record.epmd_port} " in line]
    addresses = {line.split()[3].rpartition(":")[0] for line in own}
    assert len(own) >= 3  # AMQP, Erlang distribution, epmd
    assert addresses <= {"127.0.0.1", "[::1]"}


@needs_server
def test_the_secrets_are_readable_by_the_owner_only(node: Node) -> None:
    for name in ("broker.json", "rabbitmq.conf", ".erlang.cookie"):
        assert (node.folder / name).stat().st_mode & 0o077 == 0, name


@needs_server
def test_a_command_that_fails_names_its_reason_in_one_line(node: Node) -> None:
    with pytest.raises(BrokerError, match='User "nobody" does not exist') as caught:
        node.ctl("delete_user", "nobody")
    assert "\n" not in str(caught.value)


@needs_server
def test_the_command_line_finds_the_node_by_its_folder_alone(node: Node) -> None:
    for verb in ("uri", "start", "status"):
        done = command(verb, node.folder, NOWHERE)
        assert (done.returncode, done.stdout) == (0, node.uri + "\n"), verb


@needs_server
def test_data_and_uri_outlast_stop_and_kill_and_a_second_node_is_not_disturbed(node: Node, tmp_path: Path) -> None:
    uri = node.uri
    with Node(tmp_path / "second") as second:
        node.ctl("add_vhost", "kept")
        node.stop()
        assert not node.running()
        assert not broker.answers(uri)
        node.start()
        node.kill()
        assert not node.running()
        assert not broker.answers(uri)
        assert broker.epmd(node.record.epmd_port, b"n") == b""
        assert second.running()
        assert second.record.name.partition("@")[0].encode() in broker.epmd(second.record.epmd_port, b"n")
        again = Node(node.folder)
        again.start()
        assert again.uri == uri
        assert broker.answers(uri)
        assert "kept" in again.ctl("list_vhosts").split()
        second.ctl("add_user", "someone", "secret")
    assert broker.epmd(second.record.epmd_port, b"n") == b""


def test_a_start_on_a_port_in_use_fails_and_names_the_port(tmp_path: Path, fake_server: Path) -> None:
    with listener(b"") as port:
        node = Node(tmp_path / "node", port=port)
        with pytest.raises(BrokerError, match=f"port {port} .* is taken"):
            node.start()
    assert not node.running()


def test_a_node_that_dies_while_starting_is_reported_with_its_own_reason(tmp_path: Path, fake_server: Path) -> None:
    if shutil.which("epmd") is None:
        pytest.skip("needs epmd")
    write_script(fake_server, "print('2026-01-01 12:00:00 [error] <0.1.0> the disk is on fire', flush=True)")
    node = Node(tmp_path / "node")
    with pytest.raises(BrokerError, match=r"ended while starting(.|\n)*\nthe disk is on fire$"):
        node.start()
    assert broker.epmd(node.record.epmd_port, b"n") == b""


def test_an_interrupted_start_leaves_no_process_behind(tmp_path: Path, fake_server: Path) -> None:
    if shutil.which("epmd") is None:
        pytest.skip("needs epmd")
    write_script(fake_server, "import time; time.sleep(60)")
    node = Node(tmp_path / "node")
    pids = []

    def interrupt() -> None:
        broker.until(node.running, 10)
        pids.append(node.record.pid)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        node.start()
    thread.join()
    assert not broker.is_node(replace(node.record, pid=pids[0]))
    assert broker.epmd(node.record.epmd_port, b"n") == b""


def test_a_process_that_has_got_the_number_of_the_node_is_not_ended(tmp_path: Path) -> None:
    node = Node(tmp_path)
    replace(node.record, pid=os.getpid()).save(tmp_path)
    assert not node.running()
    node.kill()  # we live on


def test_an_old_folder_refuses_other_settings(tmp_path: Path) -> None:
    replace(Node(tmp_path, port=20_001).record, booted=True).save(tmp_path)
    assert Node(tmp_path).record.port == 20_001
    with pytest.raises(BrokerError, match="use another folder"):
        Node(tmp_path, port=20_002)


def test_a_broker_that_answers_at_amqp_uri_is_used_and_nothing_is_made(tmp_path: Path) -> None:
    with listener(CONNECTION_START) as port:
        answering = f"amqp://me:secret@127.0.0.1:{port}/"
        for verb in ("start", "uri", "status"):
            done = command(verb, tmp_path / "none", f"{NOWHERE}, {answering}")
            assert (done.returncode, done.stdout) == (0, answering + "\n")
            assert "secret" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_without_a_broker_uri_and_status_end_with_3_and_one_line(tmp_path: Path) -> None:
    done = command("uri", tmp_path / "none", NOWHERE)
    assert (done.returncode, done.stdout) == (3, "")
    assert "broker.py start" in done.stderr


def test_a_uri_that_is_none_ends_with_2_and_keeps_the_password_to_itself(tmp_path: Path) -> None:
    for uri in ("http://me:secret@host:80/", "amqp://me:secret/@host"):
        done = command("start", tmp_path / "none", uri)
        assert done.returncode == 2
        assert "AMQP_URI must be like amqp://" in done.stderr
        assert "secret" not in done.stderr


def test_stop_with_nothing_running_says_so_and_succeeds(tmp_path: Path) -> None:
    done = command("stop", tmp_path / "none", NOWHERE)
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing is running" in done.stderr


def test_a_server_that_does_not_speak_amqp_is_no_broker() -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n") as port:
        assert not broker.answers(f"amqp://127.0.0.1:{port}/")
        assert broker.answers(f"amqps://127.0.0.1:{port}/")  # TLS would need certificates to say more


def test_the_container_is_published_on_loopback_and_shows_no_secret(tmp_path: Path) -> None:
    record = Record("wq-1@localhost", 20_001, 24_001, "cookie", engine="podman")
    made = broker.container_command(record)
    assert made[:3] == ["podman", "run", "--detach"]
    assert "127.0.0.1:20001:5672" in made
    assert "wq-1:/var/lib/rabbitmq" in made
    assert made[-1] == "docker.io/library/rabbitmq:4.0"
    assert record.password not in " ".join(made)


@pytest.mark.parametrize("known", [True, False])
def test_a_container_that_exists_is_started_again_and_gets_its_credentials_only_when_made(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record("wq-1@localhost", 20_001, 24_001, "cookie", engine="docker")
    ran: list[list[str]] = []

    def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 0) -> str:
        ran.append(command)
        if command[1] == "run":
            assert env is not None
            assert env["RABBITMQ_DEFAULT_PASS"] == record.password
        return "abc\n" if command[1] == "ps" and known else ""

    monkeypatch.setattr(broker, "run", run)
    monkeypatch.setattr(broker, "answers", lambda uri: True)
    broker.start_container(tmp_path, record)
    assert ran[1] == (["docker", "start", "wq-1"] if known else broker.container_command(record))


@pytest.mark.parametrize("had_policy", [True, False])
def test_installing_keeps_the_service_from_starting_and_cleans_up_when_apt_fails(
    had_policy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    if had_policy:
        policy.write_text("theirs")
    during: list[str] = []
    real_run = broker.run

    def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 0) -> str:
        if "apt-get" not in command:
            return real_run(command)
        during.append(policy.read_text())
        raise BrokerError("E: Unable to locate package")

    monkeypatch.setattr(broker, "POLICY", str(policy))
    monkeypatch.setattr(broker, "run", run)
    with pytest.raises(BrokerError, match="Unable to locate"):
        broker.install_debian([])
    assert during == ["theirs" if had_policy else "#!/bin/sh\nexit 101\n"] * 2
    assert policy.exists() == had_policy


def test_the_advice_fits_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: tool if tool == "brew" else None)
    assert broker.advice().startswith("run `brew install rabbitmq`")
