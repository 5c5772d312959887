"""Hosts on one machine: each a network namespace with an address of its own, and brokers and a database that run there.

A run has a world of its own: `isolated` gives it namespaces for processes, mounts and the network that end, with all
that runs in them, when it does, even by SIGKILL. Nothing in them has a name, and no packet leads out of them.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from tests.harness import ROOT
from workqueue.dev.folder import write_private
from workqueue.dev.node import gist
from workqueue.dev.ports import speaks_amqp
from workqueue.dev.postgres import Postgres
from workqueue.dev.programs import BrokerError, find_server, installed, run, until

NEW_MOUNTS, NEW_PROCESSES, NEW_NETWORK = 0x00020000, 0x20000000, 0x40000000  # sched.h
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of sys/prctl.h
SET_TUN, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN | IFF_NO_PI of linux/if_tun.h
SUBNET = "10.203.0"
AMQP_PORT, DIST_PORT, EPMD_PORT = 5672, 25672, 4369
START_S = 120.0
CTL_S = 90.0  # rabbitmqctl takes a second or two of processor time
OWN_FAULT, INTERRUPTED = 70, 130
COMMANDS = ("ip", "mount", "unshare")

CONFIG = """\
listeners.tcp.1 = {address}:{port}
default_user = wq
default_pass = {password}
disk_free_limit.absolute = 10MB
raft.wal_max_size_bytes = 64000000
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
"""

_libc = ctypes.CDLL(None, use_errno=True)


def lacking() -> str | None:
    """Why there can be no hosts here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root and network namespaces, so Linux"
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        return f"needs {', '.join(missing)}; on Debian: apt-get install iproute2 mount util-linux"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun; in a container: --device /dev/net/tun --cap-add NET_ADMIN --cap-add SYS_ADMIN"
    tried = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False)
    if tried.returncode:
        return f"needs root and network namespaces: {tried.stderr.decode().strip()}"
    return None


