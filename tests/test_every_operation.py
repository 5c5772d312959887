"""What is shipped as test_workqueue.py, on a contract of two operations: the tests' own."""

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


FIRST, *OTHERS = TESTS.operations(ROOT)


# The first operation of a contract is what test_workqueue.py itself runs on, with the example's.
@pytest.fixture(params=[pytest.param(FIRST, marks=pytest.mark.soak), *OTHERS])
def operation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
