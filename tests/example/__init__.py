"""Tasks of the example's contract, for the tests of the example itself."""

from typing import Any

from tests.harness import task


def simulate(count: int, seconds: float = 0.0, failures: int = 0) -> list[dict[str, Any]]:
    return [task({"kind": "simulate", "seconds": seconds, "failures": failures}) for _ in range(count)]
