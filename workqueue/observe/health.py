"""Whether a worker works, truthfully: for `/livez` and `/readyz`, and for whoever else asks, from any thread."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

LEDGER_S = 5.0  # a ledger that has not answered for so long can't be relied on: it is asked every two seconds
LOOP_S = 30.0  # an event loop that has not turned for so long takes no task, and renews no claim


@dataclass
class Health:
    """What the parts of a worker say. `not_consumed` names the queues of which no messages come, though they should,
    and why as far as it is known; `stuck` says which messages can't be settled, `paused` names the queues that an
    operator has paused. `loop_s` and `ledger_s` are when the event loop turned, and the ledger could be written to,
    last (monotonic); `asked_s` tells how long the oldest question to it has waited for its answer.

    `starting` until it is ready for the first time, `stopping` from its drain on.
    """

    not_consumed: Callable[[], Mapping[str, str]] = dict
    stuck: Callable[[], list[str]] = list
    asked_s: Callable[[], float] = float
    paused: set[str] = field(default_factory=set)
    starting: bool = True
    stopping: bool = False
    loop_s: float = field(default_factory=time.monotonic)
    ledger_s: float = field(default_factory=time.monotonic)

    def dead(self) -> list[str]:
        """Why it is not alive; nothing if it is. Who is told should start it anew."""
        silent_s = time.monotonic() - self.loop_s
        return [f"the event loop has not turned for {silent_s:.0f} s"] if silent_s > LOOP_S else []

    def not_ready(self) -> list[str]:
        """What keeps it from taking tasks now, from one of its queues or from all; nothing if it takes them as it
        should."""
        if self.stopping:
            return ["it stops"]
        found = ["it starts"] if self.starting else []
        found += [f"{queue} is not consumed{why and f': {why}'}" for queue, why in self.not_consumed().items()]
        found += self.stuck()
        if self.ledger_is_silent:
            found.append(f"the ledger has not answered for {self.ledger_silent_s():.0f} s")
        return found

    @property
    def ledger_is_silent(self) -> bool:
        return self.ledger_silent_s() > LEDGER_S

    def ledger_silent_s(self) -> float:
        return max(time.monotonic() - self.ledger_s, self.asked_s())
