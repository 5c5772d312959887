"""What a broker refuses for good is told from a connection that is lost, said in words, and settles the one message."""

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from pamqp.commands import Basic
from yarl import URL

from tests.harness import DEAD_QUEUE, QUEUE, RECEIVE, Site, simulate, task
from workqueue.amqp import connection
from workqueue.amqp.connection import Link
from workqueue.amqp.copies import DROPPED, fitted
from workqueue.amqp.direct import DirectLane
from workqueue.amqp.lane import Unroutable
from workqueue.amqp.publisher import Publisher
from workqueue.amqp.topology import Topology
from workqueue.contract import Queue
from workqueue.dev.node import Node
from workqueue.errors import BrokerRefused, BrokerUnreachable, NotSent
from workqueue.settings import Settings
from workqueue.testing import WAIT_S, until, vhost
from workqueue.testing.given import Broker, version_of

RETRY_QUEUE = RECEIVE.rungs[0].queue.name
FAILS = {"kind": "nap", "seconds": 0, "failures": 1}


def queue(name: str, **arguments: Any) -> Queue:
    return Queue(name, True, False, False, {"x-queue-type": "quorum", **arguments})


@asynccontextmanager
async def linked(uri: str, *queues: Queue, **settings: Any) -> AsyncIterator[Link]:
    declares = [Topology(queues, "tested").declare] if queues else []
    link = Link(Settings(amqp_uri=(uri,), **settings), "tested", *declares)
    try:
        yield link
    finally:
        await link.close()


def user_of(node: Broker, uri: str, configure: str, write: str, read: str) -> str:
    """The URI of a new user with these permissions in the vhost of `uri`."""
    name, there = f"user-{secrets.token_hex(4)}", uri.rpartition("/")[2]
    node.ctl("add_user", name, "secret")
    node.ctl("set_permissions", "-p", there, name, configure, write, read)
    return re.sub(r"//[^@]+@", f"//{name}:secret@", uri)


def user_in(uri: str) -> str:
    return uri.partition("//")[2].partition(":")[0]


def allow_channels(node: Broker, uri: str, most: int) -> None:
    """Let the user of `uri` have so many channels, on all connections together."""
    node.ctl("set_user_limits", user_in(uri), f'{{"max-channels": {most}}}')


# Connections


async def nobody_said(node: Broker, uri: str) -> tuple[str, list[str]]:
    return uri + "-nonesuch", ["vhost", "not found", "(530)", "rabbitmqctl add_vhost"]


async def no_access(node: Broker, uri: str) -> tuple[str, list[str]]:
    node.ctl("add_user", name := f"user-{secrets.token_hex(4)}", "secret")
    return re.sub(r"//[^@]+@", f"//{name}:secret@", uri), ["access to vhost", "(530)", "set_permissions -p"]


async def wrong_password(node: Broker, uri: str) -> tuple[str, list[str]]:
    return re.sub(r":[^:@/]+@", ":wrong@", uri), ["was refused", "(403)", "check user and password"]


async def too_many(node: Broker, uri: str) -> tuple[str, list[str]]:
    node.ctl("set_vhost_limits", "-p", uri.rpartition("/")[2], '{"max-connections": 0}')
    return uri, ["connection limit (0) is reached", "(530)", "raise the limit"]


async def no_channels(node: Broker, uri: str) -> tuple[str, list[str]]:
    limited = user_of(node, uri, ".*", ".*", ".*")
    allow_channels(node, limited, 0)
    return limited, ["number of channels", "(530)", "raise the limit"]


async def no_tls(node: Broker, uri: str) -> tuple[str, list[str]]:
    return uri.replace("amqp:", "amqps:"), ["does not speak TLS", "use amqp:"]


Case = Callable[[Broker, str], Awaitable[tuple[str, list[str]]]]
CASES: list[Case] = [nobody_said, no_access, wrong_password, too_many, no_channels, no_tls]


