"""What is shipped as test_workqueue.py, on the second operation of a contract; nearly all tests are on the first."""

from pathlib import Path

import pytest

import test_workqueue
from tests.harness import ROOT, TESTS
from workqueue.testing import Scripts

globals().update({name: test for name, test in vars(test_workqueue).items() if name.startswith("test_")})
site = test_workqueue.site


@pytest.fixture(scope="session")
def project() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def scripts() -> Scripts:
    return TESTS


@pytest.fixture
def operation() -> str:
    return list(TESTS.operations(ROOT))[-1]
