"""What the runtime reads out of the contract is what spec/ says, and spec/ says nothing that loses messages."""

import ast
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.project import ROOT
from workqueue import contract
from workqueue.contract import Queue
from workqueue.errors import ContractInvalid

COMMON = yaml.safe_load((ROOT / "spec/common.asyncapi.yaml").read_text())
WORKER_SPEC = yaml.safe_load((ROOT / "spec/worker.asyncapi.yaml").read_text())
PRODUCER_SPEC = yaml.safe_load((ROOT / "spec/producer.asyncapi.yaml").read_text())
DOCUMENT: dict[str, Any] = json.loads((ROOT / "generated/worker/contract.json").read_text())

WORKER, PRODUCER = contract.load("generated.worker"), contract.load("generated.producer")
(RECEIVE,), (SEND,) = WORKER.receives.values(), PRODUCER.sends.values()
(OPERATION,) = WORKER_SPEC["operations"].values()
SCHEMAS = COMMON["components"]["schemas"]


def in_spec(channel: str) -> Queue:
    queue = COMMON["channels"][channel]["bindings"]["amqp"]["queue"]
    return Queue(queue["name"], queue["durable"], queue["exclusive"], queue["autoDelete"], queue["arguments"])


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_queues_are_those_of_the_spec_with_all_their_arguments() -> None:
    assert [queue.name for queue in WORKER.queues] == [in_spec(key).name for key in WORKER_SPEC["channels"]]
    assert list(WORKER.queues) == [in_spec(key) for key in WORKER_SPEC["channels"]]
    assert list(PRODUCER.queues) == [in_spec(key) for key in PRODUCER_SPEC["channels"]]
    assert list(WORKER.receives) == list(PRODUCER.sends) == [in_spec("tasks").name]


def test_the_worker_takes_its_numbers_from_the_spec() -> None:
    assert RECEIVE.queue == in_spec("tasks")
    assert RECEIVE.prefetch == OPERATION["bindings"]["amqp"]["x-prefetch"]
    assert RECEIVE.lease_s == OPERATION["x-lease-s"]
    assert RECEIVE.crash_limit == OPERATION["x-crash-limit"]
    assert RECEIVE.dead == in_spec(OPERATION["x-retry"]["deadLetter"])
    assert (
        RECEIVE.dead_message_type == COMMON["components"]["messages"]["deadLetter"]["bindings"]["amqp"]["messageType"]
    )
    assert RECEIVE.result_max_bytes == SCHEMAS["Result"]["x-max-bytes"]
    assert RECEIVE.time_limits_s == {
        schema["properties"]["kind"]["const"]: schema["x-time-limit-s"]
        for schema in SCHEMAS.values()
        if "x-time-limit-s" in schema
    }
    assert len(RECEIVE.time_limits_s) == len(SCHEMAS["Task"]["properties"]["payload"]["oneOf"])
    assert WORKER.version == WORKER_SPEC["info"]["version"]


def test_the_rungs_go_from_short_to_long_with_the_delays_of_their_ttl() -> None:
    ttls = sorted(in_spec(key).arguments["x-message-ttl"] for key in OPERATION["x-retry"]["rungs"])
    assert [rung.delay_s * 1000 for rung in RECEIVE.rungs] == ttls
    assert all(rung.queue.arguments["x-message-ttl"] == rung.delay_s * 1000 for rung in RECEIVE.rungs)
    assert RECEIVE.max_attempts == len(ttls) + 1
    shuffled = deepcopy(DOCUMENT)
    operation(shuffled)["x-retry"]["rungs"].reverse()
    assert contract.read(shuffled).receives[RECEIVE.queue.name].rungs == RECEIVE.rungs


@pytest.mark.parametrize("message", [RECEIVE.message, SEND.message], ids=["received", "sent"])
def test_both_sides_read_the_same_message(message: contract.Message) -> None:
    task = COMMON["components"]["messages"]["task"]
    assert (message.name, message.content_type) == (task["name"], task["contentType"])
    assert (message.type, message.max_bytes) == (task["bindings"]["amqp"]["messageType"], task["x-max-bytes"])
    assert message.schema["components"]["schemas"]["Task"] == SCHEMAS["Task"]
    assert message.headers_schema["components"]["schemas"]["TaskHeaders"] == SCHEMAS["TaskHeaders"]


