"""What happens to a run: one method for each kind of fault. True: it hit something."""

import asyncio
import json
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aio_pika
import psycopg
from aio_pika.exceptions import ChannelNotFoundEntity
from psycopg import sql

from workqueue.contract import Queue
from workqueue.testing.account import Letter
from workqueue.testing.chaos.load import ALWAYS, make_task, nap, poison
from workqueue.testing.chaos.plan import PROVOKED, Fault
from workqueue.testing.processes import Note, until
from workqueue.testing.proxy import Direction, Flow, Proxy

if TYPE_CHECKING:
    from workqueue.testing.chaos.run import Chaos

HELD_BYTES = 21  # of a frame with an ack or a confirm; a heartbeat has 8
HELD_WITHIN_S = 6.0  # after a broker was away, a producer may sleep this long before it comes back
HANDSHAKE_S = 0.5  # a younger connection may have no more to lose than this
COPIES = 4  # of one failing task
LARGE_HEADER_BYTES = 130_900  # with the other properties just below the frame of 131,072 that a broker grants
LETTERS_WITHIN_S = 60.0  # a producer on a busy machine takes a while to start
LOOKED_AT = 30  # at once. RabbitMQ 3.10 forgets the order of more than 32 that come back from one channel: once its
# node was restarted, the acks of before count for other messages, which are lost in place of those.
LOOKS = 25  # more than the deliveries that RabbitMQ 4 grants a message of a quorum queue
SETTLE_S = 3.0  # until a node that has just begun, or a queue, takes everything
SENT_BACK = 5  # dead letters at a time


