"""A RabbitMQ for development and tests: find one that answers, or run a private one that touches nobody else's.

    workqueue broker start|stop|uri [--folder .broker]

`start` takes the first of: the broker of AMQP_URI, which if set must answer, or else the one at RabbitMQ's default
address; the folder's own broker; a node of the installed server; a container; a node after installing Debian's
package. It prints the URI to use on stdout and all else on stderr.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from workqueue.dev.folder import Record, locked
from workqueue.dev.node import Node, uninterrupted
from workqueue.dev.ports import speaks_amqp
from workqueue.dev.programs import BrokerError, find_server, run, until

DEFAULT_URI = "amqp://guest:guest@localhost:5672/"
IMAGE = "docker.io/library/rabbitmq:4.0"  # spelled out, since podman has no default registry
POLICY = "/usr/sbin/policy-rc.d"
EXIT_CODES = "Exit codes: 0 done, 2 wrong usage, 3 no broker within reach, 130 interrupted."
ADVICE = (
    "install RabbitMQ (apt-get, dnf: rabbitmq-server; brew: rabbitmq), start docker or podman, or set AMQP_URI to a "
    "broker that runs elsewhere"
)


class BadUriError(BrokerError):
    """AMQP_URI can't be read."""

    exit_code = 2


def find(folder: Path) -> tuple[str, str] | None:
    """The URI to use as things are, and whose it is; None if no broker answers. Starts nothing.

    Raises BrokerError if AMQP_URI is set and nothing answers there: its user named a broker, and no other will do.
    """
    if named := os.environ.get("AMQP_URI"):
        if any(answers(uri.strip()) for uri in named.split(",")):
            return named, "the broker of AMQP_URI"  # all of them: the one that answers may be the next to go
        if (record := Record.load(folder)) and named == record.uri:
            return None  # the folder's own, as `make broker` has printed it before that was stopped
        raise BrokerError("nothing answers at AMQP_URI: start that broker, or unset AMQP_URI to use a private one")
    if answers(DEFAULT_URI):
        return DEFAULT_URI, "the broker at RabbitMQ's default address"
    record = Record.load(folder)
    return (record.uri, f"the private broker in {folder}") if record and answers(record.uri) else None


def answers(uri: str) -> bool:
    """True if an AMQP server is there, or, for amqps, anything: TLS would need certificates to say more."""
    try:
        parts = urlsplit(uri)
        default_port = {"amqp": 5672, "amqps": 5671}[parts.scheme]
        host, port = parts.hostname or "localhost", parts.port or default_port
    except (KeyError, ValueError) as error:  # not shown, since it may quote a part of the password
        raise BadUriError("AMQP_URI must be like amqp://user:password@host:5672/, or several with commas") from error
    if parts.scheme == "amqp":
        return speaks_amqp(host, port)
    with suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def start_private(folder: Path) -> str:
    """Start the folder's broker by the best means there is, and return its URI; BrokerError if there is none."""
    record = Record.load(folder)
    if record and record.engine:
        return start_container(folder, record.engine)
    if not (record or find_server()) and (engine := find_engine()):
        return start_container(folder, engine)
    ensure_installed()
    say(f"starting a private node of {find_server()} in {folder} ...")
    node = Node(folder)
    node.start()
    return node.uri


def stop_private(folder: Path) -> bool:
    """End the folder's broker, whatever it is; False if none runs. The data stay."""
    record = Record.load(folder)
    if record is None:
        return False
    if record.engine:
        name = container_name(record)
        runs = run([record.engine, "ps", "--quiet", "--filter", f"name={name}"]) != ""
        if runs:
            run([record.engine, "stop", name])
        return runs
    node = Node(folder)
    runs = node.running()
    node.stop()  # even if it is not running: a node that died leaves its epmd
    return runs


def find_engine() -> str:
    """The container engine that answers, or none; an installed command alone says little."""
    return next((engine for engine in ("docker", "podman") if succeeds([engine, "info"])), "")


