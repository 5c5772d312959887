"""What is sent: tasks of the example's or the tests' contract, or of the user's; and what no contract allows."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from workqueue.codec import Schema
from workqueue.contract import Receive
from workqueue.testing.chaos.settings import EXAMPLES_NAP, NAP, RunSettings

ALWAYS = 100  # failures: more than a task has attempts


@dataclass(frozen=True)
class Task:
    """A line for the producer of an operation. `failures` is None if it is to fail always, 0 for one that nobody tells
    to fail."""

    id: str
    line: bytes
    failures: int | None
    operation: str


def make_task(rng: random.Random, payload: Mapping[str, Any], operation: str) -> Task:
    task = whole(str(UUID(int=rng.getrandbits(128), version=4)), payload)
    failures = payload.get("failures", 0) if payload.get("kind") in (NAP, EXAMPLES_NAP) else 0
    line = json.dumps(task).encode() + b"\n"
    return Task(task["id"], line, None if failures == ALWAYS else failures, operation)


def whole(id: str, payload: Any) -> dict[str, Any]:
    """The task with this payload."""
    return {"id": id, "created_at": "2026-11-25T09:30:00Z", "payload": payload}


def make_tasks(settings: RunSettings, operations: Sequence[str]) -> list[Task]:
    """The tasks in the order they are given, 3 % of them given again a little later. Those of no user's are spread
    over the operations."""
    rng, count = random.Random(f"tasks {settings.seed}"), settings.tasks

    def made() -> Task:
        if settings.payloads:
            payload = rng.choice(settings.payloads)
            return make_task(rng, payload.value, payload.operation)
        return make_task(rng, some_payload(rng, settings.nap), rng.choice(operations))

    tasks = [made() for _ in range(count)]
    for index in sorted(rng.sample(range(count), count * 3 // 100), reverse=True):
        tasks.insert(index + rng.randint(1, 100), tasks[index])
    return tasks


def nap(seconds: float = 0.0, failures: int = 0, kind: str = NAP) -> dict[str, Any]:
    return {"kind": kind, "seconds": seconds, "failures": failures}


def some_payload(rng: random.Random, kind: str) -> dict[str, Any]:
    seconds = round(rng.uniform(0, 0.02), 4)
    match rng.choices(["quick", "slow", "failing", "doomed", "parcel", "digest"], [86, 4, 5, 1, 2, 2])[0]:
        case "slow":
            return nap(0.2, kind=kind)
        case "failing":
            return nap(seconds, rng.randint(1, 2), kind)
        case "doomed":
            return nap(seconds, ALWAYS, kind)
        case "parcel" | "digest" if kind == EXAMPLES_NAP:
            return {"kind": "checksum", "path": "a file"}
        case "parcel":
            return {"kind": "parcel", "labels": {"to": "é"}, "due": "2026-12-24", "box": {"width": 3, "height": 0.5}}
        case "digest":
            return {"kind": "digest", "text": "x" * rng.randint(1, 4096)}
    return nap(seconds, kind=kind)


def poison(rng: random.Random, good: Task, receive: Receive) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bodies and headers that the contract does not allow, made from a task that it does."""
    text = make_task(rng, json.loads(good.line)["payload"], good.operation).line.strip()  # under an id of its own
    task = json.loads(text)
    yield rng.randbytes(50), {}
    yield b"", {}
    yield text[: rng.randrange(1, len(text))], {}
    yield b"[" * 30_000, {}
    yield text + b" " * (receive.message.max_bytes + 1), {}
    yield text.replace(b'"payload"', b'"\xff\xfe"'), {}
    yield text[:-1] + b', "more": NaN}', {}
    body = Schema(receive.message.schema)
    payload = task["payload"]
    wrong: list[Any] = [{"kind": "nonsense"}, [], None, 7, *({**payload, key: []} for key in payload)]
    wrong += [{name: value for name, value in payload.items() if name != key} for key in payload]
    for broken in ({**task, "payload": one} for one in wrong):
        if body.problem(broken) is not None:
            yield json.dumps(broken).encode(), {}
    headers = Schema(receive.message.headers_schema)
    for attempts in ("many", 7, 0, None, False, "", {}, {"a": 1}, [1], [{"worker": 1}]):
        if headers.problem({"x-attempts": attempts}) is not None:
            yield text, {"x-attempts": attempts}