class Faults:
    def __init__(self, run: "Chaos", seed: int) -> None:
        self._run, self._rng = run, random.Random(f"more {seed}")
        # What changes the broker, or needs it, is done one after the other; so is what changes the ledger, the network.
        self._broker_lock, self._ledger_lock, self._network_lock = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._broker_began = 0.0
        self._deleted: list[Queue] = []
        """Queues that somebody may just now declare again."""
        self.by_kind: dict[str, Callable[[Fault], Awaitable[bool]]] = {
            "worker killed": self._kill_worker,
            "worker frozen": self._freeze_worker,
            "workers restarted in turn": self._roll_workers,
            "broker restarted": self._restart_broker,
            "broker killed": self._kill_broker,
            "connections cut": self._cut_all,
            "network stalled": self._stall_network,
            "cut between publish and confirm": self._cut_before_confirm,
            "cut between effect and ack": self._cut_before_ack,
            "cut between copy and ack": self._cut_after_copy,
            "producer killed": self._kill_producer,
            "poison sent": self._poison,
            "publishers blocked": self._block,
            "ledger out of reach": self._lock_ledger,
            "ledger silent": self._silence_ledger,
            "ledger read-only": self._make_ledger_read_only,
            "odd handlers": self._send_odd,
            "deadly task": self._send_deadly,
            "failing task sent 4 times": self._flood,
            "large headers": self._send_large_headers,
            "dead letters looked at": self._look,
            "dead letters sent back": self._send_back,
            "queue deleted": self._delete_queue,
            "SIGTERM twice": self._term_twice,
            "SIGHUP": self._hang_up,
            "log stalled": self._stall_log,
            PROVOKED: self._kill_in_honest_window,
        }

    @asynccontextmanager
    async def _unusable(self) -> AsyncIterator[None]:
        """Something that all depend on is out of use meanwhile."""
        since = time.time()
        try:
            yield
        finally:
            self._run.unhealthy.append((since, time.time()))

    # --- processes ---------------------------------------------------------------------------------------------------

    async def _kill_worker(self, fault: Fault) -> bool:
        life, worker = self._run.running[fault.worker]
        if life.ended is not None or worker.process.poll() is not None:
            return False
        worker.process.kill()
        life.killed = time.time()
        return True

    async def _freeze_worker(self, fault: Fault) -> bool:
        life, worker = self._run.running[fault.worker]
        since = time.time()
        worker.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            worker.signal(signal.SIGCONT)
            life.frozen.append((since, time.time()))
        return life.ended is None

    async def _roll_workers(self, fault: Fault) -> bool:
        for number in sorted(self._run.running):
            await self._run.term(number)
        return True

    async def _term_twice(self, fault: Fault) -> bool:
        return await self._run.term(fault.worker, signal.SIGTERM, signal.SIGTERM)

    async def _hang_up(self, fault: Fault) -> bool:
        return await self._run.term(fault.worker, signal.SIGHUP)

    async def _stall_log(self, fault: Fault) -> bool:
        life, worker = self._run.running[fault.worker]
        worker.read.clear()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            worker.read.set()
        return life.ended is None

    async def _kill_producer(self, fault: Fault) -> bool:
        producer = self._run.producer
        if producer is None or producer.process.returncode is not None:
            return False
        producer.process.kill()
        await producer.process.wait()
        return True

    # --- the broker and the network ----------------------------------------------------------------------------------

    async def _restart_broker(self, fault: Fault) -> bool:
        await self._interrupt_broker(self._run.node.stop, fault.seconds)
        return True

    async def _kill_broker(self, fault: Fault) -> bool:
        await self._interrupt_broker(self._run.node.kill, fault.seconds)
        return True

    async def _interrupt_broker(self, end: Callable[[], None], seconds: float) -> None:
        async with self._broker_lock:
            if self._deleted:
                await self._have_old_queues()
            async with self._unusable():
                await asyncio.to_thread(end)
                await asyncio.sleep(seconds)
                await asyncio.to_thread(self._run.node.start)
                self._broker_began = time.monotonic()

    async def _have_old_queues(self) -> None:
        """Have every queue be there for a while: a quorum queue younger than a second may come back without a leader,
        for good, from a SIGKILL of its node (RabbitMQ 3.10)."""
        async with self._run.direct.amqp() as channel:
            for queue in self._deleted:
                await channel.declare_queue(queue.name, durable=queue.durable, arguments=dict(queue.arguments))
        self._deleted.clear()
        await asyncio.sleep(SETTLE_S)

    async def _block(self, fault: Fault) -> bool:
        async with self._broker_lock, self._unusable():
            try:
                await asyncio.to_thread(self._run.node.ctl, "set_vm_memory_high_watermark", "0.0000001")
                await asyncio.sleep(fault.seconds)
            finally:
                await asyncio.to_thread(self._run.node.ctl, "set_vm_memory_high_watermark", "0.4")
        return True

    async def _cut_all(self, fault: Fault) -> bool:
        async with self._broker_lock:
            with suppress(AssertionError):
                await until(lambda: self._run.proxy.flows, "somebody is connected", HELD_WITHIN_S)
            return self._run.proxy.cut_all() > 0

    async def _stall_network(self, fault: Fault) -> bool:
        async with self._network_lock:
            await self._stall(self._run.proxy, fault.seconds)
        return True

    async def _stall(self, proxy: Proxy, seconds: float) -> None:
        async with self._unusable():
            proxy.stall()
            try:
                await asyncio.sleep(seconds)
            finally:
                proxy.resume()

    async def _cut_before_confirm(self, fault: Fault) -> bool:
        return await self._cut_while_held(r"producer-\d+", lambda flow: flow.to_client, fault.seconds)

    async def _cut_before_ack(self, fault: Fault) -> bool:
        return await self._cut_while_held(rf"worker{fault.worker}\.\d+", lambda flow: flow.to_broker, fault.seconds)

    async def _cut_after_copy(self, fault: Fault) -> bool:
        if self._run.own:  # so that there are copies
            self._run.more.extend(make_task(self._rng, nap(failures=1, kind=self._run.kind)) for _ in range(6))
        return await self._cut_while_held(r"worker\d publishes", lambda flow: flow.to_client, fault.seconds)

    async def _cut_while_held(self, name: str, way: Callable[[Flow], Direction], seconds: float) -> bool:
        """Hold back what goes this way on these connections, until there is something, and a little longer; then cut
        them. False: there was nothing."""
        async with self._broker_lock, self._network_lock:
            deadline = time.monotonic() + HELD_WITHIN_S
            flows: list[Flow] = []
            while not any(way(flow).held >= HELD_BYTES for flow in flows) and time.monotonic() < deadline:
                flows = [f for f in self._run.proxy.named(name) if time.monotonic() - f.opened > HANDSHAKE_S]
                for flow in flows:
                    way(flow).open.clear()
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            hit = any(way(flow).held >= HELD_BYTES for flow in flows)
            for flow in flows:
                flow.cut()
            return hit

    # --- the ledger --------------------------------------------------------------------------------------------------

    async def _lock_ledger(self, fault: Fault) -> bool:
        server = self._run.postgres
        if server is None:
            async with self._held_ledger():
                await asyncio.sleep(fault.seconds)
            return True
        async with self._ledger_lock, self._unusable():
            await asyncio.to_thread(server.kill if fault.worker == 1 else server.stop)
            await asyncio.sleep(fault.seconds / 2)
            await asyncio.to_thread(server.start)
        return True

    async def _silence_ledger(self, fault: Fault) -> bool:
        assert self._run.ledger_proxy is not None
        async with self._ledger_lock:
            await self._stall(self._run.ledger_proxy, fault.seconds)
        return True

    async def _make_ledger_read_only(self, fault: Fault) -> bool:
        """As after a failover to a server that is still a standby: every session is, also those that are open."""
        async with self._ledger_lock, self._unusable():
            try:
                await asyncio.to_thread(self._alter, sql.SQL("SET default_transaction_read_only = on"))
                await asyncio.sleep(fault.seconds)
            finally:
                await asyncio.to_thread(self._alter, sql.SQL("RESET default_transaction_read_only"))
        return True

    def _alter(self, what: sql.SQL) -> None:
        assert self._run.postgres is not None
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self._run.postgres.url, autocommit=True, options=options) as server:
            server.execute(sql.SQL("ALTER SYSTEM ") + what)
            server.execute("SELECT pg_reload_conf()")

    @asynccontextmanager
    async def _held_ledger(self) -> AsyncIterator[None]:
        """No worker can claim or complete anything meanwhile."""
        server = self._run.postgres
        async with self._ledger_lock, self._unusable():
            if server is not None:  # not locked: a server carries out what waits, though its client be dead
                await asyncio.to_thread(server.stop)
                try:
                    yield
                finally:
                    await asyncio.to_thread(server.start)
                return
            path = self._run.folder / "ledger.db"
            file = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            try:
                await asyncio.to_thread(file.execute, "BEGIN EXCLUSIVE")
                yield
            finally:
                file.close()

    async def _kill_in_honest_window(self, fault: Fault) -> bool:
        """Kill a worker after the end of its handler and before the record of it, which the locked ledger holds up."""
        run, task = self._run, make_task(self._rng, nap(1.0))
        run.more.append(task)

        def noted(word: str) -> Note | None:
            return next((note for note in run.site.record() if (note.word, note.id) == (word, task.id)), None)

        await until(lambda: noted("start"), "the task has begun")
        async with self._held_ledger():
            end = await until(lambda: noted("end"), "its handler has ended")
            life, worker = next(running for running in run.running.values() if running[0].pid == end.pid)
            worker.process.kill()
            life.killed = time.time()
            await until(lambda: life.ended, "it is dead")
        return True

    # --- senders, handlers, operators --------------------------------------------------------------------------------

    async def _poison(self, fault: Fault) -> bool:
        run = self._run
        async with self._broker_lock:
            for body, headers in poison(self._rng, run.tasks[0], run.site.receive):
                id = f"poison-{len(run.poisoned) + 1}"
                run.poisoned[id] = f"{body[:100]!r} headers {headers}"
                if headers:
                    run.curable[id] = json.loads(body)["id"]
                await run.direct.publish(body, message_id=id, headers=headers, delivery_mode=2)
        return True

    async def _send_odd(self, fault: Fault) -> bool:
        """A task for each way in which a handler should not end, in an order of its own."""
        for way in self._rng.sample(self._run.odd_ways, len(self._run.odd_ways)):
            task = make_task(self._rng, {"kind": "odd", "way": way})
            self._run.odd.add(task.id)
            self._run.more.append(task)
        return True

    async def _send_deadly(self, fault: Fault) -> bool:
        task = make_task(self._rng, {"kind": "deadly", "after_s": 0.1})
        self._run.deadly.add(task.id)
        self._run.more.append(task)
        return True

    async def _flood(self, fault: Fault) -> bool:
        task = make_task(self._rng, nap(failures=ALWAYS))
        self._run.flooded.add(task.id)
        self._run.more.extend([task] * COPIES)
        return True

    async def _send_large_headers(self, fault: Fault) -> bool:
        """Good tasks, which fail once and so are copied, with a header of somebody's that leaves no room for more."""
        async with self._broker_lock:
            for _ in range(3):
                task = make_task(self._rng, nap(failures=1))
                self._run.note_given(task)
                headers: dict[str, Any] = {"trace": "x" * LARGE_HEADER_BYTES}
                await self._run.direct.publish(task.line.strip(), headers=headers, delivery_mode=2)
        return True

    async def _have_letters(self, fault: Fault) -> None:
        """See to it that there are dead letters: tasks that fail, where there can be such, else poison."""
        run = self._run
        if run.own:
            run.more.extend(make_task(self._rng, nap(failures=ALWAYS, kind=run.kind)) for _ in range(2))
        else:
            await self._poison(fault)

        async def some() -> bool:
            with suppress(ChannelNotFoundEntity, ConnectionError):  # while the broker is away there are none
                async with run.direct.amqp() as channel:
                    queue = await channel.declare_queue(run.site.dead_queue, passive=True)
                    return bool(queue.declaration_result.message_count)
            return False

        with suppress(AssertionError):
            await until(some, "there are dead letters", LETTERS_WITHIN_S)

    async def _look(self, fault: Fault) -> bool:
        """As the management page does: get some, and close without an ack."""
        seen = 0
        await self._have_letters(fault)
        async with self._broker_lock:
            for _ in range(LOOKS):
                async with self._run.direct.amqp() as channel:
                    with suppress(ChannelNotFoundEntity):  # it was deleted just now
                        queue = await channel.declare_queue(self._run.site.dead_queue, passive=True)
                        for _ in range(LOOKED_AT):
                            seen += await queue.get(fail=False, no_ack=False) is not None
        return seen > 0

    async def _send_back(self, fault: Fault) -> bool:
        """As a shovel does: publish to the queue of tasks with everything it has, and ack when that is confirmed."""
        run, moved = self._run, 0
        await self._have_letters(fault)
        async with self._broker_lock, run.direct.amqp() as channel:
            with suppress(ChannelNotFoundEntity):
                queue = await channel.declare_queue(run.site.dead_queue, passive=True)
                while moved < SENT_BACK and (message := await queue.get(fail=False)) is not None:
                    await channel.default_exchange.publish(_same(message), routing_key=run.site.queue)
                    await message.ack()
                    run.moved.append(Letter(run.id_of(message), message.headers))
                    moved += 1
        return moved > 0

    async def _delete_queue(self, fault: Fault) -> bool:
        """The dead-letter queue or the longest delay, if nothing is in it. What comes in at that very moment is lost
        by the operator's own act: it is counted."""
        run = self._run
        queues = [run.site.receive.dead, run.site.receive.rungs[-1].queue]
        async with self._broker_lock:
            # In its first moments RabbitMQ 3.10 has no way to delete a queue with a dead-letter target and
            # x-dead-letter-strategy: at-least-once, without ending all others that have these.
            await asyncio.sleep(self._broker_began + SETTLE_S - time.monotonic())
            for queue in self._rng.sample(queues, len(queues)):
                async with run.direct.amqp() as channel:
                    with suppress(ChannelNotFoundEntity):  # it is gone already
                        there = await channel.declare_queue(queue.name, passive=True)
                        if there.declaration_result.message_count == 0:
                            deleted = await channel.queue_delete(queue.name)
                            run.deleted += deleted.message_count or 0
                            self._deleted.append(queue)
                            return True
        return False


def _same(message: aio_pika.abc.AbstractIncomingMessage) -> aio_pika.Message:
    """A message with the body and all properties of this one."""
    return aio_pika.Message(
        message.body,
        headers=message.headers,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=message.delivery_mode,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
    )
