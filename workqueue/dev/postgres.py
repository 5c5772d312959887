"""A private PostgreSQL for tests and for chaos: below one folder, on loopback, with credentials of its own."""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psycopg

from workqueue.dev.broker import install
from workqueue.dev.node import START_S
from workqueue.dev.ports import POSTGRES_PORTS, free_port

STOP_S = 30.0
# fsync off: a kill of the server, which is what tests do, loses nothing by it; only the machine's own death would.
SERVER = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
ADVICE = "no PostgreSQL server is installed; on Debian: apt-get install postgresql"


class PostgresError(Exception):
    """The server is not installed, or did not start; the text says which, and why."""


class Postgres:
    """A server of its own. Started as root it runs as the user `postgres`, since PostgreSQL refuses root."""

    def __init__(self) -> None:
        self._bin = installed()
        self._user = "postgres" if os.geteuid() == 0 else getpass.getuser()
        self._folder = Path(tempfile.mkdtemp(prefix="workqueue-postgres-"))
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port(POSTGRES_PORTS)

    @property
    def url(self) -> str:
        return f"postgresql://workqueue:{self._password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start the server, over the data it had if it was started before, and wait until it answers."""
        data = self._folder / "data"
        if not data.exists():
            secret = self._folder / "password"
            secret.write_text(self._password)
            if os.geteuid() == 0:
                for path in (self._folder, secret):
                    shutil.chown(path, self._user, self._user)
            options = ["--username=workqueue", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"]
            initdb: list[str | Path] = [
                self._bin / "initdb",
                f"--pgdata={data}",
                "--encoding=UTF8",
                "--locale=C",
                *options,
            ]
            if self._run(initdb).wait():
                raise PostgresError(f"initdb failed: {self._said()}")
        self._process = self._run([self._bin / "postgres", "-D", data, "-p", str(self._port), *SERVER])
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=10).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL did not start: {self._said()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once, its clients' sessions with it; the data stay."""
        self._end(signal.SIGINT)  # "fast shutdown", https://www.postgresql.org/docs/current/server-shutdown.html

    def kill(self) -> None:
        """End the server with SIGKILL, as the death of its machine would."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # one that was too slow must not go on by itself
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _said(self) -> str:
        return (self._folder / "log").read_text()[-500:]

    def _run(self, command: list[str | Path]) -> subprocess.Popen[bytes]:
        user = self._user if os.geteuid() == 0 else None
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, user=user, group=user, cwd="/", start_new_session=True
            )

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self._process.pid, number)  # its own session: the server and its children
            else:
                self._process.send_signal(number)
        self._process.wait(STOP_S)
        self._process = None


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("postgres")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


def installed() -> Path:
    """The same, after installing Debian's package if there is none. Raises PostgresError or BrokerError."""
    binaries = find_binaries()
    if binaries is None and install("postgresql", lambda: find_binaries() is not None):
        binaries = find_binaries()
    if binaries is None:
        raise PostgresError(ADVICE)
    return binaries
