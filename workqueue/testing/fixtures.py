"""The private brokers that tests run on. Each is started by the run that uses it, on loopback, and ended with it.

To run what needs no node of its own on another broker, say of another version, name one: see `given`.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from workqueue.dev.broker import ensure_installed
from workqueue.dev.node import Node
from workqueue.dev.postgres import Postgres
from workqueue.testing.given import Broker, given_broker
from workqueue.testing.project import copy_project, hurried
from workqueue.testing.scripts import MAIN, Scripts
from workqueue.testing.site import Site
from workqueue.testing.vhosts import vhost

FAST_LEASE_S, FAST_LIMIT_S = 2, 6
STARTING = {"node", "spare_node", "fast_project", "postgres", "site", "fast"}
"""Fixtures that start processes: what stands on one has the marker `broker`."""


def pytest_configure(config: pytest.Config) -> None:
    """A run that is told to end takes down what it started, as it does after Ctrl-C."""
    config.addinivalue_line("markers", "broker: needs a broker, a database or processes")
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_keyboard_interrupt() -> None:
    """The processes that share the tests end as this one does: each has started brokers."""
    here = os.getpid()
    if Path("/proc/self/task").exists():
        for pid in Path(f"/proc/{here}/task/{here}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands on one of the fixtures below needs more than this process."""
    for item in items:
        if not STARTING.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The node that tests share which do it no harm, or the broker that was given to them."""
    if given := given_broker():
        yield given
        given.clean()
        return
    ensure_installed()
    with Node(tmp_path_factory.mktemp("node")) as running:
        yield running
        running.kill()  # nobody needs its data, and to stop in good order takes seconds


@pytest.fixture(scope="session")
def spare_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """For `own_node`. Skipped where a broker is given: this would not be of its version."""
    if given_broker():
        pytest.skip("needs a node of its own")
    ensure_installed()
    node = Node(tmp_path_factory.mktemp("spare"))
    yield node
    node.kill()


@pytest.fixture
def own_node(spare_node: Node) -> Node:
    """A node for one test alone, with its log. One that changes the node's settings kills it at its end."""
    spare_node.start()
    return spare_node


@pytest.fixture(scope="session")
def scripts() -> Scripts:
    """What a site runs; override it for scripts of other names."""
    return MAIN


@pytest.fixture(scope="session")
def project(pytestconfig: pytest.Config) -> Path:
    """The folder with spec/ and the scripts; override it where that is not pytest's root."""
    return pytestconfig.rootpath


@pytest.fixture(scope="session")
def fast_project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with short delays, a short lease and short time limits: what happens at their end, in
    seconds."""
    edit = hurried(project / "spec", lease_s=FAST_LEASE_S, limit_s=FAST_LIMIT_S)
    return copy_project(project, tmp_path_factory.mktemp("fast") / "project", edit)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this run's own."""
    with Postgres() as running:
        yield running


@pytest.fixture
def operation() -> str:
    """The receive operation that `site` sends to and looks at; override it for another than the contract's first."""
    return ""


@pytest.fixture
def site(node: Broker, tmp_path: Path, scripts: Scripts, project: Path, operation: str) -> Iterator[Site]:
    """A vhost of the shared node, a folder and a ledger for one test; its processes end with it."""
    here = Site(tmp_path, vhost(node), project, scripts=scripts, operation=operation)
    yield here
    here.stop()
    here.tell()


@pytest.fixture
def fast(site: Site, fast_project: Path) -> Site:
    """The same with the contract that has short delays, a short lease and short time limits."""
    site.project = fast_project
    return site
