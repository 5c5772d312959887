"""What would fail later, or loop, or lose a message, said of the resolved document: one line each, all of them.

Three kinds of check. `spec/workqueue.schema.json` says what each AsyncAPI object must hold; `lint_queues` what the
queues of an operation must be to one another; `lint_schemas` and `lint_tasks` what its schemas must be. This module
applies the first, and finds `x-` keys that would be passed over in silence.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from workqueue.compiler import endpoints, example, lint_queues, lint_schemas, lint_tasks
from workqueue.compiler.documents import mapping
from workqueue.compiler.findings import RENAMED, Findings, channel_of, nearest, shown
from workqueue.compiler.resolve import Resolved

SCHEMA = "spec/workqueue.schema.json"


def problems(resolved: Resolved) -> list[str]:
    """Why the document can't be run: lines of place, value and way out. Empty if it can."""
    rules = json.loads((example.FOLDER / SCHEMA).read_text(encoding="utf-8"))
    found = Findings(resolved, rules)
    _document(found)
    for key, channel in mapping(found.document.get("channels")).items():
        found.rule("channel", channel, ("channels", key))
    for name, operation in mapping(found.document.get("operations")).items():
        _operation(found, str(name), operation)
    endpoints.check(found)
    sound = lint_schemas.check(found)
    if found.shaped:
        lint_queues.check(found)
    if found.shaped and sound:
        lint_tasks.check(found)
    _extensions(found)
    return found.lines


def _document(found: Findings) -> None:
    version = found.document.get("asyncapi")
    if not isinstance(version, str) or not version.startswith("3."):
        found.say(("asyncapi",), f"{shown(version)} can't be compiled; say asyncapi: 3.1.0")
    info = mapping(found.document.get("info"))
    for key in ("title", "version"):
        if not isinstance(info.get(key), str):
            found.say(("info", key), f"{shown(info.get(key))} is no text; put it in quotes")
    if not mapping(found.document.get("operations")):
        found.say(("operations",), "there is none; say what this application sends or receives")
    if not isinstance(found.document.get("channels"), dict):
        found.say(("channels",), "is no map of channels")


def _operation(found: Findings, name: str, operation: Any) -> None:
    at = ("operations", name)
    action = mapping(operation).get("action")
    if action not in ("send", "receive"):
        found.say((*at, "action"), f"{shown(action)} can't be used; it is send or receive")
        return
    found.rule(f"{action}Operation", operation, at)
    if "reply" in operation:
        found.say(
            (*at, "reply"),
            "is not supported: a task's result is kept in the ledger; state it as x-result of the message",
        )
    key, channel = channel_of(found, operation)
    for message in mapping(channel.get("messages")):
        here = ("channels", key, "messages", message)
        found.rule("message", channel["messages"][message], here)
        if action == "receive" and "x-result" not in mapping(channel["messages"][message]):
            found.say(here, f"lacks x-result: {found.meaning('message', ('x-result',))}")


# --- keys that nobody would read --------------------------------------------------------------------------------------


def _homes(found: Findings) -> Mapping[str, frozenset[str]]:
    """Each of our keys, and the objects that it belongs to."""
    rules = found.rules["definitions"]
    receive = rules["receiveOperation"]["properties"]
    given = {
        "operation": receive,
        "operation's amqp binding": receive["bindings"]["properties"]["amqp"]["properties"],
        "message": rules["message"]["properties"],
        "schema": {**rules["kind"]["properties"], **rules["result"]["properties"]},
    }
    keys = {key for fields in given.values() for key in fields if key.startswith("x-")}
    return {key: frozenset(home for home, fields in given.items() if key in fields) for key in keys}


def _extensions(found: Findings) -> None:
    """An `x-` key of ours in a place where it has no effect, or one that is nearly one of ours. Others are theirs."""
    homes = _homes(found)
    arguments = found.rules["definitions"]["channel"]["properties"]["bindings"]["properties"]["amqp"]["properties"][
        "queue"
    ]["properties"]["arguments"]["properties"]
    for kind, at, node in _objects(found):
        known = arguments if kind == "queue's arguments" else homes
        for key in (key for key in node if isinstance(key, str) and key.startswith("x-")):
            here = (*at, key)
            action = node.get("action") if kind == "operation" else None
            if told := RENAMED.get((kind, key)):
                found.say(here, told)
            elif kind == "queue's arguments":
                if key not in known and (near := nearest(key, known)):
                    found.say(here, f"RabbitMQ knows no such argument, and would pass over it; is it {near}?")
            elif key in homes and (kind not in homes[key] or action == "send"):
                home = " or ".join(sorted(homes[key])).replace("operation", "receive operation", 1)
                found.say(here, f"has no effect here; it belongs to a {home}")
            elif key not in homes and (near := nearest(key, homes)):
                found.say(here, f"would have no effect; is it {near}?")


def _objects(found: Findings) -> Iterator[tuple[str, tuple[str | int, ...], Mapping[str, Any]]]:
    """Every object of the document in which a key of ours may be written."""
    for name, operation in mapping(found.document.get("operations")).items():
        at: tuple[str | int, ...] = ("operations", name)
        yield "operation", at, mapping(operation)
        bindings = mapping(mapping(operation).get("bindings"))
        yield "operation's bindings", (*at, "bindings"), bindings
        yield "operation's amqp binding", (*at, "bindings", "amqp"), mapping(bindings.get("amqp"))
    for key, channel in mapping(found.document.get("channels")).items():
        at = ("channels", key)
        yield "channel", at, mapping(channel)
        queue = lint_queues.binding(channel)
        yield "queue", (*at, "bindings", "amqp", "queue"), queue
        yield "queue's arguments", (*at, "bindings", "amqp", "queue", "arguments"), mapping(queue.get("arguments"))
        for name, message in mapping(mapping(channel).get("messages")).items():
            yield "message", (*at, "messages", name), mapping(message)
    for at, schema in lint_schemas.every(found):
        yield "schema", at, schema