@pytest.mark.parametrize("case", CASES)
async def test_a_connection_that_is_refused_says_why_and_the_way_out(node: Broker, case: Case) -> None:
    uri, words = await case(node, vhost(node))
    async with linked(uri, queue(QUEUE)) as link:
        with pytest.raises(BrokerUnreachable) as refusal:
            await link.open()
    said = str(refusal.value)
    assert "\n" not in said
    assert all(word in said for word in words), said
    assert "secret" not in said.replace(":***@", "")
    refused = "(" in "".join(words)
    assert isinstance(refusal.value, BrokerRefused) == refused
    assert said.startswith("no broker: ") != refused  # it is there


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection at once"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not an AMQP broker, it says 'HTTP/1.1 400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an AMQP broker, it says 'SSH-2.0"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS on this port; use amqps:"),
        (b"AMQP\x00\x01\x00\x00", "speaks AMQP 1.0.0, not 0.9.1"),
    ],
)
async def test_what_is_not_our_broker_is_described(monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)  # what speaks TLS seems to answer nothing

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with linked(f"amqp://guest:guest@127.0.0.1:{port}/") as link:
            with pytest.raises(BrokerUnreachable, match=re.escape(words)):
                await link.open()


async def test_a_refusal_at_the_start_is_one_line_and_exit_3_of_both_scripts(site: Site) -> None:
    wrong = site.uri + "-nonesuch"
    produced = await site.producer("--jsonl", "-", lines=json.dumps(simulate(1)[0]), AMQP_URI=wrong)
    worker = await site.worker("w", ready=False, AMQP_URI=wrong)
    assert (produced.code, await worker.ended()) == (3, 3)
    for said in (produced.err, worker.text()):
        (line,) = said.splitlines()
        assert "not found (530)" in line
        assert "rabbitmqctl add_vhost" in line


# Publishes


