"""The network between hosts that are namespaces of one machine: a process that carries each packet, or drops it.

    python -m tests.network FD=ADDRESS...     each an open TUN device and the address of the host that it belongs to

It reads one JSON line for each change from standard input, `{"cut": [[SENDER, RECEIVER], ...], "delay_s": [[SENDER,
RECEIVER, S], ...]}`, all that holds from then on, and answers with a line once it does. What is cut off vanishes: no
reset, no "unreachable", which is what a dead host, a firewall and a pulled cable look like. It ends with its input.

Bridges, packet filters and tc would do the same, where the kernel has them; this needs /dev/net/tun alone.
"""

import contextlib
import heapq
import json
import os
import select
import socket
import sys
import time
from itertools import count

MTU = 1500
AT_ONCE = 64  # packets of one host before the others' turn

Way = tuple[bytes, bytes]  # sender, receiver


class Wires:
    def __init__(self, devices: dict[bytes, int]) -> None:
        self._devices = devices
        self._cut: frozenset[Way] = frozenset()
        self._delay_s: dict[Way, float] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._order = count()

    def change(self, text: str) -> None:
        """Take on what a line of the input says."""
        said = json.loads(text)
        self._cut = frozenset((packed(sender), packed(receiver)) for sender, receiver in said["cut"])
        self._delay_s = {(packed(sender), packed(receiver)): s for sender, receiver, s in said["delay_s"]}

    def carry(self, sender: bytes, device: int) -> None:
        """Carry what this host has sent."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                packet = os.read(device, MTU)
                way = sender, packet[16:20]
                if packet[0] >> 4 != 4 or way in self._cut or way[1] not in self._devices:
                    continue
                if delay_s := self._delay_s.get(way):
                    due = time.monotonic() + delay_s
                    heapq.heappush(self._late, (due, next(self._order), self._devices[way[1]], packet))
                else:
                    _write(self._devices[way[1]], packet)

    def carry_late(self) -> float:
        """Carry the delayed packets that are due; in how many seconds the next one is, -1 if there is none."""
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(self._late)
            _write(device, packet)
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else -1


def packed(address: str) -> bytes:
    return socket.inet_aton(address)


def _write(device: int, packet: bytes) -> None:
    with contextlib.suppress(OSError):  # the host is gone, or its queue is full: packets get lost
        os.write(device, packet)


def main() -> None:
    devices = {packed(address): int(fd) for fd, address in (one.split("=") for one in sys.argv[1:])}
    wires, hosts = Wires(devices), {fd: address for address, fd in devices.items()}
    poll = select.epoll()
    for fd in (0, *hosts):
        os.set_blocking(fd, fd == 0)
        poll.register(fd, select.EPOLLIN)
    wait_s = -1.0
    while True:
        for fd, _ in poll.poll(wait_s):
            if fd:
                wires.carry(hosts[fd], fd)
            elif line := sys.stdin.readline():
                wires.change(line)
                print("done", flush=True)
            else:
                return
        wait_s = wires.carry_late()


if __name__ == "__main__":
    main()
