"""Three private RabbitMQ nodes on loopback that are one cluster: its quorum queues have three replicas.

    workqueue cluster start|stop [--folder .cluster]

`start` prints on stdout the value for AMQP_URI: the three, to be tried in turn. Exit codes: 0 done, 2 wrong usage, 3 no
cluster, 130 interrupted.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from workqueue.dev.broker import ensure_installed, told_to_end
from workqueue.dev.node import Node, uninterrupted
from workqueue.dev.programs import BrokerError

SIZE = 3  # the smallest of which one may be lost: a quorum queue goes on while more than half of its replicas do


class Cluster:
    """The nodes below `folder`, as they were left or new."""

    def __init__(self, folder: Path) -> None:
        first = Node(folder / "1")
        shared = (first.record.cookie, first.record.epmd_port)
        self.nodes = [first, *(Node(folder / str(number), *shared) for number in range(2, SIZE + 1))]

    @property
    def uri(self) -> str:
        """All nodes, comma-separated."""
        return ",".join(node.uri for node in self.nodes)

    def start(self) -> None:
        """Start all nodes and join those that are new; none of them, if that fails. Raises BrokerError."""
        try:
            self._start()
        except BaseException:
            with uninterrupted():
                self.stop()
            raise

    def _start(self) -> None:
        with ThreadPoolExecutor(SIZE) as pool:  # together: after a stop of all, a node waits for the others
            list(pool.map(Node.start, self.nodes))
        first, *others = self.nodes
        for node in others:
            if node.record.name not in self.members():
                node.ctl("stop_app")
                node.ctl("join_cluster", first.record.name)
                node.ctl("start_app")

    def members(self) -> set[str]:
        """The names of the nodes that the first one knows as its cluster."""
        status = json.loads(self.nodes[0].ctl("cluster_status", "--formatter", "json"))
        return set(status["disk_nodes"])

    def leader(self, queue: str, vhost: str = "/") -> Node:
        """The node with the leader of a quorum queue, as any node that runs says."""
        running = next(node for node in self.nodes if node.running())
        rows = json.loads(running.ctl("list_queues", "-p", vhost, "name", "leader", "--formatter", "json"))
        (name,) = (row["leader"] for row in rows if row["name"] == queue)
        return next(node for node in self.nodes if node.record.name == name)

    def stop(self) -> None:
        """Stop all nodes; the data stay."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(Node.stop, self.nodes))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("workqueue cluster", description="Three private nodes as one cluster.")
    parser.add_argument("command", choices=["start", "stop"])
    parser.add_argument("--folder", type=Path, default=Path(".cluster"), help="where they live (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        with told_to_end():
            return command(given.command, given.folder)
    except BrokerError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        said = "interrupted" + "; what it was starting is stopped again" * (given.command == "start")
        print(f"cluster: {said}", file=sys.stderr)
        return 130


def command(verb: str, folder: Path) -> int:
    """Raises BrokerError."""
    if verb == "stop":
        Cluster(folder).stop()
        return 0
    ensure_installed()
    cluster = Cluster(folder)
    print("cluster: starting three private nodes ... (about 20 s the first time)", file=sys.stderr, flush=True)
    cluster.start()
    print(cluster.uri)
    return 0
