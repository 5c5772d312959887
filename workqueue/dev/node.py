"""A private RabbitMQ node below one folder, which touches nobody else's and which any process can find, end or restart.

The node, the epmd it is registered with and rabbitmqctl listen on loopback only. While the node lives, it holds a lock
on the file `pid` of its folder, in which is the number of its process; so no other process is ever taken for it.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from workqueue.dev.folder import Record, locked, write_private
from workqueue.dev.ports import DIST_PORTS, epmd, free_port, is_free, speaks_amqp
from workqueue.dev.programs import BrokerError, installed, run, until

START_S = 180.0  # two seconds on a laptop; a busy machine in CI may take many times as long
STOP_S = 30.0
BOOTED_S = 10.0
# Threads that wait for work by spinning take as much of the processors as the work, and others need those. It costs a
# sixth of a boot.
NO_SPINNING = "+sbwt none +sbwtdcpu none +sbwtdio none"

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
# Below the limit publishers block; the default of 50 MB is soon reached on a laptop's full disk.
disk_free_limit.absolute = 10MB
# Quorum queues keep their write-ahead log in memory too, and read it at boot; the default of 512 MB is for servers.
raft.wal_max_size_bytes = 64000000
"""


class Node:
    """A node below `folder`, as it was left or new; those of one cluster are made with one `cookie` and `epmd_port`."""

    def __init__(self, folder: Path, cookie: str | None = None, epmd_port: int | None = None) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "node.log"  # of the last start
        self.record = Record.load_or_make(self.folder, cookie, epmd_port)

    @property
    def uri(self) -> str:
        return self.record.uri

    @property
    def port(self) -> int:
        return self.record.port

    @property
    def pid(self) -> int:
        """The number of the node's process, or of the last one if none runs."""
        file = self.folder / "pid"
        until(lambda: file.read_text() != "", 5)  # it is the first that the process writes
        return int(file.read_text())

    def running(self) -> bool:
        """True while the node's process lives, ready or not."""
        try:
            with (self.folder / "pid").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:  # never started
            return False
        return False

    def start(self) -> None:
        """Start the node, and return once it speaks AMQP; one that runs is left alone.

        Raises BrokerError if it does not get there. A failed or interrupted start leaves no process behind.
        """
        with locked(self.folder):
            try:
                if not self.running():
                    with uninterrupted():  # an epmd that is not up yet could not be told to end
                        self._spawn()
                self._await_amqp()
            except BaseException:
                with uninterrupted():  # many press Ctrl-C twice
                    self._end(signal.SIGKILL)
                raise
            (self.folder / "booted").touch()

    def stop(self) -> None:
        """End the node in good order, or by force if that takes too long. The data stay."""
        with locked(self.folder):
            self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node at once, as a crash would. What it had written stays."""
        with locked(self.folder):
            self._end(signal.SIGKILL)

    def ctl(self, *args: str) -> str:
        """What rabbitmqctl prints when run against the node, in half a second or more; BrokerError if it fails.

        A node speaks AMQP a moment before its application counts as running, which most commands ask for.
        """
        deadline = time.monotonic() + BOOTED_S
        while True:
            try:
                return run([installed("rabbitmqctl"), "-q", *args], self._environment())
            except BrokerError as error:
                if "requires the 'rabbit' app to be running" not in str(error) or time.monotonic() > deadline:
                    raise

    def add_vhost(self, name: str, *flags: str) -> str:
        """Make a vhost, with these flags of `rabbitmqctl add_vhost`, which the node's user may use; its URI."""
        self.ctl("add_vhost", name, *flags)
        self.ctl("set_permissions", "-p", name, self.record.user, ".*", ".*", ".*")
        return self.uri + name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        server, record = installed("rabbitmq-server"), self.record
        if not until(lambda: is_free(record.port), 1):  # the socket of a killed node may outlive it for a moment
            raise BrokerError(f"port {record.port} of {self.folder} is taken: end its user, or use another folder")
        if not (self.folder / "booted").exists():  # half a first boot can't be resumed, and holds nothing
            shutil.rmtree(self.folder / "data", ignore_errors=True)
        config = CONFIG.format(port=record.port, user=record.user, password=record.password)
        write_private(self.folder / "rabbitmq.conf", config)
        write_private(self.folder / ".erlang.cookie", record.cookie)
        run(["epmd", "-daemon"], self._environment())  # Erlang's register of nodes; one that is there already stays
        if not until(lambda: epmd(record.epmd_port, b"n") != b"", 5):
            raise BrokerError(f"port {record.epmd_port} of {self.folder}, for epmd, is taken: use another folder")
        with self.log.open("wb") as log, (self.folder / "pid").open("w") as pid:
            fcntl.flock(pid, fcntl.LOCK_EX)  # the node inherits the lock, which so ends with it
            process = subprocess.Popen(
                ["sh", "-c", 'echo $$ >pid && exec "$0"', server],
                env=self._environment() | {"RABBITMQ_DIST_PORT": str(free_port(DIST_PORTS))},
                cwd=self.folder,  # where a crash dump goes
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[pid.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is not meant for the node
            )
            process.returncode = 0  # the node may outlive this program; without this, Python warns that it does

    def _environment(self) -> dict[str, str]:
        """All that the server and rabbitmqctl get: nothing from outside can lead them to another node or folder."""
        none = str(self.folder / "none")  # which does not exist; the system's might
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # where Erlang looks for the cookie
            # For every Erlang program here, rabbitmqctl and the server's helpers too: listen on loopback only, and
            # start no epmd, since that could come up after we ended ours.
            "ERL_FLAGS": f"-kernel inet_dist_use_interface {{127,0,0,1}} -start_epmd false {NO_SPINNING}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.record.epmd_port),
            "RUNNING_UNDER_SYSTEMD": "true",  # makes the start script become the node, so its pid is the node's
            "RABBITMQ_NODENAME": self.record.name,
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": none,
            "RABBITMQ_CONFIG_FILES": none,
            "RABBITMQ_ADVANCED_CONFIG_FILE": none,
            "RABBITMQ_ENABLED_PLUGINS_FILE": none,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",  # stdout, so that a failed boot is in the same file
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # do not pin threads to cores: tests and other nodes share them
            "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": "none",  # the server's own flags come after ERL_FLAGS
        }

    def _await_amqp(self) -> None:
        port = self.record.port
        done = until(lambda: not self.running() or speaks_amqp("127.0.0.1", port), START_S)
        if not done or not self.running():
            what = "ended while starting" if done else f"is not ready in {START_S:g} s"
            raise BrokerError(f"node {self.record.name} {what}; from {self.log}:\n{gist(self.log)}")

    def _end(self, signal_number: int) -> None:
        if self.running():
            pid = self.pid
            with suppress(ProcessLookupError):  # it may end by itself just now
                os.kill(pid, signal_number)
                if not until(lambda: not self.running(), STOP_S):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: not self.running(), STOP_S)
            with suppress(ChildProcessError):  # it is not our child if another process started it
                os.waitpid(pid, 0)
        # epmd refuses while a node is registered, so that of a cluster ends with the last one.
        until(lambda: epmd(self.record.epmd_port, b"k") == b"", 0.5)


def gist(log: Path) -> str:
    """The lines of a node's log that are most likely to hold the reason: its first errors, else its last lines."""
    lines = [line[:200] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.partition("> ")[2] for line in lines if "[error]" in line]
    return "\n".join([line for line in errors if line][:8] or lines[-8:])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
