"""Notices a broker that has fallen silent."""

import asyncio
import logging

from workqueue.amqp.direct import DirectLane
from workqueue.patience import Patience

log = logging.getLogger(__name__)

TICK_S = 1.0
HEARTBEATS = 1.5  # the broker sends one every half interval: three in a row were missed
SHORTEST_S = 3.0  # for heartbeats of a second or two: a busy machine may be late by as much
CONFIRM_S = 12.0  # a quorum queue that elects a leader confirms within 10; who leaves it too soon may wait for a minute


class Watch:
    """Aborts a connection on which nothing is heard, or nothing confirmed, for too long.

    Not while the broker says that it blocks publishers, or takes bytes, or refuses: it is there then. Time is counted
    in ticks, not on the clock: a process that was stopped, or whose loop was blocked, has not listened.
    """

    def __init__(self, lane: DirectLane, name: str, place: str, heartbeat_s: float) -> None:
        self._lane, self._name, self._place = lane, name, place
        self._silent_s = self._unconfirmed_s = 0.0
        self._most_silent_s = max(HEARTBEATS * heartbeat_s, SHORTEST_S)
        self._buffered_bytes = 0
        self._blocked: Patience | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        if self._lane.socket.is_closing:
            return
        self._loop.call_later(TICK_S, self._tick)
        lane, tap = self._lane, self._lane.socket.tap
        self._silent_s = 0.0 if tap.heard else self._silent_s + TICK_S
        before, self._buffered_bytes = self._buffered_bytes, lane.buffered_bytes
        waits = lane.in_flight and not lane.answered and tap.blocked is None and self._buffered_bytes == before
        self._unconfirmed_s = self._unconfirmed_s + TICK_S if waits else 0.0
        tap.heard = lane.answered = False
        self._say_blocked(tap.blocked)
        if self._silent_s >= self._most_silent_s:
            self._give_up(f"{self._place} is silent for {self._silent_s:g} s")
        elif self._unconfirmed_s >= CONFIRM_S:
            self._give_up(f"{self._place} confirms nothing for {self._unconfirmed_s:g} s")

    def _say_blocked(self, reason: str | None) -> None:
        if reason is None or not self._lane.in_flight:
            if self._blocked is not None:
                log.warning("%s  %s takes messages again", self._name, self._place)
            self._blocked = None
            return
        self._blocked = self._blocked or Patience()
        if self._blocked.due():
            log.warning("%s  waits: %s takes no messages now: %s", self._name, self._place, reason)

    def _give_up(self, why: str) -> None:
        log.warning("%s  gives up its connection: %s", self._name, why)
        self._lane.abort(why)
