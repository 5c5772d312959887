"""A work queue on hosts of its own: three brokers, a ledger, three workers and two producers that are kept alive."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import psycopg

from tests.harness import ROOT, Site, fast_copy, simulate
from tests.hosts import Broker, Database, Network, start_cluster
from tests.kept import Kept, KeptProducer, KeptWorker
from workqueue.dev.programs import BrokerError, until
from workqueue.testing import Note
from workqueue.testing.evidence import Evidence, Letter, Span

BROKERS = WORKERS = 3
PRODUCERS = 2
LEASE_S, LIMIT_S = 10, 60
LONG_S = 5.0  # a task of this length has its effect together with its completion
STEADY_S = 3.0  # who did nothing for this long does not work
SETTLED_WITHIN_S = 60.0
PATIENCE_S = 60.0  # at the end, without anything being done, before the rest is called lost
POLL_S = 0.5
BEHIND = 40  # tasks that may be given and not done while all is well


class Fleet:
    """All of it, from when it is made. `letters` are the dead letters, `problems` what went wrong with processes."""

    def __init__(self, folder: Path, seed: int, rate: float) -> None:
        """`rate` is how many tasks are sent in a second. Raises BrokerError and PostgresError."""
        self.folder = folder
        self.letters: list[Letter] = []
        self.problems: list[str] = []
        self._ended: set[str] = set()
        self.network = Network(folder / "network.log")
        self.network.add("observer", own=True)
        self.broker_hosts = [self.network.add(f"rabbit{number + 1}") for number in range(BROKERS)]
        self.ledger_host = self.network.add("ledger")
        worker_hosts = [self.network.add(f"worker{number + 1}") for number in range(WORKERS)]
        producer_hosts = [self.network.add(f"producer{number + 1}") for number in range(PRODUCERS)]
        self.network.start()
        self._database = Database(self.ledger_host)
        self._database.start()
        with psycopg.connect(self._database.url) as connection:
            connection.execute("CREATE TABLE effect (id uuid NOT NULL)")
        self.brokers = start_cluster(self.broker_hosts, folder)
        project = fast_copy(folder / "project", LEASE_S, LIMIT_S)
        environment = {"LEDGER_URL": self._database.url, "LONG_S": str(LONG_S)}
        self._site = Site(folder, self.brokers[0].uri, project, environment)
        self._queue, self._dead_queue = self._site.queue, self._site.dead_queue
        self._live_queues = {self._queue, *(rung.queue.name for rung in self._site.receive.rungs)}
        script = str(ROOT / "tests" / "workers" / "holding.py")
        self.workers = [
            KeptWorker(host.name, host, self._site, self._uris(number), script=script)
            for number, host in enumerate(worker_hosts)
        ]
        self.producers = [
            KeptProducer(
                host.name, host, self._site, self._uris(number + 1),
                every_s=PRODUCERS / rate, seed=f"{seed} {number}", is_done=self._ended.__contains__,
            )
            for number, host in enumerate(producer_hosts)
        ]  # fmt: skip

    def start(self) -> None:
        """Start workers and producers, and wait until all work. Raises BrokerError."""
        for worker in self.workers:
            worker.start()
        wait(lambda: all(worker.is_ready for worker in self.workers), "all workers are ready", 90)
        for producer in self.producers:
            producer.start()
        wait(lambda: not self.idle(0.0), "all workers work", 60)
        threading.Thread(target=self._look, daemon=True).start()
        self.settle(time.time())

    def _look(self) -> None:
        """Keep up with what is done, whatever else is waited for: the producers go by it."""
        while True:
            self.record()
            time.sleep(POLL_S)

    def _uris(self, first: int) -> str:
        brokers = self.brokers[first:] + self.brokers[:first]
        return ",".join(broker.uri for broker in brokers)

    # --- what is going on --------------------------------------------------------------------------------------------

    def leader(self) -> Broker:
        """The one with the leader of the tasks' queue."""

        def found() -> Broker | None:
            try:
                name = self.brokers[0].queue(self._queue)["leader"]
            except BrokerError:  # it is busy, or comes back just now
                return None
            return next((broker for broker in self.brokers if broker.name == name), None)

        return cast(Broker, wait(found, f"queue {self._queue} has a leader", 180))

    def broker_of(self, one: Kept) -> Broker:
        """One that it has a connection to."""

        def found() -> Broker | None:
            addresses = one.brokers()
            return next((broker for broker in self.brokers if broker.host.address in addresses), None)

        return cast(Broker, wait(found, f"{one.name} has a connection", 30))

    def record(self) -> list[Note]:
        notes = self._site.record()
        self._ended |= {note.id for note in notes if note.word == "end"}
        return notes

    def behind(self) -> int:
        """How many tasks were given and are not done."""
        self.record()
        return sum(id not in self._ended for producer in self.producers for id in list(producer.given))

    def idle(self, since: float) -> list[KeptWorker]:
        """The workers that have done nothing since then."""
        last = {note.worker: note.at for note in self.record()}
        return [worker for worker in self.workers if last.get(worker.name, 0.0) <= since]

    def working_at(self, seconds: float) -> tuple[KeptWorker, str]:
        """Send a task of this length, and wait until it has begun. Returns the worker and the task's id."""
        (task,) = simulate(1, seconds)
        self.producers[0].more.append(task)

        def found() -> KeptWorker | None:
            by = next((note.worker for note in self.record() if note.id == task["id"]), None)
            return next((worker for worker in self.workers if worker.name == by), None)

        return wait(found, "a task of several seconds has begun", 30), task["id"]

    def effects(self) -> Counter[str]:
        """How often each task had its effect, of those that have one."""
        with psycopg.connect(self._database.url) as connection:
            return Counter(str(id) for (id,) in connection.execute("SELECT id FROM effect").fetchall())

    # --- after a fault -----------------------------------------------------------------------------------------------

    def settle(self, since: float) -> None:
        """Wait until all have worked again since then, nothing is behind and the cluster is whole; not for ever."""

        def is_settled() -> bool:
            started = {note.id for note in self.record() if note.at > since}
            producers = all(
                any(at > since and id in started for id, at in reversed(list(producer.given.items())))
                for producer in self.producers
            )
            return producers and not self.idle(max(since, time.time() - STEADY_S)) and self.behind() < BEHIND

        deadline = time.monotonic() + SETTLED_WITHIN_S
        wait_at_most(is_settled, SETTLED_WITHIN_S)
        while time.monotonic() < deadline and not self._is_whole():
            time.sleep(0.5)

    def _is_whole(self) -> bool:
        try:
            return len(self.brokers[0].queue(self._queue)["online"]) == BROKERS
        except BrokerError:  # one has paused itself, and restarts
            return False

    def start_anew(self, since: float) -> list[str]:
        """End the workers that did not come back, so that this counts for one fault and not for all that follow. Says
        which."""
        lost = self.idle(since)
        for worker in lost:
            worker.kill()
        if lost:
            with psycopg.connect(self._database.url) as connection:  # what a dead host held may be what it waits for
                others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user"
                connection.execute(f"SELECT pg_terminate_backend(pid) {others}")
            now = time.time()
            wait_at_most(lambda: not self.idle(now), 30)
        return [worker.name for worker in lost]

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self, unhealthy: Sequence[Span]) -> Evidence:
        """Let all that was given come to its end, then the workers to theirs."""
        for producer in self.producers:
            producer.closing = True
        for producer in self.producers:
            if not producer.done.wait(2 * PATIENCE_S):
                self.problems.append(f"{producer.name} does not end")
            self.problems += producer.problems
        stuck = self._await_end()
        for worker in self.workers:
            worker.end()
        if not wait_at_most(lambda: all(worker.lives[-1].ended for worker in self.workers), 60):
            self.problems.append("a worker does not end after SIGTERM")
        self._take_letters()
        given = {id: at for producer in self.producers for id, at in producer.given.items()}
        lives = [life for worker in self.workers for life in worker.lives]
        return Evidence(
            given=given, receives=dict.fromkeys(given, self._site.receive), failures=dict.fromkeys(given, 0), poison={},
            notes=self.record(), letters=self.letters, lives=lives, unhealthy=unhealthy, left_over=self._depth(),
            stuck=stuck, own_failures=False,
        )  # fmt: skip

    def _await_end(self) -> bool:
        """Wait until all is done and the queues are empty. True: nothing moved any more."""
        last: tuple[int, ...] = ()
        moved = time.monotonic()
        while time.monotonic() - moved < PATIENCE_S:
            self._take_letters()
            now = self.behind(), len(self.letters), self._depth()
            if now[0] <= len(self.letters) and not now[2]:
                return False
            if now != last:
                last, moved = now, time.monotonic()
            time.sleep(0.5)
        return True

    def _depth(self) -> int:
        async def look() -> int:
            async with self._site.amqp() as channel:
                declared = [await channel.declare_queue(name, passive=True) for name in self._live_queues]
                return sum(queue.declaration_result.message_count or 0 for queue in declared)

        return asyncio.run(look())

    def _take_letters(self) -> None:
        async def take() -> None:
            async with self._site.amqp() as channel:
                queue = await channel.declare_queue(self._dead_queue, passive=True)
                while (message := await queue.get(fail=False)) is not None:
                    await message.ack()
                    id = str(json.loads(message.body)["id"])
                    self.letters.append(Letter(id, message.headers, self._site.receive.operation))

        asyncio.run(take())


def wait(condition: Callable[[], Any], what: str, within_s: float) -> Any:
    """Wait until it is true, and return what it is. Raises BrokerError."""
    found = wait_at_most(condition, within_s)
    if not found:
        raise BrokerError(f"not within {within_s:g} s: {what}")
    return found


def wait_at_most(condition: Callable[[], Any], seconds: float) -> Any:
    """Wait until it is true, not longer than this, and return what it is."""
    found: list[Any] = []

    def holds() -> bool:
        found[:] = [condition()]
        if not found[0]:
            time.sleep(POLL_S)
        return bool(found[0])

    until(holds, seconds)
    return found[0]
