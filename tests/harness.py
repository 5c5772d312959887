"""The tests' own contract (tests/spec): its scripts, its queues, its tasks, and a site that runs them."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from workqueue import testing
from workqueue.testing import MAIN, Scripts, copy_project, hurried

ROOT = Path(__file__).resolve().parent.parent
TESTS = Scripts("tests/generated", "tests/workers/main.py", ("-m", "tests.workers.producer"))
EXAMPLE = MAIN
ERRANDS, CHORES = (operation.receive for operation in TESTS.operations(ROOT).values())
RECEIVE = ERRANDS
QUEUE, DEAD_QUEUE = RECEIVE.queue.name, RECEIVE.dead.name


@dataclass
class Site(testing.Site):
    """A site of the tests' own contract."""

    project: Path = ROOT
    scripts: Scripts = TESTS

    def __post_init__(self) -> None:
        if self.scripts == EXAMPLE:
            self.environment.setdefault("WORKQUEUE_ROOT", str(self.folder))  # a variable of its own

    def producing(self, *flags: str) -> tuple[str, ...]:
        """A producer's lines go to the site's operation if the flags say nothing else."""
        to = self.to if "--jsonl" in flags and "--to" not in flags else ()
        return super().producing(*flags, *to)


@cache
def is_example() -> bool:
    """Whether the contract in spec/ has the example's kinds still, and not an owner's in their place."""
    models = import_module("generated.worker.messages.json")
    return hasattr(models, "Checksum") and hasattr(models, "Simulate")


def task(payload: dict[str, Any]) -> dict[str, Any]:
    """A whole task, as a foreign client would make it."""
    return {"id": str(uuid4()), "created_at": "2026-11-25T09:30:00Z", "payload": payload}


def simulate(count: int, seconds: float = 0.0, failures: int = 0) -> list[dict[str, Any]]:
    """Tasks of the tests' own contract that take so long, after so many failures."""
    payload = {"kind": "nap", "seconds": seconds, "failures": failures}
    return [task(payload) for _ in range(count)]


def fast_copy(folder: Path, lease_s: int, limit_s: int, scripts: Scripts = TESTS) -> Path:
    """A copy of the project whose contract has short delays, this lease, and this time limit for every kind."""
    home = "." if scripts == EXAMPLE else "tests"
    return copy_project(ROOT, folder, hurried(ROOT / home / "spec", lease_s=lease_s, limit_s=limit_s), home=home)
