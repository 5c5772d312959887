"""What a run of chaos is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workqueue.testing.chaos.plan import KINDS
from workqueue.testing.scripts import Scripts

NAP, EXAMPLES_NAP = "nap", "simulate"  # the kind that takes a time and fails, of the tests and of the example


@dataclass(frozen=True)
class Payload:
    """A user's payload, and the receive operation that is to do it."""

    operation: str
    value: Mapping[str, Any]


@dataclass(frozen=True)
class RunSettings:
    """A run of this project in `folder`, which is its own: `tasks` in `seconds`, of `payloads` if there are some.

    Without payloads the tasks are of the example's contract, and known to fail just where they are told to; with
    `odd_ways`, of one with the kinds `nap`, `odd` and `deadly`, as this package's tests have it. Of each operation, a
    worker has from 1 to `concurrency` tasks in hand at a time. `old` is an older version of the project: every other
    worker and producer is of that one. `kinds` are of faults; those that such tasks or such a ledger can't have are
    left out.
    """

    folder: Path
    project: Path
    scripts: Scripts
    seed: int
    seconds: float
    tasks: int
    ledger: str = "sqlite"
    concurrency: int = 1
    odd_ways: tuple[str, ...] = ()
    payloads: tuple[Payload, ...] = ()
    old: Path | None = None
    kinds: tuple[str, ...] = tuple(KINDS)

    @property
    def own(self) -> bool:
        """Whether it is known of each task how often it fails."""
        return not self.payloads

    @property
    def nap(self) -> str:
        return NAP if self.odd_ways else EXAMPLES_NAP
