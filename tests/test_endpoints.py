"""An operation is found by its id, whatever Python can make of that: a worker of a compiled contract does a task."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.test_generator import with_a_dotted_operation
from tests.test_lint import QUIET, changed, compiles, problems, project
from workqueue import TaskContext, contract
from workqueue.compiler import endpoints, generate
from workqueue.compiler.resolve import resolve
from workqueue.testing import run_task

IDS = ("processTask", "do-bill", "Bill", "BILL", "billing/do", "onHTTPJob2", "do.a-bill", "_bill", "bill_", "type")


def named(document: Any, name: str, old: str = "bill") -> Any:
    """The document with this id in the place of an operation's old one."""
    operations = document["operations"]
    document["operations"] = {name if key == old else key: operation for key, operation in operations.items()}
    return document


@contextmanager
def imported(folder: Path) -> Iterator[Any]:
    """The generated package of a compiled project, under its own name."""
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("made.billing")
    finally:
        sys.path.remove(str(folder))
        contract.load.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "made"]:
            del sys.modules[name]


@QUIET
@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
async def test_a_worker_does_the_tasks_of_an_operation_whatever_its_id_is(name: str, tmp_path: Path) -> None:
    document = named(named(changed(lambda _: None), name), "sendBill" if name != "Bill" else "order-It", "order")
    generate.build(project(tmp_path, document), tmp_path / "made")
    with imported(tmp_path) as package:
        models = package.messages.json

        async def handle(task: Any, context: TaskContext[None]) -> Any:
            return models.Receipt(number=task.payload.pages)

        result = await run_task(package.Application, handle, models.Print(kind="print", pages=7))
        assert result.number == 7


ONE_NAME = [("do_bill", "do-bill"), ("doBill", "do_bill"), ("do.bill", "do/bill"), ("do.bill", "do_bill")]
SAID = {
    **{f"{one} and {other}": (one, other, "would have the same name in Python") for one, other in ONE_NAME},
    "one within the other": ("do", "do.bill", "'do.bill' would be a part of 'do'"),
    "one around the other": ("do.it.bill", "do-it", None),
    "the other within the one": ("do.it.bill", "do.it", "'do.it.bill' would be a part of 'do.it'"),
    "the router's own name": ("bill", "consumer", "ConsumerRouter of their own"),
    "the other router's own name": ("bill", "PRODUCER", "ProducerRouter of their own"),
}


@pytest.mark.parametrize(("one", "other", "said"), SAID.values(), ids=SAID)
def test_two_operations_that_would_be_one_in_python_are_refused(
    one: str, other: str, said: str | None, tmp_path: Path
) -> None:
    document = named(named(changed(with_a_dotted_operation), one), other, "orders.place")
    lines = problems(project(tmp_path, document))
    assert len(lines) == (said is not None), lines
    assert all(str(said) in line and "#/operations/" in line for line in lines)


def test_an_operation_that_is_sent_counts_among_those_of_a_name(tmp_path: Path) -> None:
    (line,) = problems(project(tmp_path, named(named(changed(lambda _: None), "do-bill"), "do_bill", "order")))
    assert "#/operations/do_bill: 'do_bill' and 'do-bill' would have the same name in Python" in line


@compiles
@pytest.mark.parametrize(("name", "other"), [("__bill", "order2"), ("a__b.x", "a.b.y")])
def test_an_id_that_the_generator_makes_nothing_of_is_refused(name: str, other: str, tmp_path: Path) -> None:
    document = named(named(changed(with_a_dotted_operation), name), other, "orders.place")
    with pytest.raises(generate.SpecError) as caught:
        generate.build(project(tmp_path, document), tmp_path / "made")
    (line,) = caught.value.problems
    assert line.endswith(f"#/operations/{name}: the generator makes no endpoint of this id; rename it")


def test_a_router_that_gives_another_operation_for_an_id_is_noticed(tmp_path: Path) -> None:
    resolved = resolve(project(tmp_path) / "spec/billing.asyncapi.yaml", tmp_path)

    def router(*_: object) -> Any:
        operation = SimpleNamespace(key="order", action="send")
        return SimpleNamespace(**dict.fromkeys(("bill", "order"), SimpleNamespace(_operation=operation)))

    module: Any = SimpleNamespace(ProducerRouter=router, ConsumerRouter=router)
    (line,) = endpoints.problems(resolved, module)
    assert "operations/bill" in line
