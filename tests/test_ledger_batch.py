"""Many who ask a PostgreSQL ledger at once: which statements they are, and who waits for whom."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from workqueue.errors import LedgerLost
from workqueue.ledger import LedgerBusy
from workqueue.ledger.postgres_batch import AT_ONCE, Batch
from workqueue.ledger.postgres_pool import Locked
from workqueue.ledger.postgres_session import Answer, Values
from workqueue.ledger.postgres_sql import MANY_LOCK_S


class Server:
    """In a pool's place. It answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Values, asyncio.Future[Answer]]] = []

    def ask(self, statement: str, values: Values) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.asked.append((statement, values, answer))
        return answer

    def sizes(self) -> list[int]:
        """Of how many tasks each statement is."""
        return [1 if statement == "one" else len(values[0]) for statement, values, _ in self.asked]  # type: ignore[index]

    def answer(self, place: int) -> None:
        """Each of its tasks gets its row, the last one first."""
        statement, values, answer = self.asked[place]
        rows = [tuple(values)] if statement == "one" else list(zip(*values, strict=True))[::-1]
        answer.set_result((len(rows), rows))

    def fail(self, place: int, error: Exception) -> None:
        self.asked[place][2].set_exception(error)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def batch(server: Server) -> Batch:
    return Batch(server, "one", "many")  # type: ignore[arg-type]


async def asking(batch: Batch, count: int, ids: Sequence[UUID] = ()) -> "list[asyncio.Task[Any]]":
    """So many who ask in one turn, each with its number, and the turn after it."""
    ids = ids or [uuid4() for _ in range(count)]
    tasks = [asyncio.create_task(batch.ask(task_id, (task_id, number))) for number, task_id in enumerate(ids)]
    await turns()
    return tasks


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_ask_in_one_turn_are_one_statement(batch: Batch, server: Server) -> None:
    ids = [uuid4() for _ in range(30)]
    tasks = await asking(batch, 30, ids)
    assert server.sizes() == [30]
    server.answer(0)
    assert await asyncio.gather(*tasks) == [(task_id, number) for number, task_id in enumerate(ids)]


async def test_one_alone_is_asked_for_by_the_statement_for_one(batch: Batch, server: Server) -> None:
    (task,) = await asking(batch, 1)
    assert [statement for statement, _, _ in server.asked] == ["one"]
    server.answer(0)
    assert (await task)[1] == 0


async def test_who_asks_while_one_is_under_way_does_not_wait_for_it(batch: Batch, server: Server) -> None:
    for number in range(1, AT_ONCE + 1):
        await asking(batch, 10)
        assert server.sizes() == [10] * number
    for _ in range(3):
        await asking(batch, 5)
    assert server.sizes() == [10] * AT_ONCE  # there are enough
    server.answer(1)
    await turns()
    assert server.sizes() == [*[10] * AT_ONCE, 15]  # the next one is all that waited


async def test_one_that_waits_for_a_lock_has_nobody_wait_for_it(batch: Batch, server: Server) -> None:
    for _ in range(AT_ONCE):
        await asking(batch, 1)
    (late,) = await asking(batch, 1)
    assert server.sizes() == [1] * AT_ONCE
    await asyncio.sleep(3 * MANY_LOCK_S)
    assert server.sizes() == [1] * (AT_ONCE + 1)
    server.fail(0, LedgerBusy("the server is gone"))
    await turns()
    assert not late.done()  # it has a statement of its own
    server.answer(AT_ONCE)
    assert (await late)[1] == 0


async def test_a_task_that_waits_already_is_asked_for_alone(batch: Batch, server: Server) -> None:
    task_id = uuid4()
    await asking(batch, 3, [task_id, uuid4(), task_id])
    assert sorted(server.sizes()) == [1, 2]


