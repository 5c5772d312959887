"""The contract against the live broker: what is as it should be, what is missing, and what it takes to change the rest.

It takes no step itself. A worker that starts declares what is missing, and refuses what differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from workqueue.amqp.compare import Compared, Difference, compare
from workqueue.amqp.topology import LIMIT, is_low, limit_policy
from workqueue.contract import Queue
from workqueue.ops.project import Project

UNSEEN = "policies, unacked messages, replicas and the consumer timeout can't be seen over AMQP"

State = Literal["same", "missing", "policy", "low limit", "new queue", "unseen"]


@dataclass(frozen=True)
class QueuePlan:
    """A queue of the contract.

    | state     | means                                                                                          |
    |-----------|------------------------------------------------------------------------------------------------|
    | same      | it is as the contract has it                                                                   |
    | missing   | a worker, or a producer, declares it when it starts                                            |
    | policy    | workers take it as it is, and a policy gives it what it lacks: `steps` has the command         |
    | low limit | workers take it as it is; no policy raises its delivery limit, but a new queue: `steps`        |
    | new queue | workers refuse it; RabbitMQ changes no queue, so a new one must take its place: `steps`        |
    | unseen    | the user may not compare it, or the broker does not say all: `why`                             |
    """

    queue: str
    state: State
    differences: tuple[Difference, ...]
    steps: tuple[str, ...]
    why: str | None = None


@dataclass(frozen=True)
class Plan:
    """Of all queues of a project. `unseen` is what such a comparison can't tell."""

    broker: str
    version: str
    queues: tuple[QueuePlan, ...]
    unseen: str = UNSEEN

    @property
    def is_same(self) -> bool:
        return all(queue.state == "same" for queue in self.queues)


async def plan(project: Project, name: str) -> Plan:
    """Compare them all. Raises BrokerUnreachable."""
    queues = queues_of(project)
    server, found = await compare(project.settings, queues.values(), name)
    vhost = _vhost(project)
    ends = {receive.dead.name for receive in project.receives.values()}
    made = tuple(_queue(each, each.queue.name in ends, vhost) for each in found)
    return Plan(server.place, f"{server.product} {server.version}", made)


def queues_of(project: Project) -> Mapping[str, Queue]:
    """Those that workers and producers declare, by name."""
    return {queue.name: queue for each in project.contracts.values() for queue in each.queues}


def definitions(project: Project) -> dict[str, Any]:
    """The queues as RabbitMQ's definitions have them, for `rabbitmqctl import_definitions FILE`, into the virtual host
    of AMQP_URI (https://www.rabbitmq.com/docs/definitions)."""
    vhost = _vhost(project)
    return {
        "vhosts": [{"name": vhost}],
        "queues": [
            {
                "name": queue.name, "vhost": vhost, "durable": queue.durable, "auto_delete": queue.auto_delete,
                "arguments": dict(queue.arguments),
            }
            for queue in queues_of(project).values()
        ],
    }  # fmt: skip


def _queue(found: Compared, is_end: bool, vhost: str) -> QueuePlan:
    name, differences = found.queue.name, found.differences
    if found.exists is False:
        return QueuePlan(name, "missing", (), ("start a worker: it declares the queue",))
    if found.exists is None or (found.unseen is not None and not differences):
        return QueuePlan(name, "unseen", differences, (), found.unseen)
    if not differences:
        return QueuePlan(name, "same", (), ())
    if [one.name for one in differences] == [LIMIT] and found.unseen is None and differences[0].broker != -1:
        if is_low(differences[0].broker, found.queue):
            return QueuePlan(name, "low limit", differences, _steps(name, is_end, vhost))
        return QueuePlan(name, "policy", differences, (limit_policy(found.queue, vhost),))
    return QueuePlan(name, "new queue", differences, _steps(name, is_end, vhost), found.unseen)


def _steps(name: str, is_end: bool, vhost: str) -> tuple[str, ...]:
    empty = (
        f"empty it: workqueue dead list --queue, redrive or drop; {name} must be empty"
        if is_end
        else f"let the workers empty it: workqueue status -o json, until {name} and what is in hand are 0"
    )
    return (
        "stop whatever sends",
        empty,
        "stop the workers",
        f"rabbitmqctl list_queues -p {vhost} name messages, on the broker's machine: {name} must have 0",
        f"rabbitmqctl delete_queue -p {vhost} {name} (it takes all that is in it along)",
        "start the workers: they declare it anew; then what sends",
    )


def _vhost(project: Project) -> str:
    path = urlsplit(project.settings.amqp_uri[0]).path
    return unquote(path.removeprefix("/")) or "/"
