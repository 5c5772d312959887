"""What happens to a run: for each kind of fault what carries it out. True: it hit something.

processes   workers and producers are killed, frozen, told to end
broker      it is restarted, killed, blocked; connections are cut, the network stalls
ledger      it is locked, silent, read-only
messages    poison, odd and deadly tasks, large headers; dead letters are looked at and sent back, queues deleted
operators   tasks are called off, queues paused
"""

import random
from collections.abc import Awaitable, Callable, Mapping

from workqueue.testing.chaos.book import Book
from workqueue.testing.chaos.faults.broker import Broker
from workqueue.testing.chaos.faults.ledger import Ledger
from workqueue.testing.chaos.faults.messages import Messages
from workqueue.testing.chaos.faults.operators import Operators
from workqueue.testing.chaos.faults.processes import Processes
from workqueue.testing.chaos.house import House
from workqueue.testing.chaos.load import Task
from workqueue.testing.chaos.plan import Fault
from workqueue.testing.chaos.producing import Producer
from workqueue.testing.chaos.workers import Workers


def by_kind(
    house: House, workers: Workers, producers: Mapping[str, Producer], book: Book, good: Mapping[str, Task], seed: int
) -> dict[str, Callable[[Fault], Awaitable[bool]]]:
    """`good` is a task of each operation."""
    rng = random.Random(f"more {seed}")
    return {
        **Processes(workers, producers).by_kind,
        **Broker(house, producers, book, rng).by_kind,
        **Ledger(house, workers, producers, book, rng).by_kind,
        **Messages(house, producers, book, good, rng).by_kind,
        **Operators(house, producers, book, good, rng).by_kind,
    }
