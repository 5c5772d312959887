"""What takes the place of a broker and a ledger while a test runs, for every client that is opened meanwhile.

An application opens its clients where it needs them: in a web framework's lifespan, in a worker's, at the first send.
None of them must reach a real broker from a test that has one in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from workqueue.amqp.connection import Connect
from workqueue.contract import Contract
from workqueue.settings import Settings


@dataclass(eq=False)
class Place:
    """Where tasks for these queues go. What is in `on_end` is called at its end, by any thread."""

    settings: Settings
    connect: Connect
    queues: frozenset[str]
    on_end: list[Callable[[], object]] = field(default_factory=list)

    def settings_for(self, given: Settings | None) -> Settings:
        """The settings of a client, with this place's broker and ledger."""
        ours = self.settings
        return replace(given or ours, amqp_uri=ours.amqp_uri, ledger_url=ours.ledger_url, reconnect_s=ours.reconnect_s)


_places: list[Place] = []


@contextmanager
def instead(place: Place) -> Iterator[None]:
    """Have the place taken by clients of its queues; no client is connected to anything else meanwhile."""
    _places.append(place)
    try:
        yield
    finally:
        _places.remove(place)


def taken(loaded: Contract) -> Place | None:
    """The place for a client of this contract, the one that was opened last; None while no test has one.

    Raises RuntimeError where a test has one, and none of them is for this client's queues.
    """
    queues = {send.queue.name for send in loaded.sends.values()}
    found = next((place for place in reversed(_places) if queues <= place.queues), None)
    if found is None and _places:
        there = ", ".join(sorted(queues - {name for place in _places for name in place.queues}) or sorted(queues))
        raise RuntimeError(
            f"a test runs on a broker in memory, which has no worker for {there}: open a MemoryQueue for that one too"
        )
    return found
