"""What workqueue/dev/node.py promises, most of it with a real node."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT
from workqueue.dev import node as module
from workqueue.dev import programs
from workqueue.dev.node import Node
from workqueue.dev.ports import epmd, speaks_amqp
from workqueue.dev.programs import BrokerError, find_server, until

pytestmark = pytest.mark.broker
HOST = "127.0.0.1"
needs_server = pytest.mark.skipif(
    find_server() is None and "CI" not in os.environ, reason="no rabbitmq-server is installed here"
)
needs_epmd = pytest.mark.skipif(shutil.which("epmd") is None, reason="needs epmd")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("a folder with spaces")) as node:
        yield node


@pytest.fixture
def fake_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start script that is up to the test to write, in place of RabbitMQ's."""
    script = tmp_path / "rabbitmq-server"
    monkeypatch.setattr(programs, "find_server", lambda: script)
    return script


def write_script(path: Path, body: str) -> None:
    interpreter = shlex.quote(sys.executable)  # whose path may have a blank, which no #! line takes
    path.write_text(f"#!/bin/sh\nexec {interpreter} -c {shlex.quote(body)}\n")
    path.chmod(0o755)


def no_epmd(node: Node) -> bool:
    return epmd(node.record.epmd_port, b"n") == b""


@needs_server
@pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss")
def test_everything_the_node_listens_on_is_on_loopback_and_below_the_ephemeral_ports(node: Node) -> None:
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line for line in lines if f"pid={node.pid}," in line or f":{node.record.epmd_port} " in line]
    addresses, ports = zip(*[line.split()[3].rsplit(":", 1) for line in own], strict=True)
    assert set(addresses) <= {"127.0.0.1", "[::1]"}
    assert len(set(ports)) == 3  # AMQP, Erlang distribution, epmd
    assert all(20_000 <= int(port) < 32_000 for port in ports)


@needs_server
def test_the_secrets_are_readable_by_the_owner_only(node: Node) -> None:
    for name in ("broker.json", "rabbitmq.conf", ".erlang.cookie"):
        assert (node.folder / name).stat().st_mode & 0o077 == 0, name


@needs_server
def test_a_command_that_fails_names_its_reason_in_one_line(node: Node) -> None:
    with pytest.raises(BrokerError, match="failed to authenticate user") as caught:
        node.ctl("authenticate_user", "nobody", "a-password")
    assert "\n" not in str(caught.value)


@needs_server
def test_data_and_uri_outlast_stop_and_kill(node: Node) -> None:
    uri, port = node.uri, node.record.port
    node.ctl("add_vhost", "kept")
    for end in (node.stop, node.kill):
        end()
        assert not node.running()
        assert not speaks_amqp(HOST, port)
        assert no_epmd(node)
        again = Node(node.folder)
        again.start()
        assert again.uri == uri
        assert speaks_amqp(HOST, port)
        assert "kept" in again.ctl("list_vhosts").split()


@needs_server
def test_its_pid_is_that_of_the_node_and_the_end_of_it_is_noticed(node: Node) -> None:
    os.kill(node.pid, signal.SIGSTOP)
    assert node.running()
    assert until(lambda: not speaks_amqp(HOST, node.record.port), 5)  # a thread of its must run once to be stopped
    os.kill(node.pid, signal.SIGKILL)
    assert until(lambda: not node.running(), 10)
    node.start()


@needs_server
def test_nodes_of_one_cookie_and_epmd_form_a_cluster_and_the_last_one_ends_the_epmd(node: Node, tmp_path: Path) -> None:
    with Node(tmp_path, cookie=node.record.cookie, epmd_port=node.record.epmd_port) as second:
        assert second.uri.partition("@")[0] == node.uri.partition("@")[0]
        second.ctl("stop_app")
        second.ctl("join_cluster", node.record.name)
        second.ctl("start_app")
        cluster = json.loads(node.ctl("cluster_status", "--formatter", "json"))
        assert set(cluster["running_nodes"]) == {node.record.name, second.record.name}
        second.ctl("stop_app")
        node.ctl("forget_cluster_node", second.record.name)
    assert not no_epmd(node)


@needs_server
def test_starts_at_once_on_one_folder_make_one_node_after_half_a_first_boot(tmp_path: Path) -> None:
    (tmp_path / "data" / "half a first boot").mkdir(parents=True)
    script = "import sys, pathlib; from workqueue.dev.node import Node; m = Node(pathlib.Path(sys.argv[1])); "
    script += "m.start(); print(m.pid)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        pids = [start.communicate(timeout=60)[0] for start in starts]
        assert len(set(pids)) == 1
        assert int(pids[0]) == Node(tmp_path).pid
        assert not (tmp_path / "data" / "half a first boot").exists()
    finally:
        Node(tmp_path).stop()
    assert no_epmd(Node(tmp_path))


def test_a_start_on_a_port_in_use_fails_and_names_the_port(tmp_path: Path, fake_server: Path) -> None:
    node = Node(tmp_path / "node")
    with (
        socket.create_server((HOST, node.record.port)),
        pytest.raises(BrokerError, match=f"port {node.record.port} .* is taken"),
    ):
        node.start()
    assert not node.running()


@needs_epmd
def test_a_node_that_dies_while_starting_is_reported_with_its_own_reason(tmp_path: Path, fake_server: Path) -> None:
    write_script(fake_server, "print('2026-01-01 12:00:00 [error] <0.1.0> the disk is on fire', flush=True)")
    node = Node(tmp_path / "node")
    with pytest.raises(BrokerError, match=r"ended while starting(.|\n)*\nthe disk is on fire$"):
        node.start()
    assert no_epmd(node)


@needs_epmd
def test_a_node_that_does_not_get_ready_is_ended(
    tmp_path: Path, fake_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(fake_server, "import time; time.sleep(60)")
    monkeypatch.setattr(module, "START_S", 0.5)
    node = Node(tmp_path / "node")
    with pytest.raises(BrokerError, match=r"is not ready in 0\.5 s"):
        node.start()
    assert not node.running()


@needs_epmd
def test_an_interrupted_start_leaves_no_process_behind(tmp_path: Path, fake_server: Path) -> None:
    write_script(fake_server, "import time; time.sleep(60)")
    node = Node(tmp_path / "node")

    def interrupt() -> None:
        until(node.running, 10)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the code generator sets another at its import
    with pytest.raises(KeyboardInterrupt):
        node.start()
    thread.join()
    assert not node.running()
    with pytest.raises(ProcessLookupError):
        os.kill(node.pid, 0)
    assert no_epmd(node)


def test_a_process_that_has_got_the_number_of_the_node_is_not_ended(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert not node.running()
    node.kill()  # we live on


@needs_server
@pytest.mark.parametrize(("folder", "shared"), [("node0", []), ("popen-gw0/node0", ["-n", "1"])])
def test_a_test_run_that_is_told_to_end_takes_its_broker_down_with_it(
    tmp_path: Path, folder: str, shared: list[str]
) -> None:
    options = ["-k", "fair_share", "--basetemp", str(tmp_path / "run"), "-p", "no:cacheprovider", *shared]
    command = [sys.executable, "-m", "pytest", "test_workqueue.py", *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith("TEST_")}  # no broker is given
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=own) as run:
        assert until((tmp_path / "run" / folder / "booted").exists, 60)
        node = Node(tmp_path / "run" / folder)
        assert node.running()
        run.terminate()
        assert run.wait(60) != 0
    assert not node.running()
    assert no_epmd(node)
