"""Dead letters that somebody looks at stay: as the management page looks, by a get of all without an ack, and as the
commands for dead letters do."""

import os

import aio_pika
from aio_pika.abc import AbstractConnection

from tests.harness import Site
from workqueue.amqp.held import hold
from workqueue.settings import Settings
from workqueue.testing import until

LETTERS = int(os.environ.get("LETTERS", "3"))
LOOKS = int(os.environ.get("LOOKS", "30"))  # RabbitMQ 4 by itself drops what was delivered 20 times


async def look(connection: AbstractConnection, queue_name: str) -> set[bytes]:
    """Get all that there is, ack none of it, and close the channel."""
    channel, seen = await connection.channel(), set[bytes]()
    queue = await channel.declare_queue(queue_name, passive=True)
    while (message := await queue.get(fail=False)) is not None:
        seen.add(message.body)
    await channel.close()
    return seen


async def test_dead_letters_that_are_looked_at_again_and_again_are_all_still_there(site: Site) -> None:
    """More of both: LETTERS=100 LOOKS=1000."""
    await site.worker()
    bodies = {f"not a task {number}".encode() for number in range(LETTERS)}
    for body in bodies:
        await site.publish(body)
    await until(lambda: site.depth_is(LETTERS, site.dead_queue), "all are dead letters")
    async with await aio_pika.connect(site.uri) as connection:
        for _ in range(LOOKS):  # a channel that is closed gives back what it held, but not at once
            await until(lambda: site.depth_is(LETTERS, site.dead_queue), "all are back")
            assert await look(connection, site.dead_queue) == bodies
    letters = await site.dead_letters(LETTERS)
    assert {letter.body for letter in letters} == bodies
    assert all(letter.headers["x-reason"] == "undecodable" for letter in letters)


async def test_what_was_held_is_back_when_the_hold_ends(site: Site) -> None:
    """Or who comes next, and looks at once, is told that there are no dead letters."""
    settings = Settings(amqp_uri=(site.uri,))
    await site.worker()
    for number in range(LETTERS):
        await site.publish(f"not a task {number}".encode())
    await until(lambda: site.depth_is(LETTERS, site.dead_queue), "all are dead letters")
    async with site.amqp() as channel:
        for _ in range(LOOKS):
            async with hold(settings, site.dead_queue, "looks") as held:
                assert len([letter async for letter in held]) == LETTERS
            there = await channel.declare_queue(site.dead_queue, passive=True)
            assert there.declaration_result.message_count == LETTERS
