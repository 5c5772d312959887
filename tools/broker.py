"""A RabbitMQ for development and tests: find one that answers, or run a private one that touches nobody else's.

    python tools/broker.py start|stop|uri|status [--folder .broker]

`start` takes the first of: the broker of AMQP_URI (or RabbitMQ's default address), the folder's own broker, a node
of the installed server, a container, a node after installing Debian's package. It prints the URI to use on stdout
and all else on stderr. Exit codes: 0 done, 2 wrong usage, 3 no broker within reach.

All that is known of a private broker is in its folder, so any process may find, end or restart it, and everything
it listens on is on loopback.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

DEFAULT_URI = "amqp://guest:guest@localhost:5672/"
IMAGE = "docker.io/library/rabbitmq:4.0"  # spelled out, since podman has no default registry
POLICY = "/usr/sbin/policy-rc.d"

# Below the ephemeral ports (from 32768 on Linux, 49152 on macOS): among those, a client that keeps reconnecting to a
# node that is down can be given the node's port for its own end, and the node cannot come back.
AMQP_PORTS, EPMD_PORTS, DIST_PORTS = range(20_000, 24_000), range(24_000, 28_000), range(28_000, 32_000)

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
# Below the limit publishers block; the default of 50 MB is soon reached on a laptop's full disk.
disk_free_limit.absolute = 10MB
# Quorum queues keep their write-ahead log in memory too, and read it at boot; the default of 512 MB is for servers.
raft.wal_max_size_bytes = 64000000
"""


class BrokerError(Exception):
    """A broker is out of reach or did not do as told; the text says which, why, and what helps."""

    exit_code = 3


class BadUriError(BrokerError):
    """A broker's URI that can't be read."""

    exit_code = 2


