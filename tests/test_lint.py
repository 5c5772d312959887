"""A contract that can't be run, or not be kept, is refused by the compiler: a line with the place, the value and the
way out for each problem. The contract here is nobody's example."""

# ruff: noqa: E501  # a table is read by its columns

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.harness import ROOT
from workqueue import contract
from workqueue.compiler import command, lint
from workqueue.compiler import generate as script
from workqueue.compiler.generator import CodeGenerator
from workqueue.compiler.resolve import resolve
from workqueue.tasks import story

# What the generator uses is deprecated here and there. Python says so by default in no program, but in every test.
Test = TypeVar("Test", bound=Callable[..., None])
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def compiles(test: Test) -> Test:
    """Marks a test that runs the generator."""
    pytest.mark.slow(QUIET(test))
    return test


Change = Callable[[Any], object]


def queue(name: str, message: str, **arguments: Any) -> dict[str, Any]:
    return {
        "address": name,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {
                    "name": name,
                    "durable": True,
                    "exclusive": False,
                    "autoDelete": False,
                    "arguments": {
                        "x-queue-type": "quorum",
                        **{key.replace("_", "-"): value for key, value in arguments.items()},
                    },
                },
            }
        },
    }


def moving(to: str) -> dict[str, Any]:
    return {
        "x_dead_letter_exchange": "",
        "x_dead_letter_routing_key": to,
        "x_dead_letter_strategy": "at-least-once",
        "x_overflow": "reject-publish",
    }


def kind(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["kind"],
        "properties": {"kind": {"type": "string", "const": name}, **properties},
    }


MOMENT = {"type": "string", "format": "date-time"}
HEADERS = {
    "type": "object",
    "properties": {"x-attempts": {"type": "array", "maxItems": 40, "items": {"type": "object"}}},
}
AMQP = {"amqp": {"messageType": "m"}}
BASE: dict[str, Any] = {
    "asyncapi": "3.0.0",
    "info": {"title": "Billing", "version": "2.1.0"},
    "defaultContentType": "application/json",
    "channels": {
        "invoices": queue("billing.invoices", "job", **moving("billing.lost"), x_delivery_limit=50),
        "lost": queue("billing.lost", "lost", x_delivery_limit=1_000_000_000),
        "soon": queue("billing.soon", "job", **moving("billing.invoices"), x_message_ttl=100),
        "later": queue("billing.later", "job", **moving("billing.invoices"), x_message_ttl=9000),
    },
    "operations": {
        "bill": {
            "action": "receive",
            "channel": {"$ref": "#/channels/invoices"},
            "bindings": {"amqp": {"ack": True, "x-prefetch": 1}},
            "x-retry": {"channels": [{"$ref": "#/channels/soon"}, {"$ref": "#/channels/later"}]},
            "x-deadLetter": {"channel": {"$ref": "#/channels/lost"}},
            "x-lease-s": 20,
            "x-crash-limit": 2,
        },
        "order": {
            "action": "send",
            "channel": {"$ref": "#/channels/invoices"},
            "bindings": {"amqp": {"deliveryMode": 2, "mandatory": True, "timestamp": False}},
        },
    },
    "components": {
        "messages": {
            "job": {
                "name": "job",
                "payload": {"$ref": "#/components/schemas/Job"},
                "headers": HEADERS,
                "bindings": AMQP,
                "x-max-bytes": 1000,
                "x-result": {"$ref": "#/components/schemas/Receipt"},
            },
            "lost": {"payload": {}, "headers": HEADERS, "bindings": AMQP},
        },
        "schemas": {
            "Job": {
                "type": "object",
                "required": ["id", "created_at", "payload"],
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "created_at": MOMENT,
                    "payload": {
                        "oneOf": [{"$ref": "#/components/schemas/Print"}, {"$ref": "#/components/schemas/Mail"}]
                    },
                },
            },
            "Print": {**kind("print", pages={"type": "integer"}), "x-time-limit-s": 5},
            "Mail": kind("mail", to={"type": ["string", "null"]}),
            "Receipt": {"type": "object", "x-max-bytes": 100, "properties": {"number": {"type": "integer"}}},
        },
    },
}


def project(folder: Path, document: Any = BASE, name: str = "billing.asyncapi.yaml") -> Path:
    """A project's folder with this document in its spec/."""
    spec = folder / "spec"
    spec.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "spec/workqueue.schema.json", spec)
    shutil.copy(ROOT / "pyproject.toml", folder)
    text = json.dumps(document) if name.endswith(".json") else yaml.safe_dump(document, sort_keys=False)
    (spec / name).parent.mkdir(parents=True, exist_ok=True)
    (spec / name).write_text(document if isinstance(document, str) else text)
    return folder


def problems(folder: Path) -> list[str]:
    """What the compiler refuses, without running the generator."""
    try:
        script.applications(folder)
    except script.SpecError as error:
        return error.problems
    return []


def changed(change: Change) -> dict[str, Any]:
    document = deepcopy(BASE)
    change(document)
    return document


def at(path: str, value: Any = ..., *, without: bool = False) -> Change:
    """A change of what is at `a/b/c`: to this value, or to nothing."""

    def change(document: Any) -> None:
        *above, last = path.split("/")
        for key in above:
            document = document[int(key)] if isinstance(document, list) else document[key]
        if without:
            del document[last]
        else:
            document[int(last) if isinstance(document, list) else last] = deepcopy(value)

    return change


def arguments(channel: str, argument: str, value: Any = ...) -> Change:
    return at(f"channels/{channel}/bindings/amqp/queue/arguments/{argument}", value, without=value is ...)


def test_the_contract_of_these_tests_is_fine(tmp_path: Path) -> None:
    assert problems(project(tmp_path)) == []


