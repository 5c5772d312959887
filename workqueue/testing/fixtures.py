"""The private brokers that tests run on. Each is started by the run that uses it, on loopback, and ended with it.

To run what needs no node of its own on another broker, say of another version, name one: see tests/given.py.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.given import Broker, given_broker
from tests.harness import EXAMPLE, TESTS, Scripts, Site, fast_copy, is_example, vhost
from workqueue.dev.broker import ensure_installed
from workqueue.dev.node import Node
from workqueue.dev.postgres import Postgres
from workqueue.testing.project import ROOT

STARTING = {"node", "spare_node", "fast_project", "fast_example", "postgres", "site", "fast", "installed", "python"}


def pytest_configure(config: pytest.Config) -> None:
    """A run that is told to end takes down what it started, as it does after Ctrl-C."""
    config.addinivalue_line("markers", "example: `site` and `fast` run the example, not the tests' own contract")
    config.addinivalue_line("markers", "broker: needs a broker, a database or processes; not for `make test-unit`")
    config.addinivalue_line("markers", "compiler: runs the generator, a second or more; not for `make test-unit`")
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_keyboard_interrupt() -> None:
    """The processes that share the tests end as this one does: each has started brokers."""
    here = os.getpid()
    if Path("/proc/self/task").exists():
        for pid in Path(f"/proc/{here}/task/{here}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The tests of the example end where somebody's own kinds take the place of its kinds."""
    return True if collection_path == ROOT / "tests" / "example" and not is_example() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands on one of the fixtures below needs more than this process."""
    for item in items:
        if item.get_closest_marker("example") and not is_example():
            item.add_marker(pytest.mark.skip(reason="the contract in spec/ has other kinds than the example"))
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
def fast_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tests' contract with a short lease and short time limits: what happens at their end, in seconds."""
    return fast_copy(tmp_path_factory.mktemp("fast") / "project", lease_s=2, limit_s=6)


@pytest.fixture(scope="session")
def fast_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the example's contract, with short delays too."""
    return fast_copy(tmp_path_factory.mktemp("fast-example") / "project", lease_s=2, limit_s=6, scripts=EXAMPLE)


@pytest.fixture
def scripts(request: pytest.FixtureRequest) -> Scripts:
    """What a site runs: the example where a test is marked so, else the tests' own contract."""
    return EXAMPLE if request.node.get_closest_marker("example") else TESTS


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this run's own."""
    with Postgres() as running:
        yield running


@pytest.fixture
def site(node: Broker, tmp_path: Path, scripts: Scripts) -> Iterator[Site]:
    """A vhost of the shared node, a folder and a ledger for one test; its processes end with it."""
    here = Site(tmp_path, vhost(node), scripts=scripts)
    yield here
    here.stop()
    here.tell()


@pytest.fixture
def fast(node: Broker, tmp_path: Path, scripts: Scripts, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site of the contract with short delays, a short lease and short time limits."""
    project = request.getfixturevalue("fast_example" if scripts == EXAMPLE else "fast_project")
    here = Site(tmp_path, vhost(node), project, scripts=scripts)
    yield here
    here.stop()
    here.tell()