@dataclass(frozen=True)
class Record:
    """What a folder remembers of its broker.

    The credentials are derived from `cookie`, so nodes that share it share their user, as those of a cluster must.
    """

    name: str
    port: int
    epmd_port: int
    cookie: str
    engine: str = ""  # "docker" or "podman" if it is a container
    pid: int = 0  # of the node started last; 0 if it was ended from here
    booted: bool = False  # one boot came to its end, so the data are whole

    @property
    def user(self) -> str:
        return "wq-" + hashlib.sha256(self.cookie.encode()).hexdigest()[:8]

    @property
    def password(self) -> str:
        return hashlib.sha256(self.cookie.encode()).hexdigest()[8:40]

    @property
    def uri(self) -> str:
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/"

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """The folder's record, or None if it never had a broker."""
        try:
            return cls(**json.loads((folder / "broker.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise BrokerError(f"{folder}/broker.json is damaged ({error}): delete the folder") from error

    def save(self, folder: Path) -> Record:
        write_private(folder / "broker.json", json.dumps(asdict(self), indent=1))
        return self


def new_record() -> Record:
    name = f"wq-{secrets.token_hex(4)}@localhost"
    return Record(name, free_port(AMQP_PORTS), free_port(EPMD_PORTS), secrets.token_hex(20))


class Node:
    """A private RabbitMQ node below one folder. The other arguments count for a new folder; an old one must agree.

    Nodes of one cluster are given the same `cookie` and `epmd_port`.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        name: str | None = None,
        cookie: str | None = None,
        epmd_port: int | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "node.log"
        with locked(self.folder):
            old = Record.load(self.folder) or new_record()
            new = replace(
                old,
                port=port or old.port,
                name=name or old.name,
                cookie=cookie or old.cookie,
                epmd_port=epmd_port or old.epmd_port,
            )
            if new != old and old.booted:
                raise BrokerError(f"{folder} has a node of other port, name, cookie or epmd: use another folder")
            new.save(self.folder)

    @property
    def record(self) -> Record:
        """The record as it is now: another process may have changed it."""
        record = Record.load(self.folder)
        if record is None:
            raise BrokerError(f"{self.folder}/broker.json is gone: make a new Node")
        return record

    @property
    def uri(self) -> str:
        return self.record.uri

    def running(self) -> bool:
        """True while the node's process lives, ready or not."""
        return is_node(self.record)

    def start(self, timeout_s: float = 60) -> None:
        """Start the node, and return once it speaks AMQP; one that runs is left alone.

        Raises BrokerError if it does not get there. A failed or interrupted start leaves no process behind.
        """
        with locked(self.folder):
            try:
                if not self.running():
                    self._spawn()
                self._await_amqp(timeout_s)
            except BaseException:
                with uninterrupted():  # many press Ctrl-C twice
                    self._end(signal.SIGKILL, 10)
                raise
            replace(self.record, booted=True).save(self.folder)

    def stop(self, timeout_s: float = 30) -> None:
        """End the node in good order, or by force after `timeout_s`. The data stay."""
        with locked(self.folder):
            self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End the node at once, as a crash would. What it had written stays."""
        with locked(self.folder):
            self._end(signal.SIGKILL, 10)

    def ctl(self, *args: str) -> str:
        """What rabbitmqctl prints when run against the node, in a second or more; BrokerError if it fails."""
        return run([str(server_or_error().with_name("rabbitmqctl")), "-q", *args], self._environment(self.record))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        server, record = server_or_error(), self.record
        if not until(lambda: is_free(record.port), 2):  # the socket of a killed node may outlive it for a moment
            raise BrokerError(f"port {record.port} of {self.folder} is taken: end its user, or use another folder")
        if not record.booted:  # half a first boot can't be resumed, and holds nothing
            shutil.rmtree(self.folder / "data", ignore_errors=True)
        config = CONFIG.format(port=record.port, user=record.user, password=record.password)
        write_private(self.folder / "rabbitmq.conf", config)
        write_private(self.folder / ".erlang.cookie", record.cookie)
        write_private(self.folder / "advanced.config", "[].\n")
        write_private(self.folder / "plugins", "[].\n")
        write_private(self.folder / "env.conf", "")
        with uninterrupted():  # between the birth of a process and the note of how to find it
            record = self._start_epmd(record)
            if self.log.exists():  # a file for each boot, so that no old error is taken for this one's
                self.log.replace(self.log.with_suffix(".log.1"))
            with self.log.open("wb") as log:
                process = subprocess.Popen(
                    [server, "-private_node", record.name],  # a flag Erlang ignores, and is_node() looks for
                    env=self._environment(record) | {"RABBITMQ_DIST_PORT": str(free_port(DIST_PORTS))},
                    cwd=self.folder,  # where a crash dump goes
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal is not meant for the node
                )
            replace(record, pid=process.pid).save(self.folder)
            process.returncode = 0  # the node may outlive this program; without this, Python warns that it does

    def _start_epmd(self, record: Record) -> Record:
        """Have an epmd, Erlang's register of nodes, at the record's port, or at a new one if that is taken."""
        if epmd(record.epmd_port, b"n"):
            return record
        if not is_free(record.epmd_port):
            record = replace(record, epmd_port=free_port(EPMD_PORTS)).save(self.folder)
        run(["epmd", "-daemon", "-address", "127.0.0.1", "-port", str(record.epmd_port)])
        if not until(lambda: epmd(record.epmd_port, b"n") != b"", 5):
            raise BrokerError(f"epmd does not answer at 127.0.0.1:{record.epmd_port}: its reason is in the system log")
        return record

    def _environment(self, record: Record) -> dict[str, str]:
        """All that the server and rabbitmqctl get: nothing from outside can lead them to another node or folder."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # where Erlang looks for the cookie
            # For every Erlang program here, rabbitmqctl and the server's helpers too: listen on loopback only, and
            # start no epmd, since that could come up after we ended ours.
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(record.epmd_port),
            "RUNNING_UNDER_SYSTEMD": "true",  # makes the start script become the node, so its pid is the node's
            "RABBITMQ_NODENAME": record.name,
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),  # does not exist; the system's might
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # do not pin threads to cores: tests and other nodes share them
            "RABBITMQ_LOGS": "-",  # stdout, so that a failed boot is in the same file
        }

    def _await_amqp(self, timeout_s: float) -> None:
        record, deadline = self.record, time.monotonic() + timeout_s
        while not answers(record.uri):
            if not is_node(record):
                raise BrokerError(f"node {record.name} ended while starting; from {self.log}:\n{gist(self.log)}")
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"node {record.name} not ready in {timeout_s:g} s; from {self.log}:\n{gist(self.log)}"
                )
            time.sleep(0.05)

    def _end(self, signal_number: int, timeout_s: float) -> None:
        record = self.record
        for number, patience_s in ((signal_number, timeout_s), (signal.SIGKILL, 10)):
            if is_node(record):
                with suppress(ProcessLookupError):  # it may end by itself just now
                    os.kill(record.pid, number)
                until(lambda: has_ended(record), patience_s)
        if is_node(record):
            raise BrokerError(f"process {record.pid}, the node of {self.folder}, does not end: look at it with ps")
        # epmd refuses while a node is registered, so that of a cluster ends with the last one.
        until(lambda: epmd(record.epmd_port, b"k") == b"", 0.5)
        replace(record, pid=0).save(self.folder)