async def test_one_message_that_is_too_large_is_refused_and_those_around_it_are_stored(
    own_node: Node, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(own_node.kill)
    for change in ("application:set_env(rabbit,", "persistent_term:put("):  # the version decides which of them counts
        own_node.ctl("eval", f"{change}max_message_size, 50000).")
    there = queue(QUEUE)
    async with linked(vhost(own_node), there) as link:
        publisher = Publisher(link, "tested")

        async def send(number: int) -> str:
            body = bytes(60_000 if number in (40, 41) else 100)
            try:
                await publisher.send(
                    there, body, message_id=str(number), message_type="t", content_type=None, headers={}, deadline_s=30
                )
            except NotSent as error:
                return str(error)
            return "stored"

        said = await asyncio.gather(*map(send, range(200)))
    for number, words in enumerate(said):
        if number in (40, 41):
            assert "message size 60000 is larger" in words
            assert "(406); send less" in words
        else:
            assert words == "stored"


async def test_a_user_who_may_not_publish_is_told_so_and_each_task_is_refused(site: Site, node: Broker) -> None:
    await site.send(simulate(1))  # declares the queue
    denied = user_of(node, site.uri, "", "^$", ".*")
    lines = "".join(json.dumps(one) + "\n" for one in simulate(3))
    produced = await site.producer("--jsonl", "-", lines=lines, AMQP_URI=denied)
    assert produced.code == 1, produced.err
    assert produced.err.count("ACCESS_REFUSED - ") == 3, produced.err
    assert "sent: 0 confirmed, 3 refused, 0 unknown" in produced.err


async def test_a_user_who_may_not_consume_is_told_so_and_the_worker_ends_with_exit_3(site: Site, node: Broker) -> None:
    first = await site.worker("first")  # declares the queues
    first.process.terminate()
    await first.ended()
    worker = await site.worker("w", ready=False, AMQP_URI=user_of(node, site.uri, "", ".*", "^$"))
    assert await worker.ended() == 3
    assert "can't be consumed" in worker.text()
    assert "let the user read it" in worker.text()


# Returns


@pytest.mark.parametrize("ids", ["none", "all the same", "each its own"])
async def test_each_of_thousands_of_unroutable_messages_is_known_among_those_that_are_stored(
    node: Broker, ids: str
) -> None:
    there = queue("there")
    async with linked(vhost(node), there) as link:
        lane = await link.open()
        assert isinstance(lane, DirectLane)

        async def publish(number: int) -> str:
            identity = {"none": None, "all the same": "same", "each its own": str(number)}[ids]
            properties = Basic.Properties(message_id=identity, headers={"number": number})
            name = "nowhere" if number * 7 % 5 < 2 else "there"
            try:
                await lane.publish(name, properties, b"body", mandatory=True)
            except Unroutable:
                return (name == "nowhere" and "right") or f"{number} came back"
            return (name == "there" and "right") or f"{number} counts as stored"

        for start in range(0, 6000, 500):
            said = await asyncio.gather(*map(publish, range(start, start + 500)))
            assert Counter(said) == {"right": 500}
        assert (lane.in_flight, lane._known, lane._returned) == (0, {}, set())


# Queues that vanish


async def test_a_dead_letter_queue_that_vanishes_is_declared_again(site: Site) -> None:
    worker = await site.worker()
    await site.publish(b"garbage")
    await site.dead_letters(1)  # the connection that publishes is open by now
    async with site.amqp() as channel:
        await channel.queue_delete(DEAD_QUEUE)
    await site.publish(b"more garbage")
    await until(lambda: worker.says(f"queue {DEAD_QUEUE} was gone"), "it is declared again")
    (letter,) = await site.dead_letters(1)
    assert letter.body == b"more garbage"


async def test_a_delay_queue_that_vanishes_is_declared_again_and_its_task_is_done(fast: Site) -> None:
    worker = await fast.worker()
    first, second = task(FAILS), task(FAILS)
    await fast.send([first])
    await until(lambda: worker.says("done"), "the first is done")
    async with fast.amqp() as channel:
        await channel.queue_delete(RETRY_QUEUE)
    await fast.send([second])
    await until(lambda: len(worker.says("done")) == 2, "the second is done")
    assert worker.says(f"queue {RETRY_QUEUE} was gone")


# Queues that exist


async def test_a_user_without_the_right_to_declare_works_on_queues_that_exist(site: Site, node: Broker) -> None:
    first = await site.worker("first")
    first.process.terminate()
    await first.ended()
    restricted = user_of(node, site.uri, "^$", ".*", ".*")
    worker = await site.worker("restricted", "--concurrency", "3", AMQP_URI=restricted)
    tasks = simulate(5)
    await site.send(tasks, AMQP_URI=restricted)
    await site.all_end(tasks)
    await site.publish(b"garbage")
    await site.dead_letters(1)
    (line,) = worker.says("user")
    assert "may not declare queues" in line
    assert RETRY_QUEUE in line
    assert "unchecked" in line


async def test_a_queue_that_is_missing_and_may_not_be_declared_is_named(site: Site, node: Broker) -> None:
    restricted = user_of(node, site.uri, "^$", ".*", ".*")
    produced = await site.producer("--jsonl", "-", lines=json.dumps(simulate(1)[0]), AMQP_URI=restricted)
    assert produced.code == 3
    assert f"there is no queue '{QUEUE}', and it may not be declared" in produced.err
    assert "set_permissions" in produced.err


async def declare(site: Site, name: str, **arguments: Any) -> None:
    async with site.amqp() as channel:
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum", **arguments})


@pytest.mark.parametrize("limit", [{}, {"x-delivery-limit": 2_000_000_000}])
async def test_a_queue_without_the_contracts_delivery_limit_is_used_and_the_policy_is_said_once(
    site: Site, limit: dict[str, Any]
) -> None:
    await declare(site, DEAD_QUEUE, **limit)
    worker = await site.worker("w", "--concurrency", "2")
    await site.publish(b"garbage")
    await site.dead_letters(1)
    (line,) = worker.says(f"queue '{DEAD_QUEUE}' was declared with")
    there = site.uri.rpartition("/")[2]
    pattern = re.escape(DEAD_QUEUE)
    command = f"rabbitmqctl set_policy -p {there} {DEAD_QUEUE} '^{pattern}$' '{{\"delivery-limit\":1000000000}}'"
    assert command + " --apply-to queues" in line


async def test_queues_of_a_lower_delivery_limit_are_used_and_where_the_steps_are_is_said_once(site: Site) -> None:
    limits = (QUEUE, DEAD_QUEUE)
    await declare(site, DEAD_QUEUE, **{"x-delivery-limit": 20})
    await declare(site, QUEUE, **{**RECEIVE.queue.arguments, "x-delivery-limit": 20})
    worker = await site.worker("w", "--concurrency", "2")
    sent = simulate(2)
    await site.send(sent)
    await site.all_end(sent)
    for name in limits:
        (line,) = worker.says(f"queue '{name}' was declared with x-delivery-limit 20, not as the contract has it")
        assert "`workqueue plan` has the steps" in line
    planned = json.loads((await site.workqueue("plan", "-o", "json")).out)["queues"]
    for one in planned:
        assert one["state"] == ("low limit" if one["queue"] in limits else "same")
        assert one["queue"] not in limits or any("delete_queue -p" in step for step in one["steps"])


@pytest.mark.parametrize(
    ("name", "arguments", "difference"),
    [
        (DEAD_QUEUE, {"x-message-ttl": 1000}, "x-message-ttl"),
        (DEAD_QUEUE, {"x-message-ttl": 1000, "x-delivery-limit": 20}, "x-message-ttl"),
        (RETRY_QUEUE, {"x-message-ttl": 110, "x-delivery-limit": 20}, "x-"),
        (QUEUE, {"x-delivery-limit": 3}, "x-"),
    ],
)
async def test_any_other_difference_of_a_queue_is_one_line_and_exit_2(
    site: Site, name: str, arguments: dict[str, Any], difference: str
) -> None:
    await declare(site, name, **arguments)
    worker = await site.worker("w", ready=False)
    assert await worker.ended() == 2
    assert "is not what the contract declares" in worker.text()
    assert f"inequivalent arg '{difference}" in worker.text()


# Copies


async def test_foreign_headers_that_do_not_fit_give_way_and_stop_no_worker(fast: Site) -> None:
    worker = await fast.worker()
    large = {"big": "x" * 100_000, "other": "y" * 30_900, "small": "kept"}
    async with fast.amqp() as channel:
        for number in range(3):
            message = aio_pika.Message(b"garbage", headers={**large}, message_id=f"m{number}")
            await channel.default_exchange.publish(message, routing_key=QUEUE)
    letters = await fast.dead_letters(3)
    for letter in letters:
        assert letter.headers[DROPPED] == "big"
        assert (letter.headers["small"], letter.headers["x-reason"]) == ("kept", "undecodable")
        assert "other" in letter.headers
    (failing,) = [task(FAILS)]
    async with fast.amqp() as channel:
        message = aio_pika.Message(json.dumps(failing).encode(), headers={**large}, message_id=failing["id"])
        await channel.default_exchange.publish(message, routing_key=QUEUE)
    await until(lambda: worker.says("done"), "it is done at its second attempt")
    assert len([line for line in worker.text().splitlines() if "does without its headers big" in line]) == 4
    assert not worker.says("lost a consumer")


def frame_of(headers: dict[str, Any]) -> int:
    return len(Basic.Properties(headers=headers, message_id="m").marshal()) + 22


def test_what_the_contract_declares_stays_and_a_long_story_is_told_in_short() -> None:
    attempts = [{"worker": "w" * 50, "at": "2026-11-25T09:30:00.000Z", "error": "e" * 900} for _ in range(100)]
    ours: dict[str, Any] = {"x-attempts": attempts, "x-reason": "failed"}
    headers: dict[str, Any] = {**ours, **{f"h{n}": "v" * n for n in range(300)}}
    for most_bytes in (131_000, 20_000, 4_096):
        fit: dict[str, Any] = dict(
            fitted(Basic.Properties(headers=headers, message_id="m"), set(ours), most_bytes).headers or {}
        )
        assert frame_of(fit) <= most_bytes
        assert fit["x-reason"] == "failed"
        assert len(fit["x-attempts"]) == 100 if most_bytes > 20_000 else fit["x-attempts"]
        assert "h299" in fit[DROPPED]


def test_headers_give_way_the_largest_first_and_no_more_than_must() -> None:
    headers: dict[str, Any] = {"a": "x" * 3000, "b": "x" * 2000, "c": "x" * 1000, "x-attempts": []}
    fit = fitted(Basic.Properties(headers=headers), {"x-attempts"}, 4096)
    assert fit.headers == {"b": "x" * 2000, "c": "x" * 1000, "x-attempts": [], DROPPED: "a"}


async def test_copies_keep_the_properties_that_the_sender_gave(fast: Site) -> None:
    worker = await fast.worker()
    said: dict[str, Any] = {
        "content_encoding": "identity", "correlation_id": "c-1", "reply_to": "answers", "priority": 3,
        "content_type": "text/plain", "expiration": 60,
    }  # fmt: skip
    await fast.publish(b"garbage", message_id="m", type="job", user_id=URL(fast.uri).user, **said)
    (letter,) = await fast.dead_letters(1)
    kept = {name: getattr(letter, name) for name in said}
    assert kept == {**said, "expiration": None}
    assert (letter.message_id, letter.type, letter.user_id) == ("m", "dead-letter", None)
    stuck = task({"kind": "nap", "seconds": 0, "failures": 100})
    await fast.publish(
        json.dumps(stuck).encode(), message_id=stuck["id"], **{**said, "content_type": "application/json"}
    )
    (letter,) = await fast.dead_letters(1)  # after a copy on each delay queue
    assert (letter.correlation_id, letter.priority, letter.content_encoding) == ("c-1", 3, "identity")
    assert worker.says("dead")


async def test_a_copy_on_a_delay_queue_says_its_type_and_is_returned_when_there_is_no_such_queue(site: Site) -> None:
    await site.worker()
    failing = task(FAILS)
    async with site.amqp() as channel:
        waiting = await channel.get_queue(RETRY_QUEUE, ensure=False)
        async with waiting.iterator(no_ack=True, timeout=WAIT_S) as copies:  # who only looks may come too late
            await site.send([failing])
            copy: Any = await anext(copies)
    assert (copy.type, copy.message_id) == ("task", failing["id"])
    assert copy.headers["x-attempts"][0]["error"] == "RuntimeError: told to fail 1 times"


# Bodies


async def test_a_body_far_larger_than_the_contracts_costs_no_memory_and_is_dead_lettered(site: Site) -> None:
    if int((await version_of(site.uri)).partition(".")[0]) >= 4:
        pytest.skip("RabbitMQ 4 takes no body larger than 16 MiB, and such a one is held")
    worker = await site.worker()

    def peak_mib() -> int:
        status = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        (line,) = (one for one in status if one.startswith("VmHWM"))
        return int(line.split()[1]) // 1024

    before = peak_mib()
    await site.publish(bytes(110_000_000), message_id="large")
    (letter,) = await site.dead_letters(1)
    assert (len(letter.body), letter.message_id) == (110_000_000, "large")
    deaths: Any = letter.headers["x-death"]
    assert deaths[0]["reason"] == "rejected"
    assert worker.says(f"dead  message  large  in {DEAD_QUEUE}  undecodable: 110000000 bytes, too large to be held")
    assert peak_mib() - before < 32
    tasks = simulate(3)
    await site.send(tasks)
    await site.all_end(tasks)
