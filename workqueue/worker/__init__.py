"""A worker process: its flags, its handlers, and the exit code it ends with. `serving` has what lies between."""

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from workqueue import contract
from workqueue.application import package_of
from workqueue.contract import Receive
from workqueue.errors import ContractInvalid, HandlersDiffer, HandlersInvalid, SettingInvalid
from workqueue.lifecycle import Flags, count, load_settings, prepare, run
from workqueue.observe.recycle import Recycle
from workqueue.observe.tracing import open_tracing, takes_context
from workqueue.settings import Settings
from workqueue.tasks.attempt import Handler, check_handler
from workqueue.tasks.events import Listener
from workqueue.worker.crew import Job
from workqueue.worker.ending import Ending
from workqueue.worker.serving import Serving

R = TypeVar("R")


def run_worker(
    application: type[Any],
    handlers: Mapping[str, Handler[Any, R]],
    *,
    about: str | None = None,
    lifespan: Callable[[Settings], AbstractAsyncContextManager[R]] | None = None,
    variables: Collection[str] = (),
) -> int:
    """Run the handlers of a generated application's receive operations until SIGTERM or SIGINT.

    `handlers` has one for each, by the operation's name in the contract. `lifespan` makes, of the settings, a context
    manager that is entered before the first task is taken and left after the last one: what it gives is each
    handler's `context.resources`. `about` is what --help says; `variables` are the names of the script's own
    WORKQUEUE_ variables.

    Returns the exit code. It is 2 for a handler that is missing, or one too many, or that can do no task; and for a
    lifespan that raises when it is entered, unless that is a WorkQueueError with a code of its own.
    """
    tell = prepare()
    flags = Flags(about)
    flags.add_argument(
        "id", metavar="ID", type=_name, help="this worker's name in logs, results and the broker's lists"
    )
    flags.add_argument(
        "--concurrency", type=_concurrency, action="append", default=[], metavar="[OPERATION=]N",
        help="tasks at a time of each operation, or of this one (default 1)",
    )  # fmt: skip
    flags.add_argument(
        "--only", action="append", metavar="OPERATION", help="take tasks of this operation, and not of all"
    )
    flags.add_argument("--max-tasks", type=count, metavar="N", help="drain and exit with 0 after N runs of a handler")
    flags.add_argument("--max-memory", type=count, metavar="MIB", help="the same once it holds so much memory")
    given = flags.parse_args()

    async def work() -> int:
        loaded = contract.load(package_of(application))
        by_name = {receive.operation: receive for receive in loaded.receives.values()}
        check(handlers, by_name)
        counts = _counts(given.concurrency, given.only or list(by_name), by_name)
        settings = load_settings(application, variables)
        jobs = [Job(by_name[name], handlers[name], count) for name, count in counts.items()]
        ending = Ending()
        listener = _traced(tell, settings, given.id, by_name)
        if given.max_tasks or given.max_memory:
            listener = Recycle(listener, ending.set, max_tasks=given.max_tasks, max_mib=given.max_memory)
        return await Serving(given.id, application, loaded, settings, listener, ending).run(jobs, lifespan)

    return run(work, told_early=0)


def check(handlers: Mapping[str, Handler[Any, Any]], by_name: Mapping[str, Receive]) -> None:
    """Whether these handlers are for these operations. Raises ContractInvalid, HandlersInvalid, HandlersDiffer,
    HandlerInvalid."""
    if not by_name:
        raise ContractInvalid("this application receives nothing: its contract has no receive operation")
    if not isinstance(handlers, Mapping):
        raise HandlersInvalid(handlers, by_name)
    if handlers.keys() != by_name.keys():
        raise HandlersDiffer(handlers, by_name)
    for handler in handlers.values():
        check_handler(handler)


def _traced(tell: Listener, settings: Settings, name: str, by_name: Mapping[str, Receive]) -> Listener:
    """The listener, with one in front of it that makes spans, where those are on. Raises as `open_tracing`."""
    tracer = open_tracing(settings, name)
    if tracer is None:
        return tell
    closed = {operation for operation, receive in by_name.items() if not takes_context(receive.message)}
    return tracer.listener(tell, closed, tell_begin=settings.log == "debug")


def _counts(given: Iterable[tuple[str | None, int]], only: Collection[str], known: Collection[str]) -> dict[str, int]:
    """How many tasks at a time of each operation. Raises SettingInvalid."""
    named = [name for name, _ in given if name is not None]
    for flag, names in (("--only", only), ("--concurrency", named)):
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise SettingInvalid(flag, unknown, f"no such receive operation; the contract has {', '.join(known)}")
    left_out = next((name for name in named if name not in only), None)
    if left_out is not None:
        raise SettingInvalid("--concurrency", left_out, "--only leaves that operation out; name it there too")
    counts = dict.fromkeys(only, 1)
    for name, number in sorted(given, key=lambda one: one[0] is not None):  # what is said of one counts for that
        counts |= dict.fromkeys(counts if name is None else [name], number)
    return counts


def _concurrency(text: str) -> tuple[str | None, int]:
    name, given, number = text.rpartition("=")
    return name if given else None, count(number)


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of 1 to 100 printable characters")
    return text
