"""What the runtime reads out of a contract is what its documents say: the tests' own, which is not spec/."""

import ast
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT
from workqueue import contract
from workqueue.amqp.copies import DROPPED, STORY
from workqueue.contract import Queue
from workqueue.errors import ContractInvalid
from workqueue.tasks import story

COMMON = yaml.safe_load((ROOT / "tests/spec/common.asyncapi.yaml").read_text())
WORKER_SPEC = yaml.safe_load((ROOT / "tests/spec/worker.asyncapi.yaml").read_text())
PRODUCER_SPEC = yaml.safe_load((ROOT / "tests/spec/producer.asyncapi.yaml").read_text())
DOCUMENT: dict[str, Any] = json.loads((ROOT / "tests/generated/worker/contract.json").read_text())

WORKER, PRODUCER = contract.load("tests.generated.worker"), contract.load("tests.generated.producer")
RECEIVE, SEND = WORKER.receives["errands"], PRODUCER.sends["errands"]
OPERATIONS = WORKER_SPEC["operations"]
SCHEMAS = COMMON["components"]["schemas"]
each_received = pytest.mark.parametrize("receive", WORKER.receives.values(), ids=[*OPERATIONS])


def named(route: dict[str, str]) -> str:
    """The key of the channel that a $ref leads to."""
    return route["$ref"].rpartition("/")[2]


def in_spec(channel: str) -> Queue:
    queue = COMMON["channels"][channel]["bindings"]["amqp"]["queue"]
    return Queue(queue["name"], queue["durable"], queue["exclusive"], queue["autoDelete"], queue["arguments"])


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_queues_are_those_of_the_spec_with_all_their_arguments() -> None:
    assert [queue.name for queue in WORKER.queues] == [in_spec(key).name for key in WORKER_SPEC["channels"]]
    assert list(WORKER.queues) == [in_spec(key) for key in WORKER_SPEC["channels"]]
    assert list(PRODUCER.queues) == [in_spec(key) for key in PRODUCER_SPEC["channels"]]
    assert list(WORKER.receives) == list(PRODUCER.sends) == [in_spec(key).name for key in ("errands", "chores")]


@each_received
def test_the_worker_takes_its_numbers_from_the_spec(receive: contract.Receive) -> None:
    operation = OPERATIONS[receive.operation]
    assert receive.queue == in_spec(named(operation["channel"]))
    assert receive.prefetch == operation["bindings"]["amqp"]["x-prefetch"]
    assert receive.lease_s == operation["x-lease-s"]
    assert receive.crash_limit == operation["x-crash-limit"]
    assert receive.dead == in_spec(named(operation["x-deadLetter"]["channel"]))
    assert (
        receive.dead_message_type == COMMON["components"]["messages"]["deadLetter"]["bindings"]["amqp"]["messageType"]
    )
    assert receive.result_max_bytes == SCHEMAS["Result"]["x-max-bytes"]
    assert receive.time_limits_s == {
        schema["properties"]["kind"]["const"]: schema["x-time-limit-s"]
        for schema in SCHEMAS.values()
        if "x-time-limit-s" in schema
    }
    assert len(receive.time_limits_s) == len(SCHEMAS["Task"]["properties"]["payload"]["oneOf"])
    assert receive.kinds == receive.time_limits_s.keys()
    assert WORKER.version == WORKER_SPEC["info"]["version"]


@each_received
def test_the_rungs_go_from_short_to_long_with_the_delays_of_their_ttl(receive: contract.Receive) -> None:
    retry = OPERATIONS[receive.operation]["x-retry"]
    ttls = [in_spec(named(route)).arguments["x-message-ttl"] for route in retry["channels"]]
    assert [rung.delay_s * 1000 for rung in receive.rungs] == ttls
    assert all(rung.queue.arguments["x-message-ttl"] == rung.delay_s * 1000 for rung in receive.rungs)
    assert ttls == sorted(ttls)
    assert receive.max_attempts == retry["maxAttempts"] == len(ttls) + 1


def test_each_operation_of_the_spec_is_there_by_its_id() -> None:
    assert [one.operation for one in WORKER.receives.values()] == [*OPERATIONS]
    assert [one.operation for one in PRODUCER.sends.values()] == [*PRODUCER_SPEC["operations"]]


@pytest.mark.parametrize("message", [RECEIVE.message, SEND.message], ids=["received", "sent"])
def test_a_message_says_what_its_envelope_is_and_what_its_result(message: contract.Message) -> None:
    task = SCHEMAS["Task"]
    assert (message.fields, message.required) == (frozenset(task["properties"]), frozenset(task["required"]))
    assert message.result_schema is not None
    assert message.result_schema["components"]["schemas"]["Result"] == SCHEMAS["Result"]
    assert message.result_max_bytes == SCHEMAS["Result"]["x-max-bytes"]


