"""Dead letters as records: what each is, why it died, and which of them are meant."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from workqueue.amqp.frames import Arrival
from workqueue.codec import ModelCodec, Undecodable, printable
from workqueue.contract import Receive
from workqueue.delivery import NO_PROPERTIES, Properties
from workqueue.ops.searching import Search
from workqueue.tasks import story

REASONS = (*story.REASONS, "rejected", "expired", "maxlen", "delivery_limit")
"""Why there are letters: the contract's, and the broker's own (https://www.rabbitmq.com/docs/dlx)."""
VARIES = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|0x[0-9a-f]+|\d+(?:\.\d+)?")
"""Of an error: what differs between two that are the same."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, without its body. What is empty, 0 or None is not known of it.

    `key` names it among all, also while it goes and comes. `problem` is what today's contract has against it: None for
    one that a worker would take.
    """

    key: str
    id: str
    queue: str
    kind: str
    reason: str
    error: str
    died_at: datetime | None
    worker: str
    attempts: int
    returns: int
    contract: str
    bytes: int
    problem: str | None
    burial: int | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Opened:
    """All of a dead letter: its body as text, its headers, and the end of the traceback."""

    letter: Letter
    body: str
    headers: Mapping[str, Any]
    attempts: tuple[Mapping[str, Any], ...]
    traceback: str


class Reader:
    """Makes letters of what lies in one dead-letter queue, which may be that of several operations."""

    def __init__(self, operations: Iterable[tuple[Receive, ModelCodec[Any]]]) -> None:
        self._operations = {receive.queue.name: (receive, codec) for receive, codec in operations}

    def receive_of(self, arrived: Arrival) -> Receive:
        """The operation whose task it was."""
        return self._operation(arrived)[0]

    def letter(self, arrived: Arrival) -> Letter:
        receive, codec = self._operation(arrived)
        properties = properties_of(arrived)
        headers, body = properties.headers, arrived.body
        reason, error, died_at = _why(headers)
        task = codec.decode(body)
        kind, task_id, problem = "message", properties.message_id or "", None
        if arrived.oversized_bytes is not None:
            problem = f"undecodable: {arrived.oversized_bytes} bytes, too large to be held in memory"
        elif isinstance(task, Undecodable):
            problem = f"{task.reason}: {task.error}"
            kind, task_id = _guess(body, receive.tag, kind, task_id)
        else:
            kind, task_id = receive.kind_of(task.payload) or "task", str(task.id)
        task_id = plain_id(task_id)
        told = _attempts(headers)
        burial = headers.get("x-burial")
        return Letter(
            key=key_of(arrived),
            id=task_id,
            queue=receive.queue.name,
            kind=kind,
            reason=reason,
            error=error,
            died_at=died_at,
            worker=str(told[-1].get("worker", "")) if told else "",
            attempts=len(told),
            returns=story.count(headers, "x-returns"),
            contract=_text(headers, "x-contract"),
            bytes=arrived.size,
            problem=problem,
            burial=burial if isinstance(burial, int) and not isinstance(burial, bool) else None,
        )

    def opened(self, arrived: Arrival) -> Opened:
        headers = properties_of(arrived).headers
        body = arrived.body.decode("utf-8", "backslashreplace")
        return Opened(self.letter(arrived), body, headers, _attempts(headers), _text(headers, "x-traceback"))

    def _operation(self, arrived: Arrival) -> tuple[Receive, ModelCodec[Any]]:
        known = self._operations.get(_text(properties_of(arrived).headers, "x-queue"))
        return known or next(iter(self._operations.values()))


def plain_id(text: str) -> str:
    """A task's id, which senders may write in capitals, in the one form that is compared; another text as it is."""
    try:
        return str(UUID(text))
    except ValueError:
        return text


def key_of(arrived: Arrival) -> str:
    """A name for a letter that it keeps when it goes back to its queue, and that no other burial has."""
    message_id, headers = properties_of(arrived).message_id, properties_of(arrived).headers
    burial = "\n".join(map(str, (message_id, headers.get("x-died-at"), headers.get("x-burial"), _died(headers))))
    return blake2b(burial.encode("utf-8", "backslashreplace") + b"\n" + arrived.body, digest_size=9).hexdigest()


def properties_of(arrived: Arrival) -> Properties:
    """None of them where they can't be read."""
    return arrived.properties or NO_PROPERTIES


def _attempts(headers: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    told = headers.get("x-attempts")
    return tuple(one for one in told if isinstance(one, Mapping)) if isinstance(told, list) else ()


def _why(headers: Mapping[str, Any]) -> tuple[str, str, datetime | None]:
    if headers.get("x-reason") in story.REASONS:
        return str(headers["x-reason"]), printable(_text(headers, "x-error")), _time(headers.get("x-died-at"))
    died = _died(headers)
    if died:  # the broker has moved it: only that it was rejected, or too old, is known
        return str(died.get("reason", "")), "moved by the broker itself", _time(died.get("time"))
    return "", "it has no story: somebody else put it here", None


def _died(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """The broker's own record of the latest move (https://www.rabbitmq.com/docs/dlx#effects)."""
    deaths = headers.get("x-death")
    found = deaths[0] if isinstance(deaths, list) and deaths else None
    return found if isinstance(found, Mapping) else {}


def _guess(body: bytes, tag: str | None, kind: str, task_id: str) -> tuple[str, str]:
    """Kind and id of a body that is not the contract's, as far as it says them."""
    try:
        value = from_json(body)
    except ValueError:
        return kind, task_id
    if not isinstance(value, dict):
        return kind, task_id
    payload = value.get("payload")
    told = payload.get(tag) if isinstance(payload, dict) and tag is not None else None
    return (
        printable(told) if isinstance(told, str) else kind,
        printable(value["id"]) if isinstance(value.get("id"), str) else task_id,
    )


def _time(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Filter:
    """Which letters are meant: those that all of this is true of. What is empty or None says nothing."""

    queues: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    error: Search | None = None
    worker: str | None = None
    contract: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    """Ids or keys."""

    @property
    def says_nothing(self) -> bool:
        return self == Filter()

    def takes(self, letter: Letter) -> bool:
        """Raises SearchEndless."""
        return (
            (not self.queues or letter.queue in self.queues)
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.kinds or letter.kind in self.kinds)
            and (self.error is None or self.error.finds(letter.error))
            and (self.worker is None or letter.worker == self.worker)
            and (self.contract is None or letter.contract == self.contract)
            and (self.since is None or (letter.died_at is not None and letter.died_at >= self.since))
            and (self.until is None or (letter.died_at is not None and letter.died_at <= self.until))
            and (not self.ids or letter.id in self.ids)
            and (not self.names or letter.id in self.names or letter.key in self.names)
        )


@dataclass(frozen=True)
class Group:
    """Letters that died of the same: one queue, kind and reason, and errors that differ in numbers and ids only."""

    queue: str
    kind: str
    reason: str
    error: str
    count: int
    oldest: datetime | None
    newest: datetime | None
    pass_contract: int
    """How many of them today's contract takes."""


def groups(letters: Iterable[Letter]) -> list[Group]:
    """The largest first. The error is that of the newest."""
    together: dict[tuple[str, str, str, str], list[Letter]] = {}
    for letter in letters:
        same = letter.queue, letter.kind, letter.reason, VARIES.sub("#", letter.error)
        together.setdefault(same, []).append(letter)
    found = [_group(some) for some in together.values()]
    return sorted(found, key=lambda group: (-group.count, group.queue, group.kind, group.error))


def _group(letters: list[Letter]) -> Group:
    last = letters[-1]
    times = sorted(letter.died_at for letter in letters if letter.died_at is not None)
    passing = sum(letter.problem is None for letter in letters)
    oldest, newest = (times[0], times[-1]) if times else (None, None)
    return Group(last.queue, last.kind, last.reason, last.error, len(letters), oldest, newest, passing)
