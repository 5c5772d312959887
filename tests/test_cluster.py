"""The same code on three nodes: the loss of any one of them loses nothing, and work goes on."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import QUEUE, Site, simulate, until
from tools.broker import ensure_installed
from tools.cluster import SIZE, Cluster

ON_AGAIN_S = 15.0


pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ensure_installed()
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.mark.timeout(240)
async def test_the_loss_of_any_node_the_leader_included_loses_nothing_and_work_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    site = Site(tmp_path, cluster.uri)
    try:
        for _ in range(3):
            await site.worker()
        members = json.loads(cluster.nodes[0].ctl("list_queues", "name", "members", "--formatter", "json"))
        assert {len(row["members"]) for row in members} == {SIZE}
        tasks = simulate(6000, seconds=0.01)
        sending = asyncio.ensure_future(site.send(tasks))
        await until(lambda: len(site.ended()) > 300, "work goes on")
        leader = await asyncio.to_thread(cluster.leader, QUEUE)
        for lost in (leader, next(node for node in cluster.nodes if node is not leader)):
            await asyncio.to_thread(lost.kill)
            done = len(site.ended())
            await until(lambda: len(site.ended()) > done + 100, "work goes on without it", ON_AGAIN_S)  # noqa: B023
            await asyncio.to_thread(lost.start)
            await asyncio.sleep(2)  # for the replicas of the node that is back to catch up: one may be away, not two
        await sending
        await site.all_end(tasks, within_s=100)
    finally:
        site.stop()


def test_a_cluster_that_was_stopped_comes_back_whole(cluster: Cluster) -> None:
    cluster.stop()
    cluster.start()
    assert cluster.members() == {node.record.name for node in cluster.nodes}