@pytest.mark.parametrize("message", [RECEIVE.message, SEND.message], ids=["received", "sent"])
def test_both_sides_read_the_same_message(message: contract.Message) -> None:
    task = COMMON["components"]["messages"]["task"]
    assert (message.name, message.content_type) == (task["name"], task["contentType"])
    assert (message.type, message.max_bytes) == (task["bindings"]["amqp"]["messageType"], task["x-max-bytes"])
    assert message.schema["components"]["schemas"]["Task"] == SCHEMAS["Task"]
    assert message.headers_schema["components"]["schemas"]["TaskHeaders"] == SCHEMAS["TaskHeaders"]


def test_the_contract_states_every_header_that_the_runtime_writes() -> None:
    assert SCHEMAS["TaskHeaders"]["properties"].keys() == {*story.ON_TASK, story.REQUEST}
    assert SCHEMAS["Story"]["properties"].keys() == story.ON_LETTER.keys()
    assert {DROPPED, STORY} < story.ON_TASK.keys()


def operation(document: dict[str, Any]) -> Any:
    return document["operations"][RECEIVE.operation]


def task_message(document: dict[str, Any]) -> Any:
    return document["channels"]["errands"]["messages"]["task"]


READ_FROM_IT: dict[str, tuple[Callable[[Any], None], Callable[[contract.Receive], Any], Any]] = {
    "prefetch": (lambda d: operation(d)["bindings"]["amqp"].update({"x-prefetch": 7}), lambda r: r.prefetch, 7),
    "lease": (lambda d: operation(d).update({"x-lease-s": 99}), lambda r: r.lease_s, 99.0),
    "crash limit": (lambda d: operation(d).update({"x-crash-limit": 8}), lambda r: r.crash_limit, 8),
    "size limit": (lambda d: task_message(d).update({"x-max-bytes": 9}), lambda r: r.message.max_bytes, 9),
    "delays": (
        lambda d: operation(d)["x-retry"].update(channels=[{"$ref": "#/channels/wait210ms"}]),
        lambda r: [rung.delay_s for rung in r.rungs],
        [0.21],
    ),
    "dead": (
        lambda d: d["channels"]["buried"]["bindings"]["amqp"]["queue"].update(name="other"),
        lambda r: r.dead.name,
        "other",
    ),
    "time limits": (
        lambda d: d["components"]["schemas"]["Nap"].pop("x-time-limit-s"),
        lambda r: sorted(map(str, r.time_limits_s)),
        sorted(map(str, RECEIVE.time_limits_s.keys() - {"nap"})),
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
    assert look(contract.read(changed).receives[RECEIVE.queue.name]) == expected
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
    "x-result": task_message,
    "x-deadLetter": operation,
    "x-lease-s": operation,
    "x-crash-limit": operation,
    "channels": lambda d: operation(d)["x-retry"],
    "wait110ms": lambda d: d["channels"],
    "buried": lambda d: d["channels"],
    "x-max-bytes": task_message,
    "contentType": task_message,
    "messageType": lambda d: task_message(d)["bindings"]["amqp"],
    "headers": task_message,
    "durable": lambda d: d["channels"]["buried"]["bindings"]["amqp"]["queue"],
    "autoDelete": lambda d: d["channels"]["errands"]["bindings"]["amqp"]["queue"],
    "arguments": lambda d: d["channels"]["errands"]["bindings"]["amqp"]["queue"],
    "x-message-ttl": lambda d: d["channels"]["wait210ms"]["bindings"]["amqp"]["queue"]["arguments"],
    "version": lambda d: d["info"],
    "schemas": lambda d: d["components"],
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_the_contract_does_not_state_is_named(name: str, package: Callable[[str], str]) -> None:
    lacking = deepcopy(DOCUMENT)
    del NEEDED[name](lacking)[name]
    made = package(json.dumps(lacking))
    with pytest.raises(ContractInvalid, match=f"^{made}: the contract does not state '{name}'; run `make generate`"):
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
    changed["channels"]["errands"]["messages"] = messages
    with pytest.raises(ContractInvalid, match="message") as caught:
        contract.load(package(json.dumps(changed)))
    assert "no readable" not in str(caught.value)


def test_no_delay_at_all_is_refused() -> None:
    changed = deepcopy(DOCUMENT)
    operation(changed)["x-retry"]["channels"] = []
    with pytest.raises(ContractInvalid, match="no channels in x-retry"):
        contract.read(changed)


def test_two_operations_on_one_queue_are_refused_and_none_replaces_the_other() -> None:
    changed = deepcopy(DOCUMENT)
    changed["operations"]["again"] = operation(DOCUMENT)
    with pytest.raises(ContractInvalid, match="do_errand and again are on the same queue"):
        contract.read(changed)


@pytest.mark.parametrize("document", [{}, [], None, {"channels": [], "components": {}, "operations": 3}])
def test_what_is_no_contract_at_all_is_one_line(document: Any, package: Callable[[str], str]) -> None:
    with pytest.raises(ContractInvalid) as caught:
        contract.load(package(json.dumps(document)))
    assert "make generate" in str(caught.value)


# --- no message is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", WORKER.queues, ids=lambda queue: queue.name)
def test_every_queue_outlives_broker_and_clients(queue: Queue) -> None:
    assert queue.arguments["x-queue-type"] == "quorum"
    assert (queue.durable, queue.exclusive, queue.auto_delete) == (True, False, False)
    assert not {"x-expires", "x-max-length", "x-max-length-bytes"} & set(queue.arguments)


@pytest.mark.parametrize(
    ("queue", "target"),
    [
        (queue, receive.dead if queue == receive.queue else receive.queue)
        for receive in WORKER.receives.values()
        for queue in (receive.queue, *(rung.queue for rung in receive.rungs))
    ],
    ids=lambda queue: queue.name,
)
def test_what_leaves_a_queue_by_itself_arrives_where_it_is_meant_to(queue: Queue, target: Queue) -> None:
    """at-least-once needs reject-publish; at-most-once, the default, loses what the target can't take just then."""
    assert queue.arguments["x-dead-letter-exchange"] == ""
    assert queue.arguments["x-dead-letter-routing-key"] == target.name
    assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments["x-overflow"] == "reject-publish"


@each_received
def test_only_the_rungs_end_messages_by_time_and_dead_letters_stay(receive: contract.Receive) -> None:
    assert "x-message-ttl" not in receive.queue.arguments
    assert set(receive.dead.arguments) == {"x-queue-type", "x-delivery-limit"}
    assert receive.dead.arguments["x-delivery-limit"] >= 1_000_000  # each look at a dead letter is a delivery
    assert receive.dead in WORKER.queues
    assert all(rung.queue in WORKER.queues for rung in receive.rungs)
    delays = [rung.delay_s for rung in receive.rungs]
    assert delays == sorted(set(delays))


@each_received
def test_the_workers_give_up_on_a_deadly_task_before_the_broker_does(receive: contract.Receive) -> None:
    assert receive.crash_limit < receive.queue.arguments["x-delivery-limit"]


@pytest.mark.parametrize("send", PRODUCER.sends.values(), ids=[*PRODUCER_SPEC["operations"]])
def test_what_is_sent_is_stored_and_must_be_routed(send: contract.Send) -> None:
    assert send.persistent
    assert send.mandatory
    assert send.queue == WORKER.receives[send.queue.name].queue


def test_a_task_whose_every_attempt_failed_still_fits_into_its_headers() -> None:
    """The history that a task may have is that of every attempt, and of every crash."""
    story = DOCUMENT["components"]["schemas"]["Story"]["properties"]["x-attempts"]
    assert story["maxItems"] >= RECEIVE.max_attempts + RECEIVE.crash_limit


# --- nothing of the contract is written in code -----------------------------------------------------------------------

SCRIPTS = sorted([*ROOT.glob("workqueue/**/*.py"), *ROOT.glob("main-*.py")])
TTLS = {queue.arguments["x-message-ttl"] for queue in WORKER.queues if "x-message-ttl" in queue.arguments}
NAMES = {queue.name for queue in WORKER.queues}
# The numbers that can be nothing else. What a 1 means can't be seen; changed contracts are for those.
NUMBERS = TTLS | set(RECEIVE.time_limits_s.values()) | {RECEIVE.message.max_bytes, RECEIVE.result_max_bytes}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_or_number_of_the_contract_is_written_in_code(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.keyword) and node.arg in ("prefetch", "prefetch_count", "crash_limit", "lease_s"):
            assert not isinstance(node.value, ast.Constant), f"line {node.value.lineno}"
        if not isinstance(node, ast.Constant):
            continue
        if isinstance(node.value, str):
            assert not any(name in node.value for name in NAMES), f"line {node.lineno}: {node.value!r}"
            assert node.value not in WORKER_SPEC["channels"], f"line {node.lineno}"
        elif isinstance(node.value, (int, float)):
            assert node.value not in NUMBERS, f"line {node.lineno}: {node.value}"


def test_the_scan_of_the_code_sees_something() -> None:
    assert len(SCRIPTS) > 15
    assert len(NAMES) == len(WORKER.queues)
    assert len(NUMBERS) >= 6
