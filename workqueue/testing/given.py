"""A broker that runs already, of any version, for the tests to share in place of a node of their own.

    TEST_AMQP_URI=amqp://guest:guest@127.0.0.1:5672/ TEST_RABBITMQCTL='sudo rabbitmqctl' make test

Each test has a vhost of its own there. The vhosts and users that tests make are removed at the end; nothing else of
the broker is touched.
"""

import os
import re
import shlex
from typing import Any

import aio_pika
from yarl import URL

from workqueue.dev.node import Node
from workqueue.dev.programs import BrokerError, run

LASTING = {"add_vhost": "delete_vhost", "add_user": "delete_user"}


class Given:
    """The broker of TEST_AMQP_URI; TEST_RABBITMQCTL is the command that controls it, with whatever that needs."""

    def __init__(self, uri: str, command: str) -> None:
        self._url, self._command = URL(uri), shlex.split(command)
        self._made: list[tuple[str, str]] = []

    @property
    def uri(self) -> str:
        return str(self._url)

    @property
    def port(self) -> int:
        return self._url.port or 5672

    def ctl(self, *args: str) -> str:
        """What rabbitmqctl prints; BrokerError if it fails."""
        said = run([*self._command, *args])
        if args[0] in LASTING:
            self._made.append((LASTING[args[0]], args[1]))
        return said

    def add_vhost(self, name: str, *flags: str) -> str:
        """Make a vhost which the user of TEST_AMQP_URI may use; its URI."""
        self.ctl("add_vhost", name, *flags)
        self.ctl("set_permissions", "-p", name, self._url.user or "guest", ".*", ".*", ".*")
        return str(self._url.with_path(f"/{name}"))

    def clean(self) -> None:
        """Remove what was made here."""
        for command, name in reversed(self._made):
            self.ctl(command, name)


Broker = Node | Given
"""What the fixture `node` is."""


def given_broker() -> Given | None:
    """The broker that the environment names, if it does. Raises BrokerError if what it says is not whole."""
    uri, command = os.environ.get("TEST_AMQP_URI", ""), os.environ.get("TEST_RABBITMQCTL", "")
    if not uri and not command:
        return None
    if not re.match("amqps?://", uri) or not command:
        raise BrokerError("a broker is given to tests by both, TEST_AMQP_URI and TEST_RABBITMQCTL")
    return Given(uri, command)


async def version_of(uri: str) -> str:
    """That of the broker there."""
    async with await aio_pika.connect(uri) as connection:
        underlay: Any = connection.transport
        broker = underlay.connection.server_properties["version"]
    return broker.decode() if isinstance(broker, bytes) else str(broker)
