"""Vhosts: each test has one of its own, and so queues of its own, on a node that many share."""

import secrets
from pathlib import Path

from workqueue.dev.node import Node
from workqueue.testing.given import Broker

VHOSTS_AT_ONCE = 16
OWN_VHOSTS = 2  # the most that one test uses

_vhosts: dict[Path, list[str]] = {}  # made and not used yet, by their node's folder
_used: dict[Path, list[str]] = {}


def vhost(node: Broker) -> str:
    """A vhost of its own, and so queues of its own, on this node; its URI."""
    if not isinstance(node, Node):  # one that was given, and is controlled by somebody else's command
        return node.add_vhost(secrets.token_hex(4))
    used = _used.setdefault(node.folder, [])
    if not (stock := _vhosts.setdefault(node.folder, [])):
        over = used[:-OWN_VHOSTS]
        stock += new_vhosts(node, VHOSTS_AT_ONCE, over)
        del used[: len(over)]
    used.append(stock.pop())
    return node.uri + used[-1]


def new_vhosts(node: Node, count: int, over: list[str]) -> list[str]:
    """Make so many vhosts that the node's user may use, and delete those that are `over`: a thousand quorum queues
    that nobody uses take a fifth of a processor. A rabbitmqctl takes most of a second, so it is one for all."""
    user, names = node.record.user, [secrets.token_hex(4) for _ in range(count)]
    made = [
        f'rabbit_vhost:add(<<"{name}">>, <<"{user}">>), rabbit_auth_backend_internal:set_permissions('
        f'<<"{user}">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"{user}">>)'
        for name in names
    ]
    gone = [f'rabbit_vhost:delete(<<"{name}">>, <<"{user}">>)' for name in over]
    node.ctl("eval", ", ".join(made + gone) + ".")
    return names
