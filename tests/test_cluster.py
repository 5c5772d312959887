"""The same code on three nodes: the loss of any one of them loses nothing, and work goes on."""

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import QUEUE, Site, simulate
from workqueue.dev.broker import ensure_installed
from workqueue.dev.cluster import SIZE, Cluster
from workqueue.dev.node import Node
from workqueue.testing import until

ON_AGAIN_S = 15.0
BACK_S = 40.0  # 20 s, and the start of a worker on a busy machine


pytestmark = [pytest.mark.broker, pytest.mark.soak]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ensure_installed()
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextmanager
def site_of_its_own(cluster: Cluster, folder: Path) -> Iterator[Site]:
    """In a vhost of its own: its queues are worked on with another ledger than those of the test before."""
    name = secrets.token_hex(4)
    cluster.nodes[0].add_vhost(name)
    site = Site(folder, ",".join(node.uri + name for node in cluster.nodes))
    try:
        yield site
    finally:
        site.stop()


def leader_of(cluster: Cluster, site: Site) -> Node:
    return cluster.leader(QUEUE, site.uri.rpartition("/")[2])


@contextmanager
def frozen(node: Node) -> Iterator[float]:
    """Its host stops: the connections stay, and nobody answers on them. Since when. Short of net_ticktime, after which
    nodes that ignore partitions stay apart."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield time.time()
    finally:
        os.kill(node.pid, signal.SIGCONT)


@pytest.mark.timeout(240)
async def test_the_loss_of_any_node_the_leader_included_loses_nothing_and_work_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    with site_of_its_own(cluster, tmp_path) as site:
        for _ in range(3):
            await site.worker()
        vhost = site.uri.rpartition("/")[2]
        listed = cluster.nodes[0].ctl("list_queues", "-p", vhost, "name", "members", "--formatter", "json")
        members = json.loads(listed)
        assert {len(row["members"]) for row in members} == {SIZE}
        tasks = simulate(6000, seconds=0.01)
        sending = asyncio.ensure_future(site.send(tasks))
        await until(lambda: len(site.ended()) > 300, "work goes on")
        leader = await asyncio.to_thread(leader_of, cluster, site)
        for lost in (leader, next(node for node in cluster.nodes if node is not leader)):
            await asyncio.to_thread(lost.kill)
            done = len(site.ended())
            await until(lambda: len(site.ended()) > done + 100, "work goes on without it", ON_AGAIN_S)  # noqa: B023
            await asyncio.to_thread(lost.start)
            await asyncio.sleep(2)  # for the replicas of the node that is back to catch up: one may be away, not two
        await sending
        await site.all_end(tasks, within_s=100)


@pytest.mark.timeout(400)
async def test_a_frozen_leader_stops_nobody_who_is_connected_to_another_node(cluster: Cluster, tmp_path: Path) -> None:
    with site_of_its_own(cluster, tmp_path) as site:
        for _ in range(SIZE):
            await site.worker()
        tasks = simulate(1200, seconds=0.1)
        await site.send(tasks)
        await until(lambda: len(site.ended()) > 100, "work goes on")
        with frozen(await asyncio.to_thread(leader_of, cluster, site)):
            done = len(site.ended())
            await until(lambda: len(site.ended()) > done + 50, "work goes on without it", ON_AGAIN_S)
        await site.all_end(tasks, within_s=100)


@pytest.mark.timeout(400)
async def test_a_frozen_node_that_is_no_leader_costs_seconds_at_a_start_and_in_between(
    cluster: Cluster, tmp_path: Path
) -> None:
    with site_of_its_own(cluster, tmp_path) as site:
        for _ in range(SIZE):  # one at each node
            await site.worker()
        tasks = simulate(1500, seconds=0.1)
        await site.send(tasks)
        await until(lambda: len({note.worker for note in site.record()}) == SIZE, "all work")
        leader = await asyncio.to_thread(leader_of, cluster, site)
        away = next(node for node in cluster.nodes if node is not leader)
        vhost = site.uri.rpartition("/")[2]
        two = f"{away.uri}{vhost},{leader.uri}{vhost}"
        with frozen(away) as since:
            for number in (1, 2):  # one of these begins at the frozen one
                await site.worker(f"late{number}", ready=False, AMQP_URI=two)

            def working() -> set[str]:
                return {note.worker for note in site.record() if note.at > since + 1}

            await until(lambda: len(working()) == SIZE + 2, "all work, those that were there again", BACK_S)
        await site.all_end(tasks, within_s=100)


def test_a_cluster_that_was_stopped_comes_back_whole(cluster: Cluster) -> None:
    cluster.stop()
    cluster.start()
    assert cluster.members() == {node.record.name for node in cluster.nodes}


def test_an_interrupted_start_leaves_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Cluster) -> set[str]:
        assert all(node.running() for node in self.nodes)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "members", interrupt)
    ensure_installed()
    with pytest.raises(KeyboardInterrupt):
        (made := Cluster(tmp_path)).start()
    assert not any(node.running() for node in made.nodes)
