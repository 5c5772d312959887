"""Which operation sends what an application gives, under which id; and which model its result is of."""

import re
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict

from tests.generated.producer.messages import json as models
from tests.generated.producer.messages.json import Digest, Nap, NapResult, Odd, OddResult, Parcel, Task
from tests.generated.worker.messages import json as worker
from workqueue import contract
from workqueue.amqp.wire import Wire
from workqueue.client.sending import Sender, envelope
from workqueue.codec import Body, Schema
from workqueue.codec.results import ResultReader
from workqueue.contract import Contract, Send
from workqueue.errors import TaskInvalid

LOADED = contract.load("tests.generated.producer")
(SEND, *_) = LOADED.sends.values()
ONE = Contract("1.0.0", "", (), {SEND.queue.name: SEND}, {})
OTHER = replace(SEND, operation="send_other")
TWO = Contract("1.0.0", "", (), {SEND.queue.name: SEND, "other": OTHER}, {})
NAP = Nap(kind="nap", seconds=0.0)


class NoWire:
    """Connects to nothing."""

    def producer(self, send: Send) -> Any:
        return SimpleNamespace()


def sender(loaded: Contract = ONE) -> Sender:
    return Sender(loaded, "tests.generated.producer", cast(Wire, NoWire()))


def test_a_payload_becomes_a_task_with_an_id_of_its_own() -> None:
    first, second = sender().prepare(NAP), sender().prepare(NAP)
    assert first.id != second.id
    assert (first.kind, first.operation) == ("nap", SEND.operation)
    task = Task.model_validate_json(bytes(first.body))
    assert (task.id, task.payload) == (first.id, NAP)
    assert first.digest == second.digest


def test_a_whole_task_is_sent_as_it_is() -> None:
    task = Task(**envelope(), payload=NAP)
    outgoing = sender().prepare(task)
    assert outgoing.id == task.id
    assert Task.model_validate_json(bytes(outgoing.body)) == task
    assert isinstance(outgoing.body, Body)


def test_an_id_may_be_given_for_a_payload_and_not_for_a_task() -> None:
    id = uuid4()
    assert sender().prepare(NAP, task_id=id).id == id
    with pytest.raises(TypeError, match="a Task has its id; give its payload"):
        sender().prepare(Task(**envelope(), payload=NAP), task_id=id)
    with pytest.raises(TypeError, match="a Task has its id; give its payload"):
        sender().keyed(Task(**envelope(), payload=NAP), "key")


def test_a_key_names_the_same_task_for_ever() -> None:
    """The number is what every version must make of these: another one would do such tasks twice."""
    assert sender().keyed(NAP, "order-17") == UUID("4763c56e-1fb5-5acd-8cee-97ee03242f4f")
    others = [
        sender().keyed(NAP, "order-18"), sender().keyed(Digest(kind="digest", text="x"), "order-17"),
        sender(TWO).keyed(NAP, "order-17", to=SEND.operation),
    ]  # fmt: skip
    assert len({sender().keyed(NAP, "order-17"), *others}) == 3


def test_what_could_go_by_several_operations_needs_to_be_told_which() -> None:
    with pytest.raises(TaskInvalid, match=f"Nap: it may be any of {SEND.operation}, send_other: say which"):
        sender(TWO).prepare(NAP)
    assert sender(TWO).prepare(NAP, to="send_other").operation == "send_other"
    with pytest.raises(TaskInvalid, match="to='nobody': no such send operation; the contract has"):
        sender(TWO).prepare(NAP, to="nobody")


def test_a_dict_goes_by_the_operation_that_sends_its_kind() -> None:
    values = {"kind": "nap", "seconds": 0.0}
    two = sender(TWO)
    with pytest.raises(TaskInvalid, match=f"dict: it may be any of {SEND.operation}, send_other: say which, with to="):
        two.prepare(values)
    two.operations[SEND.operation].kinds.remove("nap")
    assert two.prepare(values).operation == "send_other"
    kinds: list[Any] = ["nonsense", [], None]
    for kind in kinds:
        with pytest.raises(TaskInvalid, match=r"dict: .* sends .*; or say which, with to="):
            two.prepare({"kind": kind})


