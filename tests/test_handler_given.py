"""A handler that could do no task is refused when the worker starts, before it takes any."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RECEIVE, ROOT
from workqueue.errors import HandlerInvalid, HandlersInvalid
from workqueue.tasks.attempt import check_handler
from workqueue.worker import check


async def one(task: Any) -> None: ...
async def three(task: Any, run: Any, db: Any) -> None: ...
async def named(task: Any, *, run: Any) -> None: ...
def no_parameter() -> None: ...


async def yields(task: Any, run: Any) -> Any:
    yield None


def plain_yields(task: Any, run: Any) -> Any:
    yield None


class Taker:
    def __init__(self, task: Any, run: Any) -> None: ...
    async def __call__(self, task: Any, run: Any) -> None: ...
    async def method(self, task: Any, run: Any) -> None: ...
    async def yields(self, task: Any, run: Any) -> Any:
        yield None


class Yielding:
    async def __call__(self, task: Any, run: Any) -> Any:
        yield None


class Short:
    def __call__(self, task: Any) -> None: ...


REFUSED = {
    "one parameter": (one, "one(task: Any) -> None can't be called with two arguments (too many"),
    "three parameters": (three, "can't be called with two arguments (missing a required argument: 'db')"),
    "a parameter by name only": (named, "can't be called with two arguments"),
    "no parameter": (no_parameter, "can't be called with two arguments"),
    "a coroutine function that yields": (yields, "yields is a generator function"),
    "a function that yields": (plain_yields, "plain_yields is a generator function"),
    "a part of one": (partial(three, db=1, task=2), "can't be called with two arguments"),
    "a part of one that yields": (partial(yields), "is a generator function"),
    "a method that yields": (Taker(1, 2).yields, "Taker.yields is a generator function"),
    "an object that yields": (Yielding(), "is a generator function"),
    "an object that takes one": (Short(), "can't be called with two arguments"),
    "a class": (Taker, "Taker is a class"),
    "a part of a class": (partial(Taker), "Taker is a class"),
    "a method without its object": (Taker.method, "can't be called with two arguments"),
    "nothing": (None, "the handler None is of type NoneType, which can't be called"),
    "a name": ("handle\n", "is of type str, which can't be called"),
}


@pytest.mark.parametrize(("handler", "said"), REFUSED.values(), ids=REFUSED)
def test_what_can_do_no_task_is_refused_in_one_line_with_the_way_out(handler: Any, said: str) -> None:
    with pytest.raises(HandlerInvalid) as refused:
        check_handler(handler)
    assert said in str(refused.value)
    assert "async def handle(task: Task, context: TaskContext)" in str(refused.value)
    assert str(refused.value).isprintable()


def with_a_database(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapped(task: Any, run: Any) -> Any:
        return await function(task, run, "db")

    return wrapped


ACCEPTED = {
    "a decorated one": with_a_database(three),
    "a part of one": partial(three, db=1),
    "any arguments": lambda *arguments: None,
    "a third with a default": lambda task, run, db=None: None,
    "a method": Taker(1, 2).method,
    "an object": Taker(1, 2),
    "one that is written in C": max,
}


@pytest.mark.parametrize("handler", ACCEPTED.values(), ids=ACCEPTED)
def test_what_can_be_called_with_a_task_and_a_run_is_a_handler(handler: Any) -> None:
    check_handler(handler)


WORKER = """
import sys
from tests.generated.worker import Application
from workqueue.worker import run_worker

async def handle(task): ...

