"""What a worker does between its flags and its exit code: connect, take tasks until told to end, drain, report."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from workqueue import codec
from workqueue.amqp.shared import shared_ledger
from workqueue.amqp.wire import Wire
from workqueue.contract import Contract
from workqueue.errors import WorkerFault
from workqueue.extras import needed
from workqueue.ledger import Ledger, LedgerBusy, open_ledger
from workqueue.ledger.whole import exists
from workqueue.lifecycle import on_signals
from workqueue.observe.counting import Counting
from workqueue.observe.health import Health
from workqueue.process import children
from workqueue.process.contexts import Within
from workqueue.process.forking import LoopHere
from workqueue.process.signals import INTERRUPTED, signals
from workqueue.settings import Settings
from workqueue.tasks.ends import UNRECORDED
from workqueue.tasks.events import Listener, Ready, Stopping
from workqueue.tasks.received import Runtime
from workqueue.tasks.scope import HeldClaim
from workqueue.tasks.stack import describe
from workqueue.tasks.watchdog import Watchdog
from workqueue.worker.beside import Work, again, begin
from workqueue.worker.breaker import Breaker
from workqueue.worker.crew import Crew, Job, start, stop
from workqueue.worker.ending import Ending
from workqueue.worker.heartbeat import BEAT_S, Heartbeat, installed
from workqueue.worker.lifespan import Lifespan
from workqueue.worker.orders import LOOK_S, Orders

log = logging.getLogger(__name__)

PRUNE_EVERY_S = 1800.0
TURN_S = 1.0
CUT_OFF_S = 3.0  # for handing back what was cut off at the end of a drain; what takes longer is left to the broker
CLOSE_S = 4.0  # for closing connections
FINISH_S = 1.0  # that a worker which can't go on leaves to what is in hand: what is at its end is so recorded as done
RELEASE_S = 2.0  # for giving back the claims of handlers that do not end


class Serving:
    """One worker, from its ledger to its last message. `run` once."""

    def __init__(
        self, name: str, application: type[Any], loaded: Contract, settings: Settings, tell: Listener, ending: Ending
    ) -> None:
        self._name, self._application, self._loaded = name, application, loaded
        self._settings, self._ending = settings, ending
        self._tell, self._crew, self._health = Counting(tell), Crew(), Health()
        self._watchdog = Watchdog(name, self._crew.running, self._crew.claims_unrecorded, self._release_from_thread)
        self._heartbeat: Heartbeat | None = None

    async def run(
        self, jobs: Collection[Job], lifespan: Callable[[Settings], AbstractAsyncContextManager[Any]] | None
    ) -> int:
        """Take tasks until the worker is told to end, and return the exit code; raises what ended it otherwise."""
        codec.install()
        on_signals(self._ending.set)
        self._rests = LoopHere(asyncio.get_running_loop())  # while a handler, in a thread of its own, forks
        async with AsyncExitStack() as closing:
            children.keep_from_loop(threading.get_ident())
            closing.callback(children.keep_from_loop, 0)
            self._serve_http(closing, jobs)
            resources = await self._open(closing, lifespan)
            if resources is None:
                return 0
            queues = [job.receive.queue.name for job in jobs]
            ledger = await self._ending.unless(shared_ledger(self._settings, queues, self._name))
            if ledger is None:
                return 0
            closing.push_async_callback(ledger.close)
            wire = Wire(self._settings, self._loaded, self._name, self._ending.set, ledger)
            closing.push_async_callback(wire.close)
            self._heartbeat = heartbeat = Heartbeat(
                self._name, self._loaded, jobs, self._crew, self._tell, ledger, self._health
            )
            closing.push_async_callback(heartbeat.end)
            runtime = Runtime(
                self._name, self._loaded, ledger, wire.publisher(), self._settings, self._tell, self._ending.set,
                resources.value, single=sum(job.concurrency for job in jobs) == 1,
            )  # fmt: skip
            crews = self._crew.consumers(self._application, jobs, runtime, wire)
            closing.push_async_callback(stop, crews)
            ready = Ready(self._name, {job.receive.queue.name: job.concurrency for job in jobs}, ledger.place)
            self._health.not_consumed = wire.not_consumed
            self._health.stuck, self._health.asked_s = self._crew.stuck, self._crew.asked_s
            orders = Orders(self._name, ready.queues, ledger, self._crew, wire, self._health, self._tell)
            breaker = Breaker(self._name, ready.queues, ledger, self._crew, wire, self._health)
            await orders.first()
            for work in self._beside(heartbeat, orders, breaker):
                begin(work, self._ending.set, closing)
            code, drained = await self._until_told(Within(resources.context, start(crews)), wire, ready)
            if not drained and not await self._crew.idle(CUT_OFF_S):
                in_hand = self._crew.in_hand
                await stop(crews, within_s=CLOSE_S / 4)
                await self._abandon(heartbeat, code, in_hand)
            self._watchdog.end_by(2 * CLOSE_S, code, "it has stopped")  # a lifespan may not end
        # A thread that a handler left behind holds the interpreter up.
        self._watchdog.end_by(CLOSE_S, code, "it has stopped")
        self._tell_account()
        return code

    def _beside(self, heartbeat: Heartbeat, orders: Orders, breaker: Breaker) -> tuple[Work, ...]:
        """What goes on beside the tasks. Each by itself: what waits for a row that is locked holds up no other."""
        keep_s = self._settings.keep_s
        return (
            heartbeat.beat,
            again(breaker.look, BEAT_S),
            again(partial(self._crew.save, heartbeat.ledger), BEAT_S),
            again(orders.look, LOOK_S),
            again(orders.wire.open_again, BEAT_S),
            again(partial(_prune, heartbeat.ledger, keep_s), min(keep_s, PRUNE_EVERY_S)),
            again(partial(_listen, self._name), TURN_S),
        )

    def _serve_http(self, closing: AsyncExitStack, jobs: Collection[Job]) -> None:
        """Raises SettingInvalid, ExtraMissing."""
        if not self._settings.http:
            return
        with needed("WORKQUEUE_HTTP"):
            from workqueue.observe.http import Http
            from workqueue.observe.metrics import Source, exposition
        source = Source(
            self._name, installed(), self._loaded.version, self._loaded.digest,
            {job.receive.operation: (job.receive.queue.name, job.concurrency) for job in jobs}, self._tell,
            self._health, self._crew.held_s,
        )  # fmt: skip
        http = Http(self._settings.http, self._health, exposition(source))
        closing.callback(http.close)
        log.info("%s  answers /metrics, /livez and /readyz at http://%s", self._name, http.address)
        begin(again(partial(_turn, self._health), TURN_S), self._ending.set, closing)

    async def _open(
        self, closing: AsyncExitStack, lifespan: Callable[[Settings], AbstractAsyncContextManager[Any]] | None
    ) -> Lifespan | None:
        """The resources, opened; None if the worker was told to end before they were."""
        self._watchdog.start()
        closing.callback(self._watchdog.rest)
        signals.end_by = self._watchdog.end_by  # which gives the claims back
        resources = Lifespan(None if lifespan is None else partial(lifespan, self._settings), self._ending.set)
        closing.push_async_callback(resources.close)
        if await self._ending.unless(resources.open()):
            return resources
        self._watchdog.end_by(2 * CLOSE_S, 0, "it was told to end")  # a lifespan may not let itself be cancelled
        return None

    async def _until_told(self, starting: Awaitable[bool], wire: Wire, ready: Ready) -> tuple[int, bool]:
        """Start, consume until the worker is told to end, then drain. The exit code, and whether nothing is in hand."""
        spare_s = self._settings.drain_s + CUT_OFF_S + CLOSE_S
        on_signals(self._ending.set, at_once=lambda: self._watchdog.end_by(spare_s, 0, "the drain is over"))
        try:
            if await self._ending.unless(starting):
                self._tell(ready)
                self._health.starting = False
            await self._ending.wait()
            self._health.stopping = True
            self._tell(Stopping(self._name, self._crew.in_hand))
            self._crew.drain()
            await wire.drain()
            return 0, await self._crew.idle(self._settings.drain_s)
        except asyncio.CancelledError as error:
            if signals.count < 2:  # a handler has cancelled all tasks of the loop, those of the worker's own too
                self._watchdog.end_by(CUT_OFF_S + CLOSE_S, WorkerFault.exit_code, "it was cancelled")
                raise WorkerFault("the worker was cancelled by a task of a handler's; restart it") from error
            return INTERRUPTED, False  # a second signal: the drain ends here
        except Exception as error:
            exit_code = getattr(error, "exit_code", WorkerFault.exit_code)
            self._watchdog.end_by(FINISH_S + CUT_OFF_S + CLOSE_S, exit_code, describe(error))
            self._crew.drain()
            await self._crew.idle(FINISH_S)
            raise
        finally:
            self._health.stopping = True
            self._ending.set()
            self._crew.drain()
            self._crew.end()

    def _tell_account(self, more: int = 0) -> None:
        """Say what could not be recorded, and what became of all; `more` are on their way back."""
        for claim in self._crew.claims_unrecorded():
            log.warning("%s  %s", self._name, UNRECORDED % claim.told)
        self._tell(self._crew.account(self._name, more))

    async def _abandon(self, heartbeat: Heartbeat, code: int, in_hand: int) -> NoReturn:
        """End the process around handlers that do not end, or wait for a broker. The broker notices, and delivers their
        messages again."""
        scopes = self._crew.running()
        for scope in scopes:
            log.warning("%s  ends while it runs  %s: %s", self._name, scope.told, scope.where())
        self._tell_account(in_hand)
        # From here on another worker may begin them.
        await _release(heartbeat.ledger, [scope.claim for scope in scopes])
        await heartbeat.end()
        logging.shutdown()  # what the handlers of the log hold
        os._exit(code)

    def _release_from_thread(self, claims: list[HeldClaim]) -> None:
        """The worker's own ledger belongs to its event loop."""

        async def release() -> None:
            async with asyncio.timeout(RELEASE_S):
                if not await exists(self._settings.ledger_url):  # it was lost, and the claims with it
                    return
                ledger = await open_ledger(self._settings)
            await _release(ledger, claims)
            if self._heartbeat is not None:
                await replace(self._heartbeat, ledger=ledger).end()

        if claims:
            asyncio.run(release())