PARCEL: dict[str, Any] = {
    "kind": "parcel",
    "labels": {"to": "x"},
    "due": "2026-01-02",
    "packed_at": "2026-01-01T00:00:00.5Z",
    "box": {"width": 1, "height": 2.5},
    "stops": ["a"],
    "service": "fast",
}


def test_values_that_are_no_json_yet_are_sent_as_what_their_models_would_write() -> None:
    parcel = Parcel.model_validate(PARCEL)
    written = sender().prepare(parcel).digest
    assert sender().prepare(parcel.model_dump(exclude_unset=True)).digest == written
    assert sender().prepare(PARCEL | {"box": parcel.box, "stops": ("a",)}).digest == written


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": {1: "x", "1": "y"}}, "/payload/labels/1: 'x' would become nothing"),
        ({"labels": {None: "x"}}, "/payload/labels/None: 'x' would become nothing"),
        ({"stops": {"a"}}, "/payload/stops: {'a'} would become ['a']"),
        ({"stops": [b"a"]}, "/payload/stops/0: b'a' would become 'a'"),
        ({"stops": [Decimal("1.10")]}, "/payload/stops/0: Decimal('1.10') would become '1.10'"),
        ({"box": {"width": float("nan"), "height": 1}}, "/payload/box/width: "),
    ],
    ids=repr,
)
def test_what_json_does_not_hold_as_it_is_is_not_sent(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskInvalid, match=re.escape(said)):
        sender().prepare(PARCEL | given)


def test_a_model_of_another_package_is_refused_by_the_names_of_both() -> None:
    theirs = "Nap of tests.generated.worker.messages.json: .*; those of tests.generated.producer.messages.json"
    with pytest.raises(TaskInvalid, match=theirs):
        sender().prepare(worker.Nap(kind="nap", seconds=0.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SimpleNamespace(), "the payload has no JSON: Unable to serialize unknown type: .*SimpleNamespace"),
        (7, "/payload: "),
        ({"kind": "nap", "seconds": -1.0}, "/payload/seconds"),
        ({"kind": "nonsense"}, "/payload"),
        (NapResult(kind="nap", attempt=1), f"NapResult: {SEND.operation} sends Deadly, Digest, Nap, Odd, Parcel"),
        (Nap.model_construct(kind="nap", seconds=-1.0), "/payload/seconds: -1.0 is less than the minimum of 0"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_not_sent(given: object, said: str) -> None:
    with pytest.raises(TaskInvalid, match=said):
        sender().prepare(given)


def test_a_payload_may_be_given_as_plain_values() -> None:
    outgoing = sender().prepare({"kind": "nap", "seconds": 1})
    assert outgoing.digest == sender().prepare(Nap(kind="nap", seconds=1.0)).digest


@pytest.mark.parametrize("result", [NapResult(kind="nap", attempt=2), OddResult(kind="odd", way="returns-none")])
def test_a_result_is_of_the_model_that_the_contract_names_for_it(result: Any) -> None:
    """Odd and OddResult have the same fields."""
    assert ResultReader(SEND, models).read(result.model_dump_json()) == result


def test_of_open_models_a_result_is_of_the_one_that_knows_its_properties() -> None:
    class Short(BaseModel):
        model_config = ConfigDict(extra="allow")
        x: int | None = None

    class Long(BaseModel):
        model_config = ConfigDict(extra="allow")
        x: str | None = None
        y: int

    reader = ResultReader(SEND, models)
    for reader._models in ([Short, Long], [Long, Short]):
        reader._schema = Schema({})
        assert type(reader.read('{"y": 2}')) is Long
        assert type(reader.read('{"x": 2}')) is Short


def test_a_result_that_breaks_the_contract_is_told() -> None:
    with pytest.raises(ValueError, match="attempt"):
        ResultReader(SEND, models).read('{"kind": "nap", "attempt": "first"}')


def test_every_payload_of_the_contract_is_known_by_its_model() -> None:
    (operation,) = sender().operations.values()
    assert {Nap, Odd, Digest, Parcel} <= operation.payloads