sys.exit(run_worker(Application, {"do_errand": handle, "do_chore": handle}))
"""


def test_a_worker_with_such_a_handler_exits_with_2_before_it_looks_for_a_broker(tmp_path: Path) -> None:
    script = tmp_path / "my-worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AMQP_URI": "amqp://127.0.0.1:1/"}
    command = [sys.executable, str(script), "w"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("my-worker.py: the handler handle(task) can't be called with two arguments")


def test_a_handler_in_the_place_of_a_dict_of_them_is_told_with_the_names_that_it_needs() -> None:
    with pytest.raises(HandlersInvalid, match=r"of type function; give run_worker a dict, {'do_it': \.\.\.}"):
        check(lambda task, context: None, {"do_it": RECEIVE})  # type: ignore[arg-type]


NO_MATCH = 'No overload variant of "run_worker" matches'
CALLS = {
    "as it is": ('{"do_errand": handle, "do_chore": handle}', ""),
    "one is missing": ('{"do_errand": handle}', NO_MATCH),
    "one too many": ('{"do_errand": handle, "do_chore": handle, "do_more": handle}', NO_MATCH),
    "one that returns something else": ('{"do_errand": handle, "do_chore": counts}', NO_MATCH),
    "one that takes something else": ('{"do_errand": takes, "do_chore": handle}', NO_MATCH),
    "some of a lifespan": ('{"do_errand": pooled, "do_chore": plain}, lifespan=texts', ""),
    "one of other resources": ('{"do_errand": pooled, "do_chore": pooled}, lifespan=numbers', NO_MATCH),
    "one of resources that nothing makes": ('{"do_errand": pooled, "do_chore": handle}', NO_MATCH),
    "some of any resources": ('{"do_errand": anything, "do_chore": unnamed}', ""),
    "one that leaves them alone": ('{"do_errand": whichever, "do_chore": handle}', ""),
    "one that leaves those of a lifespan alone": ('{"do_errand": whichever, "do_chore": pooled}, lifespan=texts', ""),
}
IN_MEMORY = ['{"do_errand": pooled, "do_chore": plain}', "VARIABLE", "DECLARED"]
TYPED = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from tests.generated.worker import Application
from tests.generated.worker.handlers import Handlers, run_worker
from tests.generated.worker.messages.json import NapResult, OddResult, Task
from workqueue import Settings, TaskContext
from workqueue.testing import MemoryQueue

async def handle(task: Task, context: TaskContext[None]) -> NapResult:
    return NapResult(kind="nap", attempt=context.attempt)

async def counts(task: Task, context: TaskContext[None]) -> int:
    return 1

async def takes(task: NapResult, context: TaskContext[None]) -> NapResult:
    return task

async def pooled(task: Task, context: TaskContext[str]) -> NapResult:
    return NapResult(kind="nap", attempt=len(context.resources))

async def whichever(task: Task, context: TaskContext[object]) -> None: ...

async def anything(task: Task, context: TaskContext[Any]) -> None: ...

async def unnamed(task: Task, context: TaskContext) -> None: ...  # type: ignore[type-arg]

def plain(task: Task, context: TaskContext[str]) -> OddResult:
    return OddResult(kind="odd", way=context.resources)

@asynccontextmanager
async def numbers(settings: Settings) -> AsyncIterator[int]:
    yield 1

@asynccontextmanager
async def texts(settings: Settings) -> AsyncIterator[str]:
    yield "is killed"

VARIABLE = {"do_errand": pooled, "do_chore": plain}
DECLARED: Handlers[str] = {"do_errand": pooled, "do_chore": plain}

"""


def typed(folder: Path, lines: list[str]) -> str:
    """What a type checker says of these lines."""
    (folder / "typed.py").write_text(TYPED + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(folder / "typed.py")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.mark.broker  # a type checker takes its seconds
def test_a_type_checker_holds_the_handlers_to_the_contract(tmp_path: Path) -> None:
    lines = [f"run_worker(Application, {call})" for call, _ in CALLS.values()]
    said = typed(tmp_path, lines)
    first = TYPED.count("\n") + 1
    for number, (call, error) in enumerate(CALLS.values(), first):
        found = [line for line in said.splitlines() if f"typed.py:{number}: error" in line]
        assert bool(found) == bool(error), (call, said)
        assert error in "".join(found), (call, said)


@pytest.mark.broker
def test_a_type_checker_lets_a_queue_in_memory_have_the_handlers_however_they_are_written(tmp_path: Path) -> None:
    lines = [f"MemoryQueue(Application, {handlers}, None)" for handlers in IN_MEMORY]
    assert typed(tmp_path, lines).startswith("Success")
