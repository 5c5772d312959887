"""The tests of the example, and its tasks. They are left out where spec/ has other kinds than the example's."""

from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

from tests.harness import ROOT, task

# By name, so that no type checker misses them where they are gone.
models: Any = import_module("generated.producer.messages.json")
Checksum: Any = getattr(models, "Checksum", None)
Simulate: Any = getattr(models, "Simulate", None)


def script(name: str) -> ModuleType:
    """A script of the example as a module: its name has a dash, which no import statement takes."""
    spec = spec_from_file_location(name.replace("-", "_").removesuffix(".py"), ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulate(count: int, seconds: float = 0.0, failures: int = 0) -> list[dict[str, Any]]:
    return [task({"kind": "simulate", "seconds": seconds, "failures": failures}) for _ in range(count)]