async def _release(ledger: Ledger, claims: list[HeldClaim]) -> None:
    """All at once: a row that is locked, as by the completion of one of them, holds up no other."""
    with suppress(TimeoutError):
        async with asyncio.timeout(RELEASE_S):
            await asyncio.gather(*(_release_one(ledger, claim) for claim in claims))


async def _release_one(ledger: Ledger, claim: HeldClaim) -> None:
    with suppress(LedgerBusy):  # the lease ends by itself
        if (checkpoint := claim.progress.unsaved) is not None:
            await ledger.save(claim.task_id, claim.fence, checkpoint)
        await ledger.release(claim.task_id, claim.fence)


async def _listen(name: str) -> None:
    """Stay one that can be told to end, whatever a handler does with the process's signals."""
    for lost in signals.take_back():
        log.warning("%s  %s was taken by a handler, and ends this worker again", name, lost)


async def _turn(health: Health) -> None:
    """Show that the event loop turns: that it does is all there is to tell."""
    health.loop_s = time.monotonic()


async def _prune(ledger: Ledger, keep_s: float) -> None:
    """Have the ledger forget what is old. Every worker does: it costs little, and none is special."""
    with suppress(LedgerBusy):  # the next time will do
        await ledger.prune(keep_s)
        await ledger.board.forget(keep_s)