async def test_who_is_cancelled_while_it_waits_is_not_asked_for(batch: Batch, server: Server) -> None:
    for _ in range(AT_ONCE):
        await asking(batch, 2)
    first, second, third = await asking(batch, 3)
    first.cancel()
    server.answer(0)
    await turns()
    assert server.sizes() == [*[2] * AT_ONCE, 2]
    server.answer(AT_ONCE)
    assert [one[1] for one in await asyncio.gather(second, third)] == [1, 2]


@pytest.mark.parametrize("size", [1, 10], ids=["one", "a batch"])
@pytest.mark.parametrize("error", [LedgerBusy("the server is gone"), LedgerLost("there", "another one")], ids=repr)
async def test_a_server_that_fails_one_statement_has_failed_those_that_wait(
    batch: Batch, server: Server, error: Exception, size: int
) -> None:
    first = await asking(batch, size)
    rest = [await asking(batch, size) for _ in range(AT_ONCE)]
    waiting = rest[-1]
    server.fail(0, error)
    answers = await asyncio.gather(*first, *waiting, return_exceptions=True)
    assert {(type(answer), str(answer)) for answer in answers} == {(type(error), str(error))}
    assert len(server.asked) == AT_ONCE
    await asking(batch, size)
    assert len(server.asked) == AT_ONCE + 1  # the next who ask try again


def refused() -> LedgerBusy:
    error = LedgerBusy("integer out of range")
    error.__cause__ = psycopg.DataError("integer out of range")
    return error


OF_ONE_TASK = [Locked("somebody has it"), refused(), TypeError("can't be sent")]


@pytest.mark.parametrize("error", OF_ONE_TASK, ids=repr)
async def test_what_one_task_fails_by_fails_nobody_who_waits(batch: Batch, server: Server, error: Exception) -> None:
    (first,) = await asking(batch, 1)
    rest = [await asking(batch, 5) for _ in range(AT_ONCE)]
    server.fail(0, error)
    with pytest.raises(type(error)):
        await first
    await turns()
    assert server.sizes() == [1, *[5] * AT_ONCE]
    server.answer(AT_ONCE)
    assert [one[1] for one in await asyncio.gather(*rest[-1])] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", OF_ONE_TASK, ids=repr)
async def test_each_of_a_batch_that_fails_by_one_task_is_asked_for_by_itself(
    batch: Batch, server: Server, error: Exception
) -> None:
    tasks = await asking(batch, 3)
    server.fail(0, error)
    await turns()
    assert server.sizes() == [3, 1, 1, 1]
    server.answer(3)
    server.fail(2, error)
    server.answer(1)
    await turns()
    for place in range(4, len(server.asked)):  # that of one that somebody has locked, which may wait now
        server.fail(place, error)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(1), type(error))
    assert [answer[1] for answer in answers] == [0, 2]  # type: ignore[index]


async def test_who_was_cancelled_is_not_asked_for_again(batch: Batch, server: Server) -> None:
    """A claim that is made then nobody would give back."""
    tasks = await asking(batch, 3)
    tasks[1].cancel()
    await turns()
    server.fail(0, Locked("somebody has it"))
    await turns()
    assert server.sizes() == [3, 1, 1]


async def test_however_many_are_locked_two_wait_and_the_others_are_told_at_once(batch: Batch, server: Server) -> None:
    """Each that waits takes a connection, of which there are a few for all."""
    tasks = await asking(batch, 10)
    server.fail(0, Locked("somebody has them"))
    await turns()
    for place in range(1, 11):
        assert server.asked[place][0] == "many"
        server.fail(place, Locked("somebody has it"))
    await turns()
    assert [statement for statement, _, _ in server.asked[11:]] == ["one"] * AT_ONCE
    assert sum(task.done() for task in tasks) == 10 - AT_ONCE
    (late,) = await asking(batch, 1)
    statement, _, answer = server.asked[-1]
    assert statement == "many"
    answer.set_exception(Locked("somebody has this, too"))
    with pytest.raises(Locked):
        await late
    for place in range(11, 11 + AT_ONCE):
        server.answer(place)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, Locked) for one in answers) == 10 - AT_ONCE
    await asking(batch, 1)
    assert server.asked[-1][0] == "one"