def is_node(record: Record) -> bool:
    """True if the process of that number still is the node, and not a later one with the same number."""
    if not record.pid:
        return False
    if not Path("/proc/self").exists():
        command = ["ps", "-ww", "-o", "args=", "-p", str(record.pid)]
        return record.name in subprocess.run(command, capture_output=True, text=True, check=False).stdout
    with suppress(OSError):  # gone, or another user's
        for _ in range(1000):
            if words := Path(f"/proc/{record.pid}/cmdline").read_bytes():
                return record.name.encode() in words
            if Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return False  # ended, but not yet taken note of by its parent
            time.sleep(0.001)  # for a moment a process has no words: while the start script turns into the node
    return False


def has_ended(record: Record) -> bool:
    with suppress(ChildProcessError):  # it is not our child if another process started it
        os.waitpid(record.pid, os.WNOHANG)
    return not is_node(record)


def start_container(folder: Path, record: Record) -> None:
    """Start the folder's container, made anew from the image if it is gone; its data are in a volume of the same name.

    Raises BrokerError if it does not come up.
    """
    name = container_name(record)
    with locked(folder):
        known = run([record.engine, "ps", "--all", "--quiet", "--filter", f"name={name}"])
        command = [record.engine, "start", name] if known else container_command(record)
        credentials = {"RABBITMQ_DEFAULT_USER": record.user, "RABBITMQ_DEFAULT_PASS": record.password}
        run(command, os.environ | credentials, timeout_s=900)
        if not until(lambda: answers(record.uri), 90):
            run([record.engine, "stop", name])
            raise BrokerError(f"container {name} is not ready in 90 s: see `{record.engine} logs {name}`")


def container_command(record: Record) -> list[str]:
    """The command that makes the container; it takes the credentials from the environment, where `ps` shows none."""
    name = container_name(record)
    return [
        *(record.engine, "run", "--detach", "--name", name),
        *("--hostname", name),  # part of the node's name, and so of where it looks for its data
        *("--publish", f"127.0.0.1:{record.port}:5672"),
        *("--volume", f"{name}:/var/lib/rabbitmq"),
        *("--env", "RABBITMQ_DEFAULT_USER", "--env", "RABBITMQ_DEFAULT_PASS"),
        IMAGE,
    ]


def container_name(record: Record) -> str:
    return record.name.partition("@")[0]


def find_server() -> Path | None:
    """The start script of an installed RabbitMQ: the one on PATH, or where Debian, Fedora and Homebrew have it.

    What distributions put on PATH wraps the script, and insists on its own user. The script lies beside rabbitmq-env.
    """
    places = [shutil.which("rabbitmq-server"), "/usr/lib/rabbitmq/bin/rabbitmq-server"]
    places += [f"{prefix}/opt/rabbitmq/sbin/rabbitmq-server" for prefix in ("/opt/homebrew", "/usr/local")]
    for place in filter(None, places):
        script = Path(place).resolve().with_name("rabbitmq-server")
        if script.exists() and script.with_name("rabbitmq-env").exists():
            return script
    return None


def server_or_error() -> Path:
    server = find_server()
    if server is None:
        raise BrokerError(f"no RabbitMQ is installed here: {advice()}")
    return server


def find_engine() -> str | None:
    """The container engine that answers; an installed command alone says little."""
    return next((engine for engine in ("docker", "podman") if succeeds([engine, "info"])), None)


def advice() -> str:
    """What to do to get a server on this system."""
    for tool, line in {
        "apt-get": "run `sudo apt-get install rabbitmq-server`",
        "dnf": "run `sudo dnf install rabbitmq-server`",
        "brew": "run `brew install rabbitmq`",
    }.items():
        if shutil.which(tool):
            return f"{line}, start docker or podman, or set AMQP_URI"
    return "install rabbitmq-server, start docker or podman, or set AMQP_URI"


def root_prefix() -> list[str] | None:
    """What to put before a command to run it as root without being asked for a password; None if nothing helps."""
    if os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if succeeds(["sudo", "-n", "true"]) else None


def install_debian(root: list[str]) -> None:
    """Install Debian's package, and keep it from starting a node of its own on the default port.

    Raises BrokerError with apt's reason if that fails.
    """
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    own_policy = not Path(POLICY).exists()
    try:
        if own_policy:
            run([*root, "sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' >{POLICY} && chmod 755 {POLICY}"])
        say("apt-get update ...")
        if not succeeds([*apt, "update"], timeout_s=300):
            say("it failed; going on with the package lists that are there")  # often the fault of another's archive
        say("apt-get install rabbitmq-server ... (Erlang comes with it, 10 s to some minutes)")
        run([*apt, "install", "--no-install-recommends", "rabbitmq-server"], timeout_s=1800)
    finally:
        if own_policy:
            run([*root, "rm", "-f", POLICY])