def isolated(main: Callable[[], int]) -> int:
    """Run `main` in a world of its own, and return what it returns; 70 if it raises. SIGINT and SIGTERM end it at
    once, with 130."""
    sys.stdout.flush()
    _checked(_libc.unshare(NEW_MOUNTS | NEW_PROCESSES | NEW_NETWORK))
    child = os.fork()
    if child == 0:  # the first process there: when it ends, the kernel kills all others
        code = OWN_FAULT
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        try:
            _checked(_libc.prctl(DIE_WITH_PARENT, signal.SIGKILL))
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
            code = main()
        except BaseException:  # noqa: BLE001  # nothing is above it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(child, number))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Host:
    """A network namespace with one device. What is started within `inside` runs there."""

    def __init__(self, name: str, address: str, *, own: bool = False) -> None:
        """`own`: the namespace that this process has, not a new one."""
        self.name, self.address = name, address
        with _back_in_this_namespace():
            if not own:
                _checked(_libc.unshare(NEW_NETWORK))
            self._namespace = _this_namespace()
            self.device = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(self.device, SET_TUN, struct.pack("16sH22x", b"wire", TUN_WITHOUT_HEADER))
            commands = f"link set lo up\naddress add {address}/24 dev wire\nlink set wire up\n"
            subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the host meanwhile: what it starts, or connects to."""
        with _back_in_this_namespace():
            _checked(_libc.setns(self._namespace, NEW_NETWORK))
            yield

    def __str__(self) -> str:
        return self.name


def _this_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextlib.contextmanager
def _back_in_this_namespace() -> Iterator[None]:
    before = _this_namespace()
    try:
        yield
    finally:
        _checked(_libc.setns(before, NEW_NETWORK))
        os.close(before)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Network:
    """The hosts, and what is between them: from one to another packets arrive at once, late, or not at all."""

    def __init__(self, log: Path) -> None:
        self.hosts: list[Host] = []
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def add(self, name: str, *, own: bool = False) -> Host:
        host = Host(name, f"{SUBNET}.{len(self.hosts) + 11}", own=own)
        self.hosts.append(host)
        return host

    def start(self) -> None:
        """Connect all hosts. None can be added from now on."""
        devices = [f"{host.device}={host.address}" for host in self.hosts]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.network", *devices], cwd=ROOT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                pass_fds=[host.device for host in self.hosts],
            )  # fmt: skip
        self.change()

    def change(self, cut: Iterable[tuple[Host, Host]] = (), delayed: Iterable[tuple[Host, Host, float]] = ()) -> None:
        """From now on drop what goes these ways, and delay by so many seconds what goes those; nothing else."""
        said = {
            "cut": [(a.address, b.address) for a, b in cut],
            "delay_s": [(a.address, b.address, s) for a, b, s in delayed],
        }
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise OSError(f"the network ended, see {self._log}")


def ways(some: Iterable[Host], others: Iterable[Host]) -> list[tuple[Host, Host]]:
    """Between these and those, both ways."""
    pairs = list(product(some, others))
    return [*pairs, *((other, one) for one, other in pairs)]


class Broker:
    """A RabbitMQ node on a host, to be clustered with others that have the same `cookie`."""

    def __init__(self, host: Host, folder: Path, cookie: str) -> None:
        self.host, self.folder, self._cookie = host, folder, cookie
        self.name = f"rabbit@{host.address}"
        self.log = folder / "node.log"

    @property
    def uri(self) -> str:
        return f"amqp://wq:{self._cookie}@{self.host.address}:{AMQP_PORT}/"

    def start(self, members: Iterable["Broker"]) -> None:
        """Start it, and return once it speaks AMQP. Raises BrokerError."""
        self.folder.mkdir(mode=0o700, parents=True)
        config = CONFIG.format(address=self.host.address, port=AMQP_PORT, password=self._cookie)
        for number, member in enumerate(members, 1):
            config += f"cluster_formation.classic_config.nodes.{number} = {member.name}\n"
        write_private(self.folder / "rabbitmq.conf", config)
        write_private(self.folder / ".erlang.cookie", self._cookie)
        with self.host.inside(), self.log.open("wb") as log:
            run(["epmd", "-daemon"], self._environment())
            process = subprocess.Popen(
                [installed("rabbitmq-server")],
                env=self._environment(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        ready = until(lambda: process.poll() is not None or speaks_amqp(self.host.address, AMQP_PORT), START_S)
        if not ready or process.poll() is not None:
            raise BrokerError(f"node {self.name} did not start; from {self.log}:\n{gist(self.log)}")

    def ctl(self, *args: str) -> str:
        """What rabbitmqctl prints when run on this host; BrokerError if it fails."""
        with self.host.inside():
            return run([installed("rabbitmqctl"), "-q", *args], self._environment(), timeout_s=CTL_S)

    def queue(self, name: str) -> dict[str, Any]:
        """What this node knows of a quorum queue: its `leader`, its `members`, and those that are `online`."""
        rows = json.loads(self.ctl("list_queues", "name", "leader", "members", "online", "--formatter", "json"))
        found: list[dict[str, Any]] = [row for row in rows if row["name"] == name]
        return found[0] if found else {"leader": "", "members": [], "online": []}

    def _environment(self) -> dict[str, str]:
        none = str(self.folder / "none")  # which does not exist; the system's might
        interface = self.host.address.replace(".", ",")
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "ERL_FLAGS": f"-kernel inet_dist_use_interface {{{interface}}} -start_epmd false",
            "ERL_EPMD_ADDRESS": self.host.address,
            "ERL_EPMD_PORT": str(EPMD_PORT),
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_USE_LONGNAME": "true",  # so that an address will do for a name
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(DIST_PORT),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": none,
            "RABBITMQ_CONFIG_FILES": none,
            "RABBITMQ_ADVANCED_CONFIG_FILE": none,
            "RABBITMQ_ENABLED_PLUGINS_FILE": none,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": "very_short",
        }


def start_cluster(hosts: Iterable[Host], folder: Path) -> list[Broker]:
    """A node on each host, all of one cluster. Raises BrokerError."""
    if find_server() is None:
        raise BrokerError("no RabbitMQ is installed here; on Debian: apt-get install rabbitmq-server")
    cookie = secrets.token_hex(16)
    brokers = [Broker(host, folder / host.name, cookie) for host in hosts]
    with ThreadPoolExecutor(len(brokers)) as pool:
        list(pool.map(lambda broker: broker.start(brokers), brokers))
    deadline = time.monotonic() + START_S
    while len(json.loads(brokers[0].ctl("cluster_status", "--formatter", "json"))["running_nodes"]) < len(brokers):
        if time.monotonic() > deadline:
            raise BrokerError(f"the nodes did not become one cluster; see {folder}")
    return brokers


class Database(Postgres):
    """A PostgreSQL on a host."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self._rules = self._folder / "rules"
        self._rules.write_text(f"host all all {SUBNET}.0/24 scram-sha-256\n")

    @property
    def url(self) -> str:
        return super().url.replace("127.0.0.1", self._host.address)

    def _run(self, command: list[str | Path]) -> subprocess.Popen[bytes]:
        if Path(command[0]).name == "postgres":
            command = [*command, "-c", f"listen_addresses={self._host.address}", "-c", f"hba_file={self._rules}"]
        with self._host.inside():
            return super()._run(command)
