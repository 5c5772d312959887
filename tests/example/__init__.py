"""The tests of the example, and its tasks. They are left out where spec/ has other kinds than the example's."""

from importlib import import_module
from typing import Any

from tests.harness import task

# By name, so that no type checker misses them where they are gone.
models: Any = import_module("generated.producer.messages.json")
Checksum: Any = getattr(models, "Checksum", None)
Simulate: Any = getattr(models, "Simulate", None)


def simulate(count: int, seconds: float = 0.0, failures: int = 0) -> list[dict[str, Any]]:
    return [task({"kind": "simulate", "seconds": seconds, "failures": failures}) for _ in range(count)]