JOB, PRINT, MESSAGE = "components/schemas/Job", "components/schemas/Print", "components/messages/job"
# What is changed, where the line says the problem is, and what it has to name.
REFUSED: dict[str, tuple[Change, str, str]] = {
    # loops, and ways to lose a message
    "dead letters go to the tasks": (at("operations/bill/x-deadLetter/channel/$ref", "#/channels/invoices"), "operations/bill/x-deadLetter/channel", "own queue"),
    "dead letters go to a delay": (at("operations/bill/x-deadLetter/channel/$ref", "#/channels/soon"), "operations/bill/x-deadLetter/channel", "back to the tasks"),
    "a delay is the queue itself": (at("operations/bill/x-retry/channels/0/$ref", "#/channels/invoices"), "operations/bill/x-retry/channels/0", "at once"),
    "a delay twice": (at("operations/bill/x-retry/channels/1/$ref", "#/channels/soon"), "operations/bill/x-retry/channels/1", "soon is there twice"),
    "delays of the same length": (arguments("later", "x-message-ttl", 100), "channels/later/bindings/amqp/queue/arguments/x-message-ttl", "100 ms is as long"),
    "delays that shrink": (arguments("later", "x-message-ttl", 50), "channels/later/bindings/amqp/queue/arguments/x-message-ttl", "50 ms is shorter"),
    "a delay without an end": (arguments("soon", "x-message-ttl"), "channels/soon/bindings/amqp/queue/arguments/x-message-ttl", "never come back"),
    "a delay of no time": (arguments("soon", "x-message-ttl", 0), "channels/soon/bindings/amqp/queue/arguments/x-message-ttl", "0 can't be used"),
    "a delay that leads elsewhere": (arguments("soon", "x-dead-letter-routing-key", "billing.lost"), "channels/soon/bindings/amqp/queue/arguments/x-dead-letter-routing-key", "'billing.invoices'"),
    "a delay that drops": (arguments("soon", "x-dead-letter-exchange"), "channels/soon/bindings/amqp/queue/arguments/x-dead-letter-exchange", "dropped"),
    "a delay with an exchange": (arguments("soon", "x-dead-letter-exchange", "mine"), "channels/soon/bindings/amqp/queue/arguments/x-dead-letter-exchange", '"mine"'),
    "tasks given up go elsewhere": (arguments("invoices", "x-dead-letter-routing-key", "x"), "channels/invoices/bindings/amqp/queue/arguments/x-dead-letter-routing-key", "'billing.lost'"),
    "tasks that expire": (arguments("invoices", "x-message-ttl", 10), "channels/invoices/bindings/amqp/queue/arguments/x-message-ttl", "without a reason"),
    "dead letters that expire": (arguments("lost", "x-message-ttl", 10), "channels/lost/bindings/amqp/queue/arguments/x-message-ttl", "stays"),
    "dead letters that move on": (arguments("lost", "x-dead-letter-exchange", ""), "channels/lost/bindings/amqp/queue/arguments/x-dead-letter-exchange", "stays"),
    "dead letters that looks use up": (arguments("lost", "x-delivery-limit"), "channels/lost/bindings/amqp/queue/arguments/x-delivery-limit", "after 20"),
    "no limit, as only RabbitMQ 4 has it": (arguments("lost", "x-delivery-limit", -1), "channels/lost/bindings/amqp/queue/arguments/x-delivery-limit", "-1"),
    "the broker gives up before the workers": (arguments("invoices", "x-delivery-limit", 2), "channels/invoices/bindings/amqp/queue/arguments/x-delivery-limit", "2 workers died"),
    "the broker gives up at once": (arguments("invoices", "x-delivery-limit", 1), "channels/invoices/bindings/amqp/queue/arguments/x-delivery-limit", "2 workers died"),
    "at most once": (arguments("soon", "x-dead-letter-strategy"), "channels/soon/bindings/amqp/queue/arguments/x-dead-letter-strategy", "at-least-once"),
    "a full queue drops": (arguments("invoices", "x-overflow", "drop-head"), "channels/invoices/bindings/amqp/queue/arguments/x-overflow", '"drop-head"'),
    "a queue that is deleted when unused": (arguments("invoices", "x-expires", 10), "channels/invoices/bindings/amqp/queue/arguments/x-expires", "deleted"),
    "a classic queue with a strategy": (arguments("soon", "x-queue-type", "classic"), "channels/soon/bindings/amqp/queue/arguments/x-dead-letter-strategy", "classic"),
    "a stream": (arguments("soon", "x-queue-type", "stream"), "channels/soon/bindings/amqp/queue/arguments/x-queue-type", '"stream"'),
    "a misspelt argument": (arguments("soon", "x-mesage-ttl", 1), "channels/soon/bindings/amqp/queue/arguments/x-mesage-ttl", "x-message-ttl"),
    "not durable": (at("channels/lost/bindings/amqp/queue/durable", False), "channels/lost/bindings/amqp/queue/durable", "false"),
    "exclusive": (at("channels/soon/bindings/amqp/queue/exclusive", True), "channels/soon/bindings/amqp/queue/exclusive", "true"),
    "deleted with its consumers": (at("channels/soon/bindings/amqp/queue/autoDelete", True), "channels/soon/bindings/amqp/queue/autoDelete", "true"),
    "the broker's own names": (at("channels/lost/bindings/amqp/queue/name", "amq.lost"), "channels/lost/bindings/amqp/queue/name", "amq."),
    **{f"a name with {letter!r}": (at("channels/lost/bindings/amqp/queue/name", f"bill{letter}ing"), "channels/lost/bindings/amqp/queue/name", "ASCII letters") for letter in "ü|{=\n"},
    "a name too long for its marker": (at("channels/lost/bindings/amqp/queue/name", "b" * 241), "channels/lost/bindings/amqp/queue/name", "1 to 240"),
    "a number that AMQP has none of": (arguments("soon", "x-max-length", 10**30), "channels/soon/bindings/amqp/queue/arguments/x-max-length", "64 bits"),
    "an argument too long for AMQP": (arguments("soon", "x-" + "ü" * 64, 1), "channels/soon/bindings/amqp/queue/arguments/x-" + "ü" * 64, "130 bytes"),
    "an address that is another": (at("channels/lost/address", "elsewhere"), "channels/lost/address", "'billing.lost'"),
    "two channels of one queue": (at("channels/later/bindings/amqp/queue/name", "billing.soon"), "channels/later/bindings/amqp/queue/name", "one channel a queue"),
    "an exchange": (at("channels/soon/bindings/amqp/is", "routingKey"), "channels/soon/bindings/amqp/is", "routingKey"),
    # operations
    "two messages": (at("channels/invoices/messages/other", {"payload": {}}), "channels/invoices/messages", "one message"),
    "two operations on a queue": (lambda d: d["operations"].update(again=d["operations"]["bill"]), "operations/again/channel", "bill"),
    "two send operations to a queue": (lambda d: d["operations"].update(again=d["operations"]["order"]), "operations/again/channel", "order"),
    "no delay": (at("operations/bill/x-retry/channels", []), "operations/bill/x-retry/channels", "one to 50"),
    "a count that is wrong": (at("operations/bill/x-retry/maxAttempts", 5), "operations/bill/x-retry/maxAttempts", "there are 3 attempts"),
    "a lease that is a word": (at("operations/bill/x-lease-s", "abc"), "operations/bill/x-lease-s", '"abc"'),
    "a lease that is a truth": (at("operations/bill/x-lease-s", True), "operations/bill/x-lease-s", "true"),
    "a lease of nothing": (at("operations/bill/x-lease-s", 0), "operations/bill/x-lease-s", "1 to 86400"),
    "a prefetch below nothing": (at("operations/bill/bindings/amqp/x-prefetch", -3), "operations/bill/bindings/amqp/x-prefetch", "-3"),
    "half a crash": (at("operations/bill/x-crash-limit", 3.5), "operations/bill/x-crash-limit", "3.5"),
    "acked before it is done": (at("operations/bill/bindings/amqp/ack", False), "operations/bill/bindings/amqp/ack", "false"),
    "lost with the broker": (at("operations/order/bindings/amqp/deliveryMode", 1), "operations/order/bindings/amqp/deliveryMode", "1 can't"),
    "sent to nowhere": (at("operations/order/bindings/amqp/mandatory", False), "operations/order/bindings/amqp/mandatory", "false"),
    "a timestamp that is a number": (at("operations/order/bindings/amqp/timestamp", 1), "operations/order/bindings/amqp/timestamp", "1 can't"),
    "a task that expires": (at("operations/order/bindings/amqp/expiration", 10), "operations/order/bindings/amqp/expiration", "not supported"),
    "a reply": (at("operations/bill/reply", {}), "operations/bill/reply", "x-result"),
    "an action that is none": (at("operations/bill/action", "publish"), "operations/bill/action", '"publish"'),
    "an id that is no name": (lambda d: d["operations"].update({"do it!": d["operations"].pop("bill")}), "operations/do it!", "name of a method"),
    "an id that Python keeps": (lambda d: d["operations"].update({"import": d["operations"].pop("bill")}), "operations/import", "name of a method"),
    "a channel written in place": (at("operations/bill/channel", {"address": "x"}), "operations/bill/channel", "#/channels/"),
    "a delay that is not there": (at("operations/bill/x-retry/channels/1/$ref", "#/channels/never"), "operations/bill/x-retry/channels/1", "'never'"),
    # keys that nobody would read
    "a misspelt key": (at("operations/bill/x-leese-s", 1), "operations/bill/x-leese-s", "x-lease-s"),
    "another's spelling": (at("operations/bill/x-dead-letter", {}), "operations/bill/x-dead-letter", "x-deadLetter"),
    "a key in the wrong place": (at("operations/bill/x-prefetch", 1), "operations/bill/x-prefetch", "amqp binding"),
    "a receiver's key on a sender": (at("operations/order/x-lease-s", 1), "operations/order/x-lease-s", "receive operation"),
    "a limit on the message": (at(f"{MESSAGE}/x-time-limit-s", 3), f"{MESSAGE}/x-time-limit-s", "belongs to a schema"),
    "the old place of the result": (at("operations/bill/x-result", {"type": "object"}), "operations/bill/x-result", "on the message"),
    "the old name of the delays": (at("operations/bill/x-retry/rungs", ["soon"]), "operations/bill/x-retry/rungs", "channels"),
    "the old name of the dead letters": (at("operations/bill/x-retry/deadLetter", "lost"), "operations/bill/x-retry/deadLetter", "x-deadLetter"),
    # messages
    "a body without a limit": (at(f"{MESSAGE}/x-max-bytes", without=True), MESSAGE, "lacks x-max-bytes"),
    "a type too long for AMQP": (at(f"{MESSAGE}/bindings/amqp/messageType", "ü" * 200), f"{MESSAGE}/bindings/amqp/messageType", "400 bytes"),
    "a dead letter's type too long for AMQP": (at("components/messages/lost/bindings/amqp/messageType", "ü" * 128), "components/messages/lost/bindings/amqp/messageType", "256 bytes"),
    "a body that no broker takes": (at(f"{MESSAGE}/x-max-bytes", 20_000_000), f"{MESSAGE}/x-max-bytes", "16777216"),
    "a message of no type": (at(f"{MESSAGE}/bindings", without=True), MESSAGE, "lacks bindings"),
    "another content type": (at(f"{MESSAGE}/contentType", "text/xml"), f"{MESSAGE}/contentType", "text/xml"),
    "no result": (at(f"{MESSAGE}/x-result", without=True), MESSAGE, "lacks x-result"),
    "a result without a limit": (at("components/schemas/Receipt/x-max-bytes", without=True), "components/schemas/Receipt", "lacks x-max-bytes"),
    "an example that is wrong": (at(f"{MESSAGE}/examples", [{"payload": {"id": 3}}]), f"{MESSAGE}/examples/0/payload", "/id"),
    "headers that refuse the attempts": (at(f"{MESSAGE}/headers", {"type": "object", "additionalProperties": False}), f"{MESSAGE}/headers", "x-attempts"),
    "headers that need what nobody writes": (at(f"{MESSAGE}/headers", {"type": "object", "required": ["x-tenant"]}), f"{MESSAGE}/headers", "x-tenant"),
    "a story with too little room": (at("components/messages/lost/headers/properties/x-attempts/maxItems", 4), "components/messages/lost/headers/properties/x-attempts/maxItems", "say 5"),
    "a story without an end": (at("components/messages/lost/headers/properties/x-attempts/maxItems", without=True), "components/messages/lost/headers/properties/x-attempts/maxItems", "5 or more"),
    # schemas
    "not draft 07": (at(f"{PRINT}/properties/pages/exclusiveMinimum", True), f"{PRINT}/properties/pages/exclusiveMinimum", "draft 07"),
    "a type that is none": (at(f"{PRINT}/properties/pages/type", "int"), f"{PRINT}/properties/pages/type", '"int"'),
    "no regular expression": (at(f"{PRINT}/properties/pages/pattern", "["), f"{PRINT}/properties/pages/pattern", "regular expression"),
    "a regular expression that is too large": (at(f"{PRINT}/properties/pages/pattern", "^a{1000000}$"), f"{PRINT}/properties/pages/pattern", "repeats too much"),
    "one that is too large once written out": (at(f"{PRINT}/properties/pages/pattern", "(a{1000}){1000}"), f"{PRINT}/properties/pages/pattern", "repeats too much"),
    "one with a class that is none": (at(f"{PRINT}/properties/pages/pattern", r"\p{Foo}"), f"{PRINT}/properties/pages/pattern", "not known"),
    "one that is too large for a key": (at(f"{PRINT}/patternProperties", {"^a{1000000}$": {}}), f"{PRINT}/patternProperties/^a{{1000000}}$", "repeats too much"),
    "OpenAPI's nullable": (at(f"{PRINT}/properties/pages/nullable", True), f"{PRINT}/properties/pages/nullable", "'null'"),
    "a misspelt keyword": (at(f"{PRINT}/properties/pages/minimun", 1), f"{PRINT}/properties/pages/minimun", "minimum"),
    "another draft": (at(f"{PRINT}/$schema", "https://json-schema.org/draft/2020-12/schema"), PRINT, "draft 07"),
    "Avro": (at(f"{MESSAGE}/payload", {"schemaFormat": "application/vnd.apache.avro", "schema": {}}), f"{MESSAGE}/payload", "avro"),
    "what stands beside a $ref": (at(f"{JOB}/properties/payload/oneOf/0/x-time-limit-s", 3), f"{JOB}/properties/payload/oneOf/0", "x-time-limit-s"),
    "a key that no model can have": (at(f"{PRINT}/patternProperties", {"(?!x)y": {}}), f"{PRINT}/patternProperties/(?!x)y", "look-ahead"),
    "no id": (at(f"{JOB}/properties/id", without=True), JOB, "needs id"),
    "an id that may be missing": (at(f"{JOB}/required", ["payload", "created_at"]), JOB, "needs id"),
    "an id that is no uuid": (at(f"{JOB}/properties/id", {"type": "string"}), f"{JOB}/properties/id", "uuid"),
    "no payload": (at(f"{JOB}/properties/payload", without=True), JOB, "needs payload"),
    "a task that is a list": (at(JOB, {"type": "array"}), JOB, "type: object"),
    "a field that nobody fills": (at(f"{JOB}/required", ["id", "created_at", "payload", "tenant"]), f"{JOB}/required", "tenant"),
    "kinds without a tag": (at("components/schemas/Mail/properties/kind/const", without=True), "components/schemas/Mail", "can't be told"),
    "a tag that may be missing": (at("components/schemas/Mail/required", ["to"]), "components/schemas/Mail", "can't be told"),
    "kinds with different tags": (at("components/schemas/Mail", {"type": "object", "required": ["type"], "properties": {"type": {"const": "mail"}}}), "components/schemas/Mail", "can't be told"),
    "kinds with the same tag": (at("components/schemas/Mail/properties/kind/const", "print"), "components/schemas/Mail/properties/kind/const", "Print"),
    "a kind that is a text": (at("components/schemas/Mail", {"type": "string"}), "components/schemas/Mail", "type: object"),
    "a limit that is none": (at(f"{PRINT}/x-time-limit-s", 0), f"{PRINT}/x-time-limit-s", "above 0"),
    "a limit that is a word": (at(f"{PRINT}/x-time-limit-s", "60s"), f"{PRINT}/x-time-limit-s", '"60s"'),
    "a limit on no kind": (at("components/schemas/Receipt/x-time-limit-s", 3), "components/schemas/Receipt/x-time-limit-s", "limits nothing"),
    "a limit within a kind": (at(f"{PRINT}/properties/pages/x-time-limit-s", 3), f"{PRINT}/properties/pages/x-time-limit-s", "limits nothing"),
    "a default that is none of its values": (at(f"{PRINT}/properties/pages", {"type": "string", "enum": ["a", "b"], "default": "c"}), f"{PRINT}/properties/pages/default", '"c" breaks its own schema'),
    "a default of another type": (at("components/schemas/Receipt/properties/number/default", "1"), "components/schemas/Receipt/properties/number/default", '"1" breaks its own schema'),
    "a default that breaks it inside": (at(f"{PRINT}/properties/pages", {"type": "array", "items": {"type": "integer"}, "default": [1, "x"]}), f"{PRINT}/properties/pages/default", "/1: "),
    "a default without a null": (at(f"{PRINT}/properties/pages/default", None), f"{PRINT}/properties/pages/default", "null breaks its own schema"),
    "a required property that can't be": (at("components/schemas/Mail", {"type": "object", "additionalProperties": False, "required": ["kind", "too"], "properties": {"kind": {"const": "mail"}, "to": {"type": "string"}}}), "components/schemas/Mail/required", '"too" is none'),
    **{f"{low} above {high}": (at(f"{PRINT}/properties/pages", {low: 3, high: 2}), f"{PRINT}/properties/pages/{low}", f"3, with {high} 2: no value") for low, high in (
        ("minimum", "maximum"), ("minimum", "exclusiveMaximum"), ("exclusiveMinimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"),
        ("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))},
    "bounds with nothing between them": (at(f"{PRINT}/properties/pages", {"minimum": 3, "exclusiveMaximum": 3}), f"{PRINT}/properties/pages/minimum", "no value"),
    "a text that no message can hold": (at(f"{PRINT}/properties/pages", {"minLength": 10**12}), f"{PRINT}/properties/pages/minLength", "no message can hold"),
    "values that Python takes for one": (at(f"{PRINT}/properties/pages", {"enum": [2, True, 1.0]}), f"{PRINT}/properties/pages/enum", "true and 1 are one value"),
    "a list that no message can hold": (at(f"{PRINT}/properties/pages", {"minItems": 10**7}), f"{PRINT}/properties/pages/minItems", "no message can hold"),
    "a title that is another's name": (at("components/schemas/Mail/title", "Job"), "components/schemas/Mail/title", "another schema"),
    # references
    "a reference out of this machine": (at(f"{PRINT}/properties/pages", {"$ref": "https://example.com/a.json#/b"}), f"{PRINT}/properties/pages", "copy"),
    "a reference to a file that is not there": (at(f"{PRINT}/properties/pages", {"$ref": "./no.json"}), f"{PRINT}/properties/pages", "no such file"),
    "a reference that is no pointer": (at(f"{PRINT}/properties/pages", {"$ref": "#pages"}), f"{PRINT}/properties/pages", "JSON pointer"),
    "references in a circle": (at(PRINT, {"$ref": f"#/{PRINT}"}), f"{JOB}/properties/payload/oneOf/0", "itself"),
    "a schema's name in other letters": (lambda d: (d["components"]["schemas"].update({"Grüße": d["components"]["schemas"]["Print"]}), at(f"{JOB}/properties/payload/oneOf/0/$ref", "#/components/schemas/Grüße")(d)), "components/schemas/Grüße", "use the letters A to Z"),
    "a message's name in other letters": (lambda d: (at(f"{MESSAGE}/name", "Grüße")(d), at(f"{MESSAGE}/payload", d["components"]["schemas"]["Job"])(d)), f"{MESSAGE}/payload", "use the letters A to Z"),
    # the document
    "another version": (at("asyncapi", "2.6.0"), "asyncapi", "2.6.0"),
    "a version that is a number": (at("info/version", 1.0), "info/version", "quotes"),
    "a version that the headers have no room for": (lambda d: (at("info/version", "1" * 65)(d), at(f"{MESSAGE}/headers/properties/x-contract", {"maxLength": 64})(d)), f"{MESSAGE}/headers", "x-contract"),
    "no operations": (at("operations", {}), "operations", "sends or receives"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "place", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_or_kept_is_said_with_its_place(
    change: Change, place: str, named: str, tmp_path: Path
) -> None:
    said = problems(project(tmp_path, changed(change)))
    where = f"spec/billing.asyncapi.yaml#/{place}: "
    lines = [line for line in said if line.startswith(where)]
    assert lines, said
    assert any(named in line.removeprefix(where) for line in lines), lines
    assert all("\n" not in line and line.count(": ") >= 1 for line in said)


@pytest.mark.parametrize(
    ("message", "written"),
    [(MESSAGE, story.ON_TASK), ("components/messages/lost", story.ON_LETTER)],
    ids=["a task", "a dead letter"],
)
def test_headers_that_are_closed_state_all_that_the_runtime_writes(
    message: str, written: Mapping[str, Any], tmp_path: Path
) -> None:
    stated = {name: {"maxItems": 40} if name == "x-attempts" else {} for name in written}
    closed = {"type": "object", "additionalProperties": False, "properties": stated}
    assert problems(project(tmp_path, changed(at(f"{message}/headers", closed)))) == []
    for name in written:
        properties = {other: schema for other, schema in stated.items() if other != name}
        said = problems(project(tmp_path, changed(at(f"{message}/headers", {**closed, "properties": properties}))))
        assert any("refuses what the runtime writes" in line and f"'{name}'" in line for line in said), (name, said)


def test_every_missing_key_is_named(tmp_path: Path) -> None:
    for path in ("operations/bill/x-retry", "operations/bill/x-deadLetter", "operations/bill/x-lease-s",
                 "operations/bill/x-crash-limit", "operations/bill/bindings/amqp/x-prefetch",
                 "operations/order/bindings/amqp/mandatory", "operations/order/bindings/amqp/deliveryMode",
                 "operations/order/bindings/amqp/timestamp", "channels/soon/bindings/amqp/queue/durable",
                 "channels/soon/bindings/amqp/queue/arguments"):  # fmt: skip
        said = problems(project(tmp_path, changed(at(path, without=True))))
        above, _, key = path.rpartition("/")
        assert any(line.startswith(f"spec/billing.asyncapi.yaml#/{above}: lacks {key}: ") for line in said), (
            path,
            said,
        )


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    def many(document: Any) -> None:
        at("operations/bill/x-lease-s", "abc")(document)
        at("operations/order/bindings/amqp/mandatory", False)(document)
        at("channels/lost/bindings/amqp/queue/name", "amq.x")(document)
        at(f"{JOB}/properties/id", without=True)(document)
        at("components/schemas/Receipt/x-time-limit-s", 3)(document)

    said = problems(project(tmp_path, changed(many)))
    for place in ("x-lease-s", "mandatory", "queue/name", "schemas/Job", "Receipt/x-time-limit-s"):
        assert any(line.partition(": ")[0].endswith(place) for line in said), (place, said)


# --- files ------------------------------------------------------------------------------------------------------------


BOMB = "asyncapi: 3.0.0\nx-0: &a0 {a: 1}\n" + "".join(
    f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11)
)
FILES: dict[str, tuple[str, str]] = {
    "a key twice": ("asyncapi: 3.0.0\ninfo: {}\noperations: {}\ninfo: {}\n", "line 4: the key 'info' is there twice"),
    "a tab": ("asyncapi: 3.0.0\noperations:\n\ta: 1\n", "line 3: a tab"),
    "nothing": ("", "is nothing"),
    "a list": ("- asyncapi: 3.0.0\n", "is a list"),
    "a key that is a number": ("asyncapi: 3.0.0\noperations:\n  404: {}\n", "line 3: the key '404' is no text"),
    "an open bracket": ("asyncapi: [\n", "line"),
    "an object of Python": ("asyncapi: !!python/name:os.system\n", "line 1"),
    "anchors that stand for billions": (BOMB, "its anchors stand for 23,456,790,110 values"),
    "a number that is too large": ("asyncapi: 3.0.0\nx: 1e999\n", "line 2: 1e999 is no value of JSON"),
    "a number of many digits": (f"asyncapi: 3.0.0\nx: {'9' * 5000}\n", "line 2: 999"),
    "a number that is none": ("asyncapi: 3.0.0\nx: !!int ten\n", "line 2: ten is no value of JSON"),
    "a truth that is none": ("asyncapi: 3.0.0\nx: !!bool maybe\n", "line 2: maybe is no value of JSON"),
    "a type that JSON has not": (
        "asyncapi: 3.0.0\nx: !!timestamp 2026-01-01\n",
        "line 2: timestamp is no type of JSON",
    ),
    "a type of another sort": ("asyncapi: 3.0.0\nx: !!int {a: 1}\n", "line 2: int is no type of JSON"),
    "what contains itself": ("asyncapi: 3.0.0\noperations: &a\n  b: *a\n", "contains itself"),
}


@pytest.mark.parametrize(("text", "named"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_one_line(text: str, named: str, tmp_path: Path) -> None:
    (said,) = problems(project(tmp_path, text))
    assert said.startswith("spec/billing.asyncapi.yaml")
    assert named in said


JSON = {
    "no number": ('{"x": NaN}', "NaN is no value of JSON"),
    "a number that is too large": ('{"x": 1e999}', "1e999 is no value of JSON"),
    "a number of many digits": (f'{{"x": {"9" * 5000}}}', "999... is no value of JSON"),
    "half a character": (r'{"x": "a\ud800"}', r"\ud800 is half a character"),
}


@pytest.mark.parametrize(("text", "named"), JSON.values(), ids=JSON)
def test_a_file_that_is_no_json_is_one_line(text: str, named: str, tmp_path: Path) -> None:
    (said,) = problems(project(tmp_path, text, "billing.asyncapi.json"))
    assert said.startswith("spec/billing.asyncapi.json: ")
    assert named in said


def whole(document: Any) -> None:
    """Integers as some tools write them."""
    at("operations/bill/bindings/amqp/x-prefetch", 1.0)(document)
    at("operations/bill/x-crash-limit", 2.0)(document)
    at("operations/bill/x-retry/maxAttempts", 3.0)(document)
    at(f"{MESSAGE}/x-max-bytes", 1e3)(document)
    arguments("invoices", "x-delivery-limit", 1e9)(document)
    arguments("soon", "x-message-ttl", 100.0)(document)
    at("components/schemas/Receipt/x-max-bytes", 1e2)(document)
    at(f"{PRINT}/properties/pages", {"type": ["integer", "null"], "default": 1.0, "minimum": 1.0, "multipleOf": 1.0})(
        document
    )
    at(f"{PRINT}/properties/format", {"type": "string", "minLength": 1.0, "maxLength": 1e1})(document)
    at(
        f"{PRINT}/properties/copies", {"type": "array", "items": {"enum": [1.5, 2.0]}, "minItems": 1.0, "maxItems": 4.0}
    )(document)
    at(f"{PRINT}/properties/scale", {"type": "number", "default": 1.0})(document)
    at(f"{PRINT}/properties/version", {"type": "integer", "const": 2.0})(document)


def test_an_integer_that_is_written_as_a_fraction_is_one_and_a_number_stays(tmp_path: Path) -> None:
    folder = project(tmp_path, changed(whole))
    assert problems(folder) == []
    found = resolve(folder / "spec/billing.asyncapi.yaml", folder).document
    receive = contract.read(found).receives["billing.invoices"]
    pages, size, copies, scale, version = (found["components"]["schemas"]["Print"]["properties"][name]
                                  for name in ("pages", "format", "copies", "scale", "version"))  # fmt: skip
    integers = (
        receive.prefetch, receive.message.max_bytes, receive.result_max_bytes, receive.queue.arguments["x-delivery-limit"],
        receive.rungs[0].queue.arguments["x-message-ttl"], pages["default"], size["minLength"], size["maxLength"],
        copies["minItems"], copies["maxItems"], version["const"],
    )  # fmt: skip
    assert integers == (1, 1000, 100, 10**9, 100, 1, 1, 10, 1, 4, 2)
    assert all(type(value) is int for value in integers)
    assert type(scale["default"]) is float
    assert type(copies["items"]["enum"][1]) is float


def test_a_fraction_is_no_integer(tmp_path: Path) -> None:
    for path, value, named in (
        ("operations/bill/bindings/amqp/x-prefetch", 1.5, "1.5 can't be used"),
        ("operations/bill/x-retry/maxAttempts", 5.0, "there are 3 attempts"),
        (f"{PRINT}/properties/pages/maxLength", 1.5, "1.5"),
    ):
        (line,) = problems(project(tmp_path, changed(at(path, value))))
        assert path in line
        assert named in line


def test_anchors_and_merge_keys_are_written_out(tmp_path: Path) -> None:
    anchors = "x: &x {a: 1, b: [2]}\ny: {<<: *x, a: 3}\nz: [*x, *x]\n"
    project(tmp_path, f"asyncapi: 3.0.0\n{anchors}operations: {{}}\n")
    found = resolve(tmp_path / "spec/billing.asyncapi.yaml", tmp_path).document
    x = {"a": 1, "b": [2]}
    assert (found["y"], found["z"]) == ({"a": 3, "b": [2]}, [x, x])


def test_values_are_those_of_json_and_not_of_yaml_1_1(tmp_path: Path) -> None:
    """PyYAML would make of these a truth, a date, a text and the number 45000."""
    project(tmp_path, "asyncapi: 3.0.0\nx: [on, 2026-11-25, 1e5, 12:30:00]\noperations: {}\n")
    found = resolve(tmp_path / "spec/billing.asyncapi.yaml", tmp_path).document["x"]
    assert found == ["on", "2026-11-25", 100000.0, "12:30:00"]


@pytest.mark.slow
def test_no_value_anywhere_makes_the_lint_fail_instead_of_saying_so(tmp_path: Path) -> None:
    """Each part of the document is in turn of another type: lines, never a traceback."""

    def paths(node: Any, above: str = "") -> list[str]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [path for key, value in items for path in (f"{above}{key}", *paths(value, f"{above}{key}/"))]

    others: tuple[Any, ...] = (None, [], {}, "text", 7, True, [3])
    for index, path in enumerate(paths(BASE)):
        said = problems(project(tmp_path, changed(at(path, others[index % len(others)]))))
        assert all(line.startswith("spec/billing.asyncapi.yaml") for line in said)


# --- contracts that are fine ------------------------------------------------------------------------------------------


def split(folder: Path) -> None:
    """The schemas in files of their own, in folders, referred to as whole files, by pointers and from one another."""
    schemas = deepcopy(BASE["components"]["schemas"])
    schemas["Job"]["properties"]["payload"]["oneOf"] = [
        {"$ref": "../kinds/print.json"},
        {"$ref": "../kinds/all.yaml#/definitions/Mail"},
    ]
    document = changed(
        at("components/schemas", {"Job": {"$ref": "./parts/job.schema.json#/"}, "Receipt": schemas["Receipt"]})
    )
    project(folder, document)
    for name, content in (
        ("parts/job.schema.json", {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/job", **schemas["Job"]}),
        ("kinds/print.json", {**schemas["Print"], "title": "Print"}),
        ("kinds/all.yaml", {"definitions": {"Mail": {**schemas["Mail"], "properties": {**schemas["Mail"]["properties"], "again": {"$ref": "#/definitions/Mail"}}}}}),
    ):  # fmt: skip
        (folder / "spec" / name).parent.mkdir(exist_ok=True)
        (folder / "spec" / name).write_text(json.dumps(content))


def traits(document: Any) -> None:
    """What can be said in traits is; the operation's own words win."""
    bill = document["operations"]["bill"]
    document["components"]["operationTraits"] = {
        "careful": {key: bill.pop(key) for key in ("x-retry", "x-deadLetter", "x-lease-s", "bindings")}
        | {"x-crash-limit": 90}
    }
    bill["traits"] = [{"x-lease-s": 1000}, {"$ref": "#/components/operationTraits/careful"}]
    job = document["components"]["messages"]["job"]
    job["traits"] = [{"headers": job.pop("headers"), "x-max-bytes": 7}, {"bindings": job.pop("bindings")}]


def of_allof(document: Any) -> None:
    schemas = document["components"]["schemas"]
    job = schemas["Job"]
    schemas["Base"] = {"type": "object", "required": ["id", "created_at"],
                       "properties": {key: job["properties"].pop(key) for key in ("id", "created_at")}}  # fmt: skip
    job["allOf"], job["required"] = [{"$ref": "#/components/schemas/Base"}], ["payload"]
    schemas["Common"] = {"type": "object", "properties": {"note": {"type": ["string", "null"]}}}
    schemas["Mail"]["allOf"] = [{"$ref": "#/components/schemas/Common"}]
    del schemas["Mail"]["additionalProperties"]


def dotted(document: Any) -> None:
    text = (
        json.dumps(document)
        .replace("schemas/Print", "schemas/acme.print-v2")
        .replace("schemas/Job", "schemas/acme.Job")
    )
    document.clear()
    document.update(json.loads(text))
    schemas = document["components"]["schemas"]
    schemas["acme.print-v2"], schemas["acme.Job"] = schemas.pop("Print"), schemas.pop("Job")
    document["components"]["messages"]["job"]["name"] = "task.created"


def inline(document: Any) -> None:
    """Nothing has a name of its own: payload, kinds and result stand where they are used."""
    schemas = document["components"].pop("schemas")
    schemas["Job"]["properties"]["payload"]["oneOf"] = [schemas["Print"], schemas["Mail"]]
    document["components"]["messages"]["job"] |= {
        "payload": schemas["Job"],
        "x-result": schemas["Receipt"],
        "name": "HTTPJob2",
    }


def named_queue(document: Any, channel: str, name: str) -> None:
    """Another name for the queue, and for where it is named."""
    old = document["channels"][channel]["bindings"]["amqp"]["queue"]["name"]
    text = json.dumps(document).replace(json.dumps(old), json.dumps(name))
    document.update(json.loads(text))


FINE: dict[str, Change] = {
    "one kind": at(f"{JOB}/properties/payload", {"$ref": "#/components/schemas/Print"}),
    "many kinds": lambda d: d["components"]["schemas"]["Job"]["properties"]["payload"].update(
        oneOf=[{**kind(f"kind-{n}", n={"type": "integer"}), "x-time-limit-s": n + 0.5} for n in range(30)]
    ),
    "kinds in groups": at(f"{JOB}/properties/payload/oneOf/1", {"anyOf": [{"$ref": "#/components/schemas/Mail"}, kind("fax")]}),
    "traits": traits,
    "allOf": of_allof,
    "dotted names": dotted,
    "everything in place": inline,
    "a kind named as the message": lambda d: (at(f"{MESSAGE}/name", "Print")(d), at("components/messages/lost/name", "Print")(d)),
    "titles that are no names": lambda d: (
        at(f"{JOB}/title", "A job, to be done")(d), at(f"{PRINT}/title", "Take a nap")(d), at("components/schemas/Mail/title", "Any")(d)
    ),
    "patterns of two dialects": at(f"{PRINT}/properties/pages", {"anyOf": [{"type": "string", "pattern": "^(?!x)a"}, {"type": "string", "pattern": r"^\p{L}+$"}]}),
    "a version of two lines, and quotes": at("info/version", '1\n"2\\'),
    "quotes in what is described": lambda d: d["operations"]["bill"].update(title='Say """hello"', description="back\\slash"),
    "one operation, which sends": at("operations/bill", without=True),
    "one operation, which receives": at("operations/order", without=True),
    "classic queues": lambda d: [
        channel["bindings"]["amqp"]["queue"].update(arguments={
            key: "classic" if key == "x-queue-type" else value
            for key, value in channel["bindings"]["amqp"]["queue"]["arguments"].items()
            if key not in ("x-dead-letter-strategy", "x-delivery-limit")
        })
        for channel in d["channels"].values()
    ],
    "a queue of all letters that there are": lambda d: named_queue(d, "lost", "billing lost-_.:@#,/+" + "9" * 219),
    "integers as fractions": lambda d: whole(d),
    "keys of other tools": lambda d: (at("x-internal", True)(d), at("operations/bill/x-owner", "us")(d), at(f"{PRINT}/x-faker", "n")(d)),
    "an id with a dot": lambda d: d["operations"].update({"do.bill": d["operations"].pop("bill")}),
    "an id with dashes": lambda d: d["operations"].update({"do-bill": d["operations"].pop("bill")}),
    "one value within the bounds": at(f"{PRINT}/properties/pages", {"type": "integer", "minimum": 3, "maximum": 3}),
    "a text that may be too large": at(f"{PRINT}/properties/pages", {"type": "string", "maxLength": 2000}),
    "a result that may be too large": at("components/schemas/Receipt/properties/number", {"type": "string", "maxLength": 2000}),
    "objects that may be too large together": at(f"{PRINT}/properties/pages", {"type": "array", "items": {
        "type": "object", "properties": {key: {"type": "string", "maxLength": 10000} for key in "abc"}}}),
    "a long pattern": at(f"{PRINT}/properties/pages", {"type": "string", "pattern": "^a{5000}$"}),
    "a payload with a field payload": at(f"{PRINT}/properties/payload", {"type": "string"}),
    "a schema of several formats": lambda d: at(f"{MESSAGE}/payload", {
        "schemaFormat": "application/schema+json; version=draft-07", "schema": {"$ref": "#/components/schemas/Job"}})(d),
    "a field that may be left out": at(f"{JOB}/properties/tenant", {"type": "string"}),
}  # fmt: skip


@compiles
@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_a_contract_that_is_fine_is_built_and_its_modules_have_its_models(change: Change, tmp_path: Path) -> None:
    document = changed(change)
    assert built(project(tmp_path, document))


@compiles
@pytest.mark.timeout(60)  # it took as long, and then some
def test_a_list_of_a_million_is_tried_a_few_times(tmp_path: Path) -> None:
    def add(document: Any) -> None:
        at(f"{PRINT}/properties/pages", {"type": "array", "items": {"type": "integer"}, "minItems": 300_000})(document)
        at(f"{MESSAGE}/x-max-bytes", 16_777_216)(document)
        document["components"]["schemas"]["Print"]["required"] += ["pages"]
        for number in range(20):
            at(f"{PRINT}/properties/f{number}", {"type": "string"})(document)

    built(project(tmp_path, changed(add)))


def needed(path: str, schema: Any) -> Change:
    """A property of an object that is required."""

    def change(document: Any) -> None:
        above, _, name = path.rpartition("/properties/")
        at(path, schema)(document)
        required = at_path(document, above).setdefault("required", [])
        required.append(name)

    return change


def at_path(document: Any, path: str) -> Any:
    for key in path.split("/"):
        document = document[key]
    return document


LONG = {"type": "string", "minLength": 2000}
TOO_LARGE = {
    "a kind": (needed(f"{PRINT}/properties/pages", LONG), "Job print: the smallest has 2119 bytes", 1),
    "the task": (at(f"{MESSAGE}/x-max-bytes", 10), "Job mail: the smallest has 107 bytes", 2),
    "the result": (
        needed("components/schemas/Receipt/properties/number", LONG),
        "result: the smallest has 2013 bytes",
        1,
    ),
}


@compiles
@pytest.mark.parametrize(("change", "named", "count"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_always_too_large_is_refused(change: Change, named: str, count: int, tmp_path: Path) -> None:
    with pytest.raises(script.SpecError) as refused:
        script.build(project(tmp_path, changed(change)), tmp_path / "made")
    lines = refused.value.problems
    assert len(lines) == count
    assert any(named in line and "more than x-max-bytes" in line for line in lines), lines


def built(folder: Path) -> contract.Contract:
    """Compiles the project; its contract, once its modules were imported and every message's model was found."""
    try:
        script.build(folder, folder / "made")
    except script.SpecError as error:
        pytest.fail(str(error))
    module = script.load(folder / "made" / "billing")
    found = contract.read(json.loads((folder / "made/billing/contract.json").read_text()))
    operations: list[contract.Send | contract.Receive] = [*found.sends.values(), *found.receives.values()]
    for operation in operations:
        model = getattr(module.messages.json, operation.message.name)
        assert {"id", "payload"} <= set(model.model_fields)
    if names := {receive.operation for receive in found.receives.values()}:
        assert typed_handlers(folder / "made" / "billing").__annotations__.keys() == names
    return found


def typed_handlers(package: Path) -> Any:
    """What its module `handlers` says of the handlers; in a process of its own it would be imported as it is."""
    sys.path.insert(0, str(package.parent))
    try:
        return importlib.import_module(f"{package.name}.handlers").Handlers
    finally:
        sys.path.remove(str(package.parent))
        for name in [name for name in sys.modules if name == package.name or name.startswith(f"{package.name}.")]:
            del sys.modules[name]


@compiles
@pytest.mark.parametrize("part", [{"required": ["kind"]}, {}, {"type": "object", "required": ["kind"]}])
def test_a_const_in_an_allof_tells_kinds_apart(part: dict[str, Any], tmp_path: Path) -> None:
    def split_off(document: Any) -> None:
        schemas, base = document["components"]["schemas"], {"$ref": "#/components/schemas/Base"}
        schemas["Base"] = {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string"}}}
        for name, const, more in (("Print", "print", {"pages": {"type": "integer"}}), ("Mail", "mail", {})):
            own = {**part, "properties": {"kind": {"const": const}, **more}}
            schemas[name] = {"allOf": [base, own], "x-time-limit-s": 5}

    receive = built(project(tmp_path, changed(split_off))).receives["billing.invoices"]
    assert (receive.tag, receive.time_limits_s) == ("kind", {"print": 5, "mail": 5})


@compiles
def test_schemas_may_be_in_files_of_their_own_and_traits_count(tmp_path: Path) -> None:
    split(tmp_path / "a folder, äöü")
    built(tmp_path / "a folder, äöü")
    found = built(project(tmp_path / "traits", changed(traits)))
    receive = found.receives["billing.invoices"]
    assert (receive.lease_s, receive.crash_limit, receive.message.max_bytes) == (20, 2, 1000)
    assert receive.prefetch == 1


@compiles
@pytest.mark.parametrize("name", ["billing.asyncapi.json", "billing.asyncapi.yml", "deep/down/billing.asyncapi.yaml"])
def test_a_document_may_be_json_and_in_a_folder(name: str, tmp_path: Path) -> None:
    built(project(tmp_path, name=name))


@pytest.mark.parametrize(
    "name", ["class", "None", "__init__", "__main__", "my-app", "2nd", "\N{LATIN SMALL LIGATURE FI}le"]
)
def test_a_document_whose_name_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    (line,) = problems(project(tmp_path, name=f"{name}.asyncapi.yaml"))
    assert line.startswith(f"spec/{name}.asyncapi.yaml: {name!r} can't be a package's name")


@compiles
def test_a_channel_may_be_in_another_file_and_behind_another_reference(tmp_path: Path) -> None:
    document = deepcopy(BASE)
    shared = {"channels": document["channels"], "components": document.pop("components")}
    document["channels"] = {"invoices": {"$ref": "common.yaml#/channels/invoices"}}
    document["operations"]["bill"]["x-deadLetter"]["channel"]["$ref"] = "common.yaml#/channels/lost"
    for route in document["operations"]["bill"]["x-retry"]["channels"]:
        route["$ref"] = f"common.yaml{route['$ref']}"
    project(tmp_path, document)
    (tmp_path / "spec/common.yaml").write_text(yaml.safe_dump(shared))
    found = built(tmp_path)
    assert {queue.name for queue in found.queues} == {
        "billing.invoices",
        "billing.lost",
        "billing.soon",
        "billing.later",
    }
    receive = found.receives["billing.invoices"]
    assert ([rung.delay_s for rung in receive.rungs], receive.dead.name) == ([0.1, 9.0], "billing.lost")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_the_script_says_it_in_one_line_each_with_exit_code_2_and_changes_nothing(tmp_path: Path) -> None:
    project(tmp_path, changed(at("operations/bill/x-lease-s", "abc")))
    for name in ("workqueue",):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "kept").touch()
    for arguments in ([], ["--check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "workqueue", "generate", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        assert line.startswith(
            'generate: spec/billing.asyncapi.yaml#/operations/bill/x-lease-s: "abc" can\'t be used; it is'
        )
    assert [path.name for path in (tmp_path / "generated").iterdir()] == ["kept"]
    assert not list(tmp_path.glob(".generate-*"))


@compiles
def test_what_the_generator_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        print("progress\n" * 40)
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(CodeGenerator, "generate", refuse)
    with pytest.raises(script.SpecError) as caught:
        script.build(project(tmp_path), tmp_path / "made")
    (line,) = caught.value.problems
    assert line.startswith("spec/billing.asyncapi.yaml#/: the generator refuses it: no such thing")


@pytest.mark.broker
@compiles
def test_two_at_once_leave_one_whole_result(tmp_path: Path) -> None:
    project(tmp_path)
    for name in ("workqueue",):
        shutil.copytree(ROOT / name, tmp_path / name)
    running = [subprocess.Popen([sys.executable, "-m", "workqueue", "generate"], cwd=tmp_path) for _ in range(4)]
    assert [process.wait(100) for process in running] == [0, 0, 0, 0]
    assert command.main(["--check", str(tmp_path)]) == 0
    assert not list(tmp_path.glob(".generate-*"))


# --- what is published ------------------------------------------------------------------------------------------------


def test_each_key_of_ours_is_described_with_its_range_and_in_the_docs() -> None:
    rules = json.loads((ROOT / lint.SCHEMA).read_text())
    text = (ROOT / "docs/contract.md").read_text()

    def fields(rule: Any) -> list[tuple[str, Any]]:
        return [pair for name, below in rule.get("properties", {}).items() for pair in ((name, below), *fields(below))]

    found = [pair for rule in rules["definitions"].values() for pair in fields(rule)]
    assert len(found) > 40
    for name, rule in found:
        assert rule["description"], name
        assert f"`{name}`" in text, name