def operation(document: dict[str, Any]) -> Any:
    (found,) = document["operations"].values()
    return found


def task_message(document: dict[str, Any]) -> Any:
    return operation(document)["channel"]["messages"]["task"]


READ_FROM_IT: dict[str, tuple[Callable[[Any], None], Callable[[contract.Receive], Any], Any]] = {
    "prefetch": (lambda d: operation(d)["bindings"]["amqp"].update({"x-prefetch": 7}), lambda r: r.prefetch, 7),
    "lease": (lambda d: operation(d).update({"x-lease-s": 99}), lambda r: r.lease_s, 99.0),
    "crash limit": (lambda d: operation(d).update({"x-crash-limit": 8}), lambda r: r.crash_limit, 8),
    "size limit": (lambda d: task_message(d).update({"x-max-bytes": 9}), lambda r: r.message.max_bytes, 9),
    "rungs": (lambda d: operation(d)["x-retry"].update(rungs=["retry5s"]), lambda r: [g.delay_s for g in r.rungs], [5]),
    "dead": (lambda d: operation(d)["x-retry"].update(deadLetter="tasks"), lambda r: r.dead.name, RECEIVE.queue.name),
    "time limits": (
        lambda d: d["components"]["schemas"]["Simulate"].pop("x-time-limit-s"),
        lambda r: sorted(r.time_limits_s),
        ["checksum"],
    ),
    "result": (
        lambda d: d["components"]["schemas"]["Result"].update({"x-max-bytes": 9}),
        lambda r: r.result_max_bytes,
        9,
    ),
}


@pytest.mark.parametrize(("change", "look", "expected"), READ_FROM_IT.values(), ids=READ_FROM_IT)
def test_a_changed_contract_changes_what_is_read(
    change: Callable[[Any], None], look: Callable[[contract.Receive], Any], expected: Any
) -> None:
    changed = deepcopy(DOCUMENT)
    change(changed)
    (receive,) = contract.read(changed).receives.values()
    assert look(receive) == expected
    assert look(RECEIVE) != expected


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Makes a package with this contract.json, and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(text: str) -> str:
        name = f"made_for_{tmp_path.name}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "contract.json").write_text(text)
        return name

    yield make
    contract.load.cache_clear()


