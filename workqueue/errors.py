"""The failures that several modules share, each with its data; what a handler may raise is in `verdicts`.

A failure that reaches a script becomes one line on standard error and the process's exit code.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from uuid import UUID


def escaped(text: str) -> str:
    """The text as one line that changes no terminal: what is not printable is shown as its escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class WorkQueueError(Exception):
    """Base of all failures. Its text is one line: the thing, the value, the way out."""

    exit_code: ClassVar[int] = 1


class SettingInvalid(WorkQueueError):
    """A flag, an environment variable or a setting made in Python has a value that can't be used."""

    exit_code = 2

    def __init__(self, name: str, value: str, way_out: str) -> None:
        super().__init__(f"{name}={value!r}: {way_out}")
        self.name, self.value, self.way_out = name, value, way_out


class ExtraMissing(WorkQueueError):
    """What was asked for needs an extra of this package that is not installed."""

    exit_code = 2

    def __init__(self, what: str, module: str, extra: str) -> None:
        super().__init__(f"{what}: needs {module}, which is not installed; install asyncapi-workqueue[{extra}]")
        self.what, self.module, self.extra = what, module, extra


class UsageInvalid(WorkQueueError):
    """The flags do not say what to do."""

    exit_code = 2

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; see --help")
        self.problem = problem


class InputInvalid(WorkQueueError):
    """What was given to send can't be read, or breaks the contract."""

    exit_code = 2

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem = where, problem


class OutputFailed(WorkQueueError):
    """What was asked for could not be written: the disk is full, for one."""

    exit_code = 2

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(f"{name}: can't be written ({cause})")
        self.name, self.cause = name, cause


class ContractInvalid(WorkQueueError):
    """The contract lacks something the runtime needs, or the broker's queue differs from it."""

    exit_code = 2


class HandlerInvalid(WorkQueueError):
    """What was given to be the worker's handler can't be one."""

    exit_code = 2

    def __init__(self, handler: str, problem: str) -> None:
        super().__init__(
            f"the handler {handler} {problem}; give a function of the task and its context, such as "
            "async def handle(task: Task, context: TaskContext), which returns a result model or None"
        )
        self.handler, self.problem = handler, problem


class HandlersInvalid(WorkQueueError):
    """What was given to be the worker's handlers does not say which one is whose."""

    exit_code = 2

    def __init__(self, given: object, known: Iterable[str]) -> None:
        names = ", ".join(f"{name!r}: ..." for name in known)
        super().__init__(f"the handlers are of type {type(given).__name__}; give run_worker a dict, {{{names}}}")


class HandlersDiffer(WorkQueueError):
    """A worker's handlers are not those of its contract's receive operations."""

    exit_code = 2

    def __init__(self, given: Iterable[str], known: Iterable[str]) -> None:
        super().__init__(
            f"the handlers are for {_listed(given)}, and the contract's receive operations are {_listed(known)}; "
            "give run_worker a handler for each, by these names"
        )
        self.given, self.known = tuple(given), tuple(known)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


class LifespanFailed(WorkQueueError):
    """What was given to be opened before the first task could not be, or ended while it was needed."""

    exit_code = 2

    def __init__(self, cause: str) -> None:
        super().__init__(f"the lifespan failed: {' '.join(cause.split())}")
        self.cause = cause


class ThreadsMissing(WorkQueueError):
    """A client that blocks has its connections in a thread, and here no thread would run."""

    exit_code = 2

    def __init__(self, why: str) -> None:
        super().__init__(f"SyncClient needs threads: {why}")
        self.why = why


class LedgerDiffers(ContractInvalid):
    """Others work on the same queue with another ledger: each task could be done once by each side. `since`: with this
    process's before."""

    def __init__(self, queue: str, place: str, *, since: bool = False) -> None:
        way_out = "where it was made anew, or is a copy, stop the others and wait for 30 s"
        if since:  # and whoever has opened it since has the other one
            way_out = "where that was replaced since it was opened, open a new client, or restart the process"
        super().__init__(
            f"queue {queue!r} is worked on with another ledger than this process's, {place}; give all of them the same "
            f"LEDGER_URL; {way_out}"
        )
        self.queue, self.place = queue, place


class BrokerUnreachable(WorkQueueError):
    """No broker of AMQP_URI could be used for as long as was allowed."""

    exit_code = 3

    def __init__(
        self, tried: str, cause: str, way_out: str = "check AMQP_URI, or start one: export AMQP_URI=$(make -s broker)"
    ) -> None:
        super().__init__(f"no broker: {tried}: {cause}; {way_out}")
        self.tried, self.cause, self.way_out = tried, cause, way_out


class BrokerRefused(BrokerUnreachable):
    """A broker answered, and refused for good what was asked: the login, the vhost, one connection more, a queue."""

    def __init__(self, tried: str, code: int, text: str, way_out: str) -> None:
        super().__init__(tried, f"{text} ({code})", way_out)
        self.args = (f"{tried}: {self.cause}; {way_out}",)
        self.code, self.text = code, text