def container_name(record: Record) -> str:
    return record.name.partition("@")[0]


def start_container(folder: Path, engine: str) -> str:
    """Start the folder's container, and return its URI; its data are in a volume of the same name."""
    record = Record.load_or_make(folder, engine=engine)
    with locked(folder):
        if not answers(record.uri):
            say(f"starting a container with {engine} ... (the first time it loads {IMAGE})")
            succeeds([engine, "rm", "--force", container_name(record)])  # that of the last time, if there was one
            credentials = {"RABBITMQ_DEFAULT_USER": record.user, "RABBITMQ_DEFAULT_PASS": record.password}
            try:
                run(container_command(record), os.environ | credentials, timeout_s=900)
                if not until(lambda: answers(record.uri), 90):
                    see = f"{engine} logs {container_name(record)}"
                    raise BrokerError(f"the container is not ready in 90 s: see `{see}`")
            except BaseException:
                with uninterrupted():
                    succeeds([engine, "stop", container_name(record)], timeout_s=60)
                raise
    return record.uri


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


def ensure_installed() -> None:
    """Install Debian's package if there is no server. Raises BrokerError with apt's reason, or with what helps."""
    if find_server():
        return
    if not install("rabbitmq-server", lambda: find_server() is not None):
        raise BrokerError(f"no RabbitMQ within reach: {ADVICE}")


def install(package: str, present: Callable[[], bool]) -> bool:
    """Install a package of Debian's, one process at a time, and keep its own service from starting. False where that
    can't be done; raises BrokerError with apt's reason if it fails."""
    with locked(Path(tempfile.gettempdir()) / f"workqueue-install-{os.getuid()}"):
        return present() or _install(package)


def _install(package: str) -> bool:
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or not succeeds([*root, "true"]):
        return False
    say(f"installing Debian's {package}, and what it needs ... (10 s to some minutes)")
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    own_policy = not Path(POLICY).exists()
    try:
        if own_policy:
            run([*root, "sh", "-c", 'printf \'#!/bin/sh\\nexit 101\\n\' >"$1" && chmod 755 "$1"', "sh", POLICY])
        succeeds([*apt, "update"], timeout_s=300)  # if not, often another's archive is at fault, and the old lists do
        run([*apt, "install", "--no-install-recommends", package], timeout_s=1800)
    finally:
        if own_policy:
            run([*root, "rm", "-f", POLICY])
    return True


def succeeds(command: list[str], timeout_s: float = 10) -> bool:
    with suppress(BrokerError):  # the answer is the failure
        run(command, timeout_s=timeout_s)
        return True
    return False


@contextmanager
def told_to_end() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP are Ctrl-C: what was begun is undone first."""
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            # By the signal, not by its exception: where Ctrl-C has to wait, so do these.
            before[number] = signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    print(f"broker: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "workqueue broker", description="Find a RabbitMQ, or run a private one.", epilog=EXIT_CODES
    )
    parser.add_argument("command", choices=["start", "stop", "uri"])
    parser.add_argument("--folder", type=Path, default=Path(".broker"), help="of the private one (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        with told_to_end():
            return command(given.command, given.folder)
    except BrokerError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:  # of the disk: a folder that is not ours to write, no room left
        say(f"{error.filename or given.folder}: {error.strerror or error}")
        return 3
    except KeyboardInterrupt:
        say("interrupted" + "; what it was starting is stopped again" * (given.command == "start"))
        return 130


def command(verb: str, folder: Path) -> int:
    """Raises BrokerError."""
    if verb == "stop":
        say(f"stopped; its data stay in {folder}" if stop_private(folder) else "nothing is running")
        return 0
    found = find(folder)
    if found is None and verb == "uri":
        raise BrokerError("no broker answers: `workqueue broker start` brings one up")
    uri, whose = found or (start_private(folder), f"the private broker in {folder}")
    say(f"using {whose}")
    print(uri)
    return 0