NEEDED: dict[str, Callable[[Any], Any]] = {
    "x-prefetch": lambda d: operation(d)["bindings"]["amqp"],
    "x-retry": operation,
    "x-result": operation,
    "x-lease-s": operation,
    "x-crash-limit": operation,
    "deadLetter": lambda d: operation(d)["x-retry"],
    "rungs": lambda d: operation(d)["x-retry"],
    "retry1s": lambda d: d["channels"],
    "dead": lambda d: d["channels"],
    "x-max-bytes": task_message,
    "contentType": task_message,
    "messageType": lambda d: task_message(d)["bindings"]["amqp"],
    "headers": task_message,
    "durable": lambda d: d["channels"]["dead"]["bindings"]["amqp"]["queue"],
    "autoDelete": lambda d: d["channels"]["tasks"]["bindings"]["amqp"]["queue"],
    "arguments": lambda d: operation(d)["channel"]["bindings"]["amqp"]["queue"],
    "x-message-ttl": lambda d: d["channels"]["retry5s"]["bindings"]["amqp"]["queue"]["arguments"],
    "version": lambda d: d["info"],
    "schemas": lambda d: d["components"],
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_the_contract_does_not_state_is_named(name: str, package: Callable[[str], str]) -> None:
    lacking = deepcopy(DOCUMENT)
    del NEEDED[name](lacking)[name]
    made = package(json.dumps(lacking))
    with pytest.raises(ContractInvalid, match=f"^{made}: the contract does not state '{name}'; see spec/$"):
        contract.load(made)


def test_a_contract_that_is_missing_or_broken_says_how_to_make_one(package: Callable[[str], str]) -> None:
    made = package("{")
    with pytest.raises(ContractInvalid, match=f"^{made}: no readable contract.json .*make generate"):
        contract.load(made)
    with pytest.raises(ContractInvalid, match=r"^workqueue: no readable contract.json .*make generate"):
        contract.load("workqueue")


@pytest.mark.parametrize("messages", [{}, {"a": {}, "b": {}}])
def test_an_operation_needs_exactly_one_message_and_is_told_so(
    messages: dict[str, Any], package: Callable[[str], str]
) -> None:
    changed = deepcopy(DOCUMENT)
    operation(changed)["channel"]["messages"] = messages
    with pytest.raises(ContractInvalid, match="message") as caught:
        contract.load(package(json.dumps(changed)))
    assert "no readable" not in str(caught.value)


def test_a_ladder_without_rungs_is_refused() -> None:
    changed = deepcopy(DOCUMENT)
    operation(changed)["x-retry"]["rungs"] = []
    with pytest.raises((ContractInvalid, KeyError)):
        contract.read(changed)


# --- no message is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", WORKER.queues, ids=lambda queue: queue.name)
def test_every_queue_outlives_broker_and_clients(queue: Queue) -> None:
    assert queue.arguments["x-queue-type"] == "quorum"
    assert (queue.durable, queue.exclusive, queue.auto_delete) == (True, False, False)
    assert not {"x-expires", "x-max-length", "x-max-length-bytes"} & set(queue.arguments)


@pytest.mark.parametrize(
    "queue", [RECEIVE.queue, *(rung.queue for rung in RECEIVE.rungs)], ids=lambda queue: queue.name
)
def test_what_leaves_a_queue_by_itself_arrives_where_it_is_meant_to(queue: Queue) -> None:
    """at-least-once needs reject-publish; at-most-once, the default, loses what the target can't take just then."""
    target = RECEIVE.dead if queue == RECEIVE.queue else RECEIVE.queue
    assert queue.arguments["x-dead-letter-exchange"] == ""
    assert queue.arguments["x-dead-letter-routing-key"] == target.name
    assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments["x-overflow"] == "reject-publish"


def test_only_the_rungs_end_messages_by_time_and_dead_letters_stay() -> None:
    assert "x-message-ttl" not in RECEIVE.queue.arguments
    assert set(RECEIVE.dead.arguments) == {"x-queue-type"}
    assert RECEIVE.dead in WORKER.queues
    assert all(rung.queue in WORKER.queues for rung in RECEIVE.rungs)
    delays = [rung.delay_s for rung in RECEIVE.rungs]
    assert delays == sorted(set(delays))


def test_the_workers_give_up_on_a_deadly_task_before_the_broker_does() -> None:
    assert RECEIVE.crash_limit < RECEIVE.queue.arguments["x-delivery-limit"]


def test_what_is_sent_is_stored_and_must_be_routed() -> None:
    assert SEND.persistent
    assert SEND.mandatory
    assert SEND.queue == RECEIVE.queue


def test_a_task_whose_every_attempt_failed_still_fits_into_its_headers() -> None:
    """The history that a task may have is that of every attempt, and of every crash."""
    story = DOCUMENT["components"]["schemas"]["Story"]["properties"]["x-attempts"]
    assert story["maxItems"] >= RECEIVE.max_attempts + RECEIVE.crash_limit


# --- nothing of the contract is written in code -----------------------------------------------------------------------

SCRIPTS = sorted([*ROOT.glob("workqueue/**/*.py"), *ROOT.glob("main-*.py")])
TTLS = {queue.arguments["x-message-ttl"] for queue in WORKER.queues if "x-message-ttl" in queue.arguments}
NAMES = {queue.name for queue in WORKER.queues}
# The numbers that can be nothing else. What a 1 or a 1000 means can't be seen; changed contracts are for those.
NUMBERS = (TTLS | set(RECEIVE.time_limits_s.values()) | {RECEIVE.message.max_bytes, RECEIVE.result_max_bytes}) - {1000}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_or_number_of_the_contract_is_written_in_code(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.keyword) and node.arg in ("prefetch", "prefetch_count", "crash_limit", "lease_s"):
            assert not isinstance(node.value, ast.Constant), f"line {node.value.lineno}"
        if not isinstance(node, ast.Constant):
            continue
        if isinstance(node.value, str):
            assert not any(name in node.value for name in NAMES), f"line {node.lineno}: {node.value!r}"
            assert node.value not in WORKER_SPEC["channels"].keys() - {"dead", "tasks"}, f"line {node.lineno}"
        elif isinstance(node.value, (int, float)):
            assert node.value not in NUMBERS, f"line {node.lineno}: {node.value}"


def test_the_scan_of_the_code_sees_something() -> None:
    assert len(SCRIPTS) > 15
    assert len(NAMES) == len(WORKER.queues)
    assert len(NUMBERS) >= 6