class LedgerUnreachable(WorkQueueError):
    """The ledger could not be opened. A cause with DISK_FULL has its way out, and no other one helps."""

    exit_code = 3
    DISK_FULL: ClassVar = "is full, make room there"

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(f"no ledger: {url}: {cause}{'' if self.DISK_FULL in cause else '; check LEDGER_URL'}")
        self.url, self.cause = url, cause


class LedgerClosed(WorkQueueError):
    """The ledger was moved to another one, or is being filled from one: nobody may work with it."""

    exit_code = 2

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"the ledger {place} {why}")
        self.place, self.why = place, why


class LedgerLost(WorkQueueError):
    """The ledger is not the one any more that this process opened: what it recorded may be gone, so it can't go on."""

    exit_code = 3

    def __init__(self, place: str, cause: str, way_out: str = "put back what belongs there, and start again") -> None:
        super().__init__(f"the ledger {place} was lost: {cause}; {way_out}")
        self.place, self.cause = place, cause


class NotSent(WorkQueueError):
    """The broker has not got a message: it refused it (no queue takes it, or a full one did not), or was not asked, see
    `TaskInvalid`."""

    def __init__(self, message_id: str, reason: str) -> None:
        super().__init__(f"{f'task {message_id}' if message_id else 'a task'} was refused: {reason}")
        self.message_id, self.reason = message_id, reason


class TaskInvalid(NotSent):
    """What was to be sent breaks the contract, or belongs to none of its send operations: no broker was asked."""


class IdInvalid(TaskInvalid, ValueError):
    """A text in place of an id that is none."""

    def __init__(self, given: str) -> None:
        NotSent.__init__(self, escaped(given)[:100], "that is no id of a task, which is a UUID")


class NoBroker(NotSent):
    """No connection to a broker, or none of use, for as long as the sending might take: nothing was published."""


class SendUnknown(WorkQueueError):
    """The broker has not confirmed a message in time: it may have it, or not. Sending it again is safe."""

    def __init__(self, message_id: str, waited_s: float, cause: str = "") -> None:
        super().__init__(
            f"task {message_id} was not confirmed within {waited_s:g} s{f' ({cause})' if cause else ''}; "
            "send it again, under the same id"
        )
        self.message_id, self.waited_s = message_id, waited_s


class NotAllSent(WorkQueueError):
    """Of many tasks, some were not sent, or nobody knows.

    `sent` has what is known of each that the broker has confirmed, in the order in which they were given; `refused` and
    `unknown` the failures of the others; without `complete` there may be more that were not tried.
    """

    def __init__(
        self, sent: Sequence[Any], refused: Sequence[NotSent], unknown: Sequence[SendUnknown], *, complete: bool
    ) -> None:
        first = [*unknown, *refused][0]
        super().__init__(
            f"{len(sent)} tasks sent, {len(refused)} not sent, {len(unknown)} unknown"
            f"{'' if complete else ', the rest not tried'}; {first}"
        )
        self.sent, self.refused, self.unknown, self.complete = tuple(sent), tuple(refused), tuple(unknown), complete


class TaskDead(WorkQueueError):
    """The task is a dead letter: it has no result, and gets none unless somebody sends it back."""

    def __init__(self, task_id: UUID, reason: str, error: str, *, worker: str | None, attempts: int) -> None:
        super().__init__(f"task {task_id} is dead, {reason}: {error}")
        self.task_id, self.reason, self.error = task_id, reason, error
        self.worker, self.attempts = worker, attempts


class TaskCancelled(TaskDead):
    """The task was called off before it was done: it gets no result. Its `error` says by whom, and why."""

    def __init__(self, task_id: UUID, error: str, *, worker: str | None, attempts: int) -> None:
        super().__init__(task_id, "cancelled", error, worker=worker, attempts=attempts)
        self.args = (f"task {task_id} is cancelled, {error}",)


class TaskUnfinished(WorkQueueError, TimeoutError):
    """The task was neither done nor dead when the time was over. It goes on: `state` says where it was."""

    def __init__(self, task_id: UUID, timeout_s: float, state: str, error: str | None) -> None:
        super().__init__(
            f"task {task_id} did not finish within {timeout_s:g} s, it is {state}{f' ({error})' if error else ''}"
        )
        self.task_id, self.timeout_s, self.state, self.error = task_id, timeout_s, state, error


GENERATE = "run `make generate` on the contract that the workers have"


class ResultInvalid(WorkQueueError):
    """The task is done, by a worker whose contract allows results that this process's does not; or several operations
    may have sent it, whose results are read differently. `text` is the JSON."""

    def __init__(self, task_id: UUID, problem: str, text: str, *, way_out: str = GENERATE) -> None:
        super().__init__(f"task {task_id} is done, and its result {problem}; {way_out}")
        self.task_id, self.problem, self.text = task_id, problem, text


class WorkerFault(WorkQueueError):
    """The worker can't go on, by a fault of this package or of a library below it. The log has the traceback."""

    exit_code = 70