def answers(uri: str, timeout_s: float = 1) -> bool:
    """True if an AMQP server is there: it opens the handshake, or, for amqps, takes the connection.

    Raises BadUriError if it is no AMQP URI.
    """
    try:
        parts = urlsplit(uri)
        default_port = {"amqp": 5672, "amqps": 5671}[parts.scheme]
        address = (parts.hostname or "localhost", parts.port or default_port)
    except (KeyError, ValueError) as error:  # not shown, since it may quote a part of the password
        raise BadUriError("AMQP_URI must be like amqp://user:password@host:5672/, or several with commas") from error
    try:
        with socket.create_connection(address, timeout_s) as connection:
            if parts.scheme == "amqps":
                return True
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            start = connection.makefile("rb").read(11)
    except OSError:
        return False
    return start[:1] == b"\x01" and start[7:] == b"\x00\x0a\x00\x0a"  # a method frame: connection.start


def epmd(port: int, request: bytes) -> bytes:
    """What the epmd at that port answers to `n`, its names, or `k`, end yourself; empty if there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(len(request).to_bytes(2, "big") + request)
            return connection.makefile("rb").read()
    except OSError:
        return b""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as RabbitMQ does: old connections are no bar
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(band: range) -> int:
    return next(port for port in iter(lambda: secrets.choice(band), None) if is_free(port))


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition; False if it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 120) -> str:
    """What the command prints; BrokerError with the line that holds its reason if it fails."""
    shown = shlex.join(command[:3])  # what follows may be secret
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"`{shown}` failed: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        first = next((i for i, line in enumerate(lines) if "Error" in line or line.startswith("E:")), 0)
        raise BrokerError(f"`{shown}` failed with {done.returncode}: {' '.join(lines[first:][:2])}")
    return done.stdout


def succeeds(command: list[str], timeout_s: float = 10) -> bool:
    with suppress(BrokerError):  # the answer is the failure
        run(command, timeout_s=timeout_s)
        return True
    return False


def gist(log: Path) -> str:
    """The lines of a node's log that are most likely to hold the reason: its first errors, else its last lines."""
    lines = [line[:200] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.partition("> ")[2] for line in lines if "[error]" in line]
    return "\n".join([line for line in errors if line][:8] or lines[-8:])


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time starts or ends what is in a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def find(folder: Path) -> tuple[str, str] | None:
    """The URI to use as things are, and whose it is; None if no broker answers. Starts nothing."""
    named = os.environ.get("AMQP_URI", "")
    for uri in (named or DEFAULT_URI).split(","):
        if answers(uri.strip()):
            return uri.strip(), "the broker of AMQP_URI" if named else "the broker at RabbitMQ's default address"
    if named:
        say("AMQP_URI is set, but no AMQP server answers there")
    record = Record.load(folder)
    return (record.uri, f"the private broker in {folder}") if record and answers(record.uri) else None


def start_private(folder: Path) -> str:
    """Start the folder's broker by the best means there is, and return its URI; BrokerError if there is none."""
    record = Record.load(folder)
    if not (record and record.engine) and find_server() is None:
        if engine := find_engine():
            record = replace(record or new_record(), engine=engine)
            with locked(folder):
                record.save(folder)
        elif shutil.which("apt-get") and (root := root_prefix()) is not None:
            install_debian(root)
    if record and record.engine:
        say(f"starting a container with {record.engine} ... (the first time it loads {IMAGE})")
        start_container(folder, record)
        return record.uri
    server = server_or_error()
    say(f"starting a private node of {server} in {folder} ...")
    node = Node(folder)
    node.start()
    return node.uri


def stop_private(folder: Path) -> bool:
    """End the folder's broker, whatever it is; False if none runs. The data stay."""
    record = Record.load(folder)
    if record is None:
        return False
    if record.engine:
        runs = run([record.engine, "ps", "--quiet", "--filter", f"name={container_name(record)}"])
        if runs:
            run([record.engine, "stop", container_name(record)])
        return bool(runs)
    runs_as_node = is_node(record)
    Node(folder).stop()  # even if it is not running: a node that died leaves its epmd
    return runs_as_node


def say(text: str) -> None:
    print(f"broker: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Find a RabbitMQ, or run a private one.",
        epilog="Exit codes: 0 done, 2 wrong usage, 3 no broker within reach.",
    )
    parser.add_argument("command", choices=["start", "stop", "uri", "status"])
    parser.add_argument(
        "--folder", type=Path, default=Path(".broker"), help="where the private one lives (%(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        if given.command == "stop":
            say(f"stopped; its data stay in {given.folder}" if stop_private(given.folder) else "nothing is running")
            return 0
        found = find(given.folder)
        if found is None and given.command != "start":
            raise BrokerError("no broker answers: `python tools/broker.py start` brings one up")
        uri, whose = found or (start_private(given.folder), f"the private broker in {given.folder}")
        if given.command != "uri":
            say(f"using {whose}")
        print(uri)
        return 0
    except BrokerError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
