"""The private brokers that tests run on. Each is started by the run that uses it, on loopback, and ended with it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Site, fast_copy, vhost
from tools.broker import ensure_installed
from tools.node import Node
from tools.postgres import Postgres


def pytest_configure() -> None:
    """A run that is told to end takes down what it started, as it does after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node that tests share which do it no harm."""
    ensure_installed()
    with Node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Node]:
    """A node for one test, which may kill it."""
    ensure_installed()
    with Node(tmp_path / "node") as running:
        yield running


@pytest.fixture(scope="session")
def fast_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose contract has short delays: what happens on the rungs, in a second."""
    return fast_copy(tmp_path_factory.mktemp("fast") / "project", lease_s=2, limit_s=6)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this run's own."""
    with Postgres() as running:
        yield running


@pytest.fixture
def site(node: Node, tmp_path: Path) -> Iterator[Site]:
    """A vhost of the shared node, a folder and a ledger for one test; its processes end with it."""
    here = Site(tmp_path, vhost(node))
    yield here
    here.stop()


@pytest.fixture
def fast(node: Node, tmp_path: Path, fast_project: Path) -> Iterator[Site]:
    """A site of the contract with short delays."""
    here = Site(tmp_path, vhost(node), fast_project)
    yield here
    here.stop()
