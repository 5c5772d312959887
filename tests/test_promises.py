"""What senders and handlers are promised, on a real broker and on the one in memory: what passes there holds here.

On the broker the worker is a process, with the delays of the contract; in memory it is in this one, and skips them.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from pamqp.commands import Basic

from tests.generated.producer import Application as Producer
from tests.generated.producer.client import Client
from tests.generated.producer.messages.json import Box, Digest, Nap, NapResult, Odd, Parcel, ParcelResult
from tests.generated.worker import Application
from tests.harness import QUEUE, RECEIVE, ROOT, Site, task
from tests.workers import promises
from workqueue import NotSent, Settings, TaskContext, TaskDead
from workqueue.testing import MemoryQueue, until
from workqueue.testing.memory.lane import MemoryConnection

WAIT_S = 60.0
TO: Final = "send_errand"
NAP = Nap(kind="nap", seconds=0.0)


@dataclass
class Letter:
    """A dead letter, and those of its properties with which it may be sent back."""

    body: bytes
    headers: Mapping[str, Any]
    properties: dict[str, Any]


@dataclass
class Place:
    """A queue with a worker: `publish` is for a foreign client, `letters` takes so many off the dead letters, `record`
    says which handlers began and ended, by their tasks."""

    client: Client
    publish: Callable[..., Awaitable[None]]
    letters: Callable[[int], Awaitable[list[Letter]]]
    record: Callable[[], list[tuple[str, str]]]

    def ended(self) -> Counter[str]:
        return Counter(id for word, id in self.record() if word == "end")


Open = Callable[..., AbstractAsyncContextManager[Place]]


@asynccontextmanager
async def on_a_broker(site: Site, concurrency: int = 1) -> AsyncIterator[Place]:
    async def publish(body: bytes, *, message_type: str | None = None, **properties: Any) -> None:
        await site.publish(body, type=message_type, **properties)

    async def letters(count: int) -> list[Letter]:
        return [
            Letter(one.body, one.headers, {
                "headers": one.headers, "message_id": one.message_id, "content_type": one.content_type,
                "message_type": one.type, "correlation_id": one.correlation_id, "priority": one.priority,
            })
            for one in await site.dead_letters(count)
        ]  # fmt: skip

    await site.worker("promises", "--concurrency", str(concurrency), script=str(ROOT / "tests/workers/promises.py"))
    async with Client(Producer, settings=Settings(amqp_uri=(site.uri,), ledger_url=site.ledger_url)) as client:
        yield Place(client, publish, letters, lambda: [(note.word, note.id) for note in site.record()])


@asynccontextmanager
async def in_memory(concurrency: int = 1) -> AsyncIterator[Place]:
    record, taken = list[tuple[str, str]](), 0

    async def recorded(task: Any, context: TaskContext[None]) -> Any:
        record.append(("start", str(task.id)))
        result = await promises.handle(task, context)
        record.append(("end", str(task.id)))
        return result

    async def publish(body: bytes, **properties: Any) -> None:
        await MemoryConnection(queue.broker).first.publish(QUEUE, Basic.Properties(**properties), body, mandatory=True)

    async def letters(count: int) -> list[Letter]:
        nonlocal taken
        await queue.idle()
        found = [
            Letter(one.body, one.headers, {} if one.properties is None else one.properties._asdict())
            for one in queue.dead_letters[taken:]
        ]
        taken += len(found)
        assert len(found) == count
        return found

    client = Client(Producer)
    handlers = {"do_errand": recorded, "do_chore": recorded}
    async with MemoryQueue(Application, handlers, client, concurrency=concurrency) as queue:
        yield Place(client, publish, letters, lambda: record)


@pytest.fixture(params=["memory", pytest.param("broker", marks=pytest.mark.broker)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("BROKEN", str(tmp_path / "broken"))
    if request.param == "memory":
        return in_memory
    site: Site = request.getfixturevalue("fast")
    return lambda **options: on_a_broker(site, **options)


async def dies(place: Place, payload: Any, *, attempts: int) -> TaskDead:
    """How a task with this payload dies."""
    handle = await place.client.send(payload, to=TO)
    with pytest.raises(TaskDead) as dead:
        await handle.result(timeout_s=WAIT_S)
    assert dead.value.attempts == attempts
    assert (await handle.status()).state == "dead"
    return dead.value


async def test_a_task_is_done_and_its_sender_gets_the_result_in_its_own_models(place: Open) -> None:
    async with place() as here:
        parcel = Parcel(
            kind="parcel", labels={"colour": "blue", "a": "é"}, due=date(2026, 12, 24), box=Box(width=10, height=4.5)
        )
        handle = await here.client.send(parcel, to=TO)
        result = await handle.result(timeout_s=WAIT_S)
        assert isinstance(result, ParcelResult)
        assert (result.size, result.address) == (45.0, "2026-12-24 slow a=é colour=blue")
        status = await handle.status()
        assert (status.state, status.kind, status.attempt) == ("done", "parcel", 1)


async def test_a_failed_task_is_tried_again_until_it_is_done(place: Open) -> None:
    async with place() as here:
        handle = await here.client.send(Nap(kind="nap", seconds=0.0, failures=3), to=TO)
        assert await handle.result(timeout_s=WAIT_S) == NapResult(kind="nap", attempt=4)
        status = await handle.status()
        assert (status.state, status.attempt) == ("done", 4)
        assert [word for word, _ in here.record()] == ["start"] * 4 + ["end"]
        assert await here.letters(0) == []


async def test_a_task_that_always_fails_is_a_dead_letter_with_its_story_and_stops_no_other(place: Open) -> None:
    async with place() as here:
        good = await here.client.send_many([NAP] * 5, to=TO)
        dead = await dies(here, Nap(kind="nap", seconds=0.0, failures=99), attempts=RECEIVE.max_attempts)
        assert (dead.reason, dead.error) == ("failed", "RuntimeError: told to fail 99 times")
        assert [await one.result(timeout_s=WAIT_S) for one in good] == [NapResult(kind="nap", attempt=1)] * 5
        (letter,) = await here.letters(1)
        assert json.loads(letter.body)["id"] == str(dead.task_id)
        assert (letter.headers["x-reason"], letter.headers["x-queue"]) == ("failed", QUEUE)
        assert letter.headers["x-traceback"].endswith("RuntimeError: told to fail 99 times")
        assert [one["error"] for one in letter.headers["x-attempts"]] == [dead.error] * RECEIVE.max_attempts


async def test_give_up_makes_a_dead_letter_at_once(place: Open) -> None:
    async with place() as here:
        dead = await dies(here, Digest(kind="digest", text="give up"), attempts=1)
        assert (dead.reason, dead.error) == ("gave-up", "it is of no use")
        assert [letter.headers["x-reason"] for letter in await here.letters(1)] == ["gave-up"]


async def test_retry_after_more_than_any_delay_of_the_contract_is_one_failed_attempt(place: Open) -> None:
    async with place() as here:
        handle = await here.client.send(Digest(kind="digest", text="later"), to=TO)
        await handle.result(timeout_s=WAIT_S)
        status = await handle.status()
        assert (status.attempt, status.error) == (2, None)
        assert [word for word, _ in here.record()] == ["start", "start", "end"]


@pytest.mark.parametrize("way", ["exits", "cancels", "raises-group", "raises-unprintable", "stops-iteration"])
async def test_a_handler_may_end_in_any_way(place: Open, way: Any) -> None:
    async with place() as here:
        assert (await dies(here, Odd(kind="odd", way=way), attempts=RECEIVE.max_attempts)).reason == "failed"
        handle = await here.client.send(NAP, to=TO)
        await handle.result(timeout_s=WAIT_S)


async def test_a_result_that_is_no_model_makes_a_dead_letter(place: Open) -> None:
    async with place() as here:
        dead = await dies(here, Odd(kind="odd", way="returns-dict"), attempts=1)
        assert dead.error == "the handler's result is of type dict; it must be a result model, or None"


async def test_a_body_that_is_not_the_contracts_stops_nobody_and_is_found_with_its_reason(place: Open) -> None:
    whole = task({"kind": "nap", "seconds": 0})
    bodies = {
        b"not json": ("undecodable", "not JSON"),
        json.dumps({**whole, "payload": 7}).encode(): ("invalid", "/payload"),
        b"[" * (RECEIVE.message.max_bytes + 1): ("undecodable", "the limit is"),
    }
    async with place() as here:
        for body in bodies:
            await here.publish(body)
        handle = await here.client.send(NAP, to=TO)
        await handle.result(timeout_s=WAIT_S)
        for letter in await here.letters(len(bodies)):
            reason, error = bodies[letter.body]
            assert letter.headers["x-reason"] == reason
            assert error in letter.headers["x-error"]


async def test_what_breaks_the_contract_is_not_sent(place: Open) -> None:
    async with place() as here:
        with pytest.raises(NotSent, match="/payload/seconds"):
            await here.client.send({"kind": "nap", "seconds": -1}, to=TO)  # type: ignore[call-overload]


async def test_a_foreign_clients_task_is_done_and_what_it_said_of_it_stays(place: Open) -> None:
    good, bad = task({"kind": "nap", "seconds": 0}), task({"kind": "digest", "text": "give up"})
    said = {"correlation_id": "c1", "priority": 3, "headers": {"x-theirs": {"a": [1, "é", None]}}}
    async with place() as here:
        for one in (good, bad):
            await here.publish(json.dumps(one).encode(), **said)
        assert await here.client.result(UUID(good["id"]), timeout_s=WAIT_S) == NapResult(kind="nap", attempt=1)
        with pytest.raises(TaskDead):
            await here.client.result(UUID(bad["id"]), timeout_s=WAIT_S)
        (letter,) = await here.letters(1)
        assert json.loads(letter.body) == bad
        assert letter.headers["x-theirs"] == {"a": [1, "é", None]}
        assert (letter.properties["correlation_id"], letter.properties["priority"]) == ("c1", 3)


async def test_a_task_that_is_sent_twice_runs_once(place: Open) -> None:
    async with place() as here:
        id = uuid4()
        handles = [await here.client.send(NAP, id=id, to=TO) for _ in range(3)]
        handles += [await here.client.send(NAP, key="the same", to=TO) for _ in range(3)]
        for handle in handles:
            assert await handle.result(timeout_s=WAIT_S) == NapResult(kind="nap", attempt=1)
        last = await here.client.send(NAP, to=TO)  # behind the doubles
        await last.result(timeout_s=WAIT_S)
        assert here.ended() == Counter({str(id): 1, str(handles[-1].id): 1, str(last.id): 1})
        assert await here.letters(0) == []


async def test_an_id_that_comes_with_another_payload_is_a_conflict_and_the_first_one_is_done(place: Open) -> None:
    async with place() as here:
        first = await here.client.send(NAP, id=uuid4(), to=TO)
        await first.result(timeout_s=WAIT_S)
        other = await here.client.send(Digest(kind="digest", text="x"), id=first.id, to=TO)
        with pytest.raises(TaskDead, match="conflict"):
            await other.result(timeout_s=WAIT_S)
        (letter,) = await here.letters(1)
        assert letter.headers["x-reason"] == "conflict"
        assert (await first.status()).state == "done"


@pytest.mark.parametrize("times", [1, 3])
async def test_a_dead_letter_that_is_sent_back_is_done_once_when_its_cause_is_gone(
    place: Open, tmp_path: Path, times: int
) -> None:
    cause = tmp_path / "broken"
    cause.touch()
    async with place() as here:
        dead = await dies(here, Digest(kind="digest", text="broken"), attempts=RECEIVE.max_attempts)
        (letter,) = await here.letters(1)
        cause.unlink()
        for _ in range(times):
            await here.publish(letter.body, **letter.properties)
        await until(lambda: here.ended(), "it is done")
        await here.client.result(dead.task_id, timeout_s=WAIT_S)
        last = await here.client.send(NAP, to=TO)  # behind the doubles
        await last.result(timeout_s=WAIT_S)
        assert here.ended() == Counter({str(dead.task_id): 1, str(last.id): 1})
        assert await here.letters(0) == []


async def test_a_dead_letter_that_is_sent_back_with_its_cause_still_there_is_dead_again_with_both_stories(
    place: Open, tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    async with place() as here:
        await dies(here, Digest(kind="digest", text="broken"), attempts=RECEIVE.max_attempts)
        (letter,) = await here.letters(1)
        await here.publish(letter.body, **letter.properties)
        (again,) = await here.letters(1)
        assert (again.headers["x-reason"], again.headers["x-returns"]) == ("failed", 1)
        assert [story["reason"] for story in again.headers["x-story"]] == ["failed"]
        assert len(again.headers["x-attempts"]) == RECEIVE.max_attempts
        await here.publish(again.body)  # by its body alone: it may be the last copy
        (last,) = await here.letters(1)
        assert (last.headers["x-reason"], last.body) == ("failed", letter.body)


async def test_concurrency_gives_one_worker_several_tasks_at_a_time(place: Open) -> None:
    async with place(concurrency=4) as here:
        handles = await here.client.send_many([Nap(kind="nap", seconds=0.3)] * 12, to=TO)
        for handle in handles:
            await handle.result(timeout_s=WAIT_S)
        assert max(accumulate(1 if word == "start" else -1 for word, _ in here.record())) == 4
