"""Tests run on a contract of their own, tests/spec; those marked `example` run the example, with its real handlers."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

import pytest

from tests.harness import EXAMPLE, ROOT, TESTS, Site, fast_copy, is_example
from workqueue.testing import Scripts, vhost
from workqueue.testing.fixtures import FAST_LEASE_S, FAST_LIMIT_S
from workqueue.testing.given import Broker

# A folder may have any name: projects, ledgers and logs of the tests lie below one with a space in its own.
SPACED = Path(gettempdir()) / "work queue"
SPACED.mkdir(exist_ok=True)
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SPACED))
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of some thousand processes would compile all that it imports
STARTING = {"fast_example", "installed", "python"}  # fixtures that start processes, beside those of the package


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "example: `site` and `fast` run the example, not the tests' own contract")
    config.addinivalue_line("markers", "soak: a minute of faults or more; `make test-soak`, not a part of `make check`")
    config.addinivalue_line("markers", "slow: runs the generator, or others, for seconds; not for `make test-unit`")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The tests of the example end where somebody's own kinds take the place of its kinds."""
    return True if collection_path == ROOT / "tests" / "example" and not is_example() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("example") and not is_example():
            item.add_marker(pytest.mark.skip(reason="the contract in spec/ has other kinds than the example"))
        if not STARTING.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)


@pytest.fixture(scope="session")
def fast_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fast_copy(tmp_path_factory.mktemp("fast") / "project", FAST_LEASE_S, FAST_LIMIT_S)


@pytest.fixture(scope="session")
def fast_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the example's contract."""
    return fast_copy(tmp_path_factory.mktemp("fast-example") / "project", FAST_LEASE_S, FAST_LIMIT_S, EXAMPLE)


@pytest.fixture
def site(node: Broker, tmp_path: Path, operation: str, request: pytest.FixtureRequest) -> Iterator[Site]:
    scripts: Scripts = EXAMPLE if request.node.get_closest_marker("example") else TESTS
    here = Site(tmp_path, vhost(node), scripts=scripts, operation=operation)
    yield here
    here.stop()
    here.tell()


@pytest.fixture
def fast(site: Site, request: pytest.FixtureRequest) -> Site:
    site.project = request.getfixturevalue("fast_example" if site.scripts == EXAMPLE else "fast_project")
    return site
