"""Programs: RabbitMQ's, wherever they are installed, and how one is run and waited for."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


class BrokerError(Exception):
    """A broker is out of reach or did not do as told; the text says which, why, and what helps."""

    exit_code = 3


def find_server() -> Path | None:
    """The start script of an installed RabbitMQ, wherever PATH, Debian, Fedora or Homebrew have it.

    What distributions put on PATH wraps the script, and insists on its own user. The script lies beside rabbitmq-env.
    """
    for folder in (*os.get_exec_path(), "/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"):
        script = Path(folder, "rabbitmq-server").resolve().with_name("rabbitmq-server")
        if script.with_name("rabbitmq-env").exists():
            return script
    return None


def installed(program: str) -> str:
    server = find_server()
    if server is None:
        raise BrokerError("no RabbitMQ is installed here: `make broker` helps, or says what does")
    return str(server.with_name(program))


def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = 120) -> str:
    """What the command prints; BrokerError with its reason in one line if it fails."""
    shown = shlex.join(command[:3])  # what follows may be secret
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"`{shown}` failed: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise BrokerError(f"`{shown}` failed with {done.returncode}: {said[max(said.find('Error'), 0) :][:300]}")
    return done.stdout


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition; False if it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
