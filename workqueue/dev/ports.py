"""Ports of this machine: which are free, and who answers on one."""

import secrets
import socket
from contextlib import suppress

# Below the ephemeral ports (from 32768 on Linux, 49152 on macOS): among those, a client that keeps reconnecting to a
# node that is down can be given the node's port for its own end, and the node cannot come back.
POSTGRES_PORTS, AMQP_PORTS = range(16_000, 20_000), range(20_000, 24_000)
EPMD_PORTS, DIST_PORTS = range(24_000, 28_000), range(28_000, 32_000)


def speaks_amqp(host: str, port: int) -> bool:
    """True if what listens there opens the handshake of AMQP."""
    start = ask(host, port, b"AMQP\x00\x00\x09\x01", 11)
    return start[:1] == b"\x01" and start[7:] == b"\x00\x0a\x00\x0a"  # a method frame: connection.start


def epmd(port: int, request: bytes) -> bytes:
    """What the epmd at that port answers to `n`, its names, or `k`, end yourself; empty if there is none."""
    return ask("127.0.0.1", port, len(request).to_bytes(2, "big") + request)


def ask(host: str, port: int, request: bytes, size: int = -1) -> bytes:
    """The first `size` bytes of the answer, or all until the other end closes; empty if nobody answers."""
    with suppress(OSError), socket.create_connection((host, port), 1) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read(size)
    return b""


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def free_port(band: range) -> int:
    while not is_free(port := secrets.choice(band)):
        pass
    return port
