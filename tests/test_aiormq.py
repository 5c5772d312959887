"""What the runtime leans on in aiormq, pamqp and aio-pika without their promise: to run first when one of them moves.

Each test is one such fact, checked on the library alone. Beside them `test_properties.py` compares what is read from a
header frame, and written to one, with what pamqp reads and writes, and `test_lane.py` the runtime's own lane with a
channel of aio-pika.
"""

import ast
import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aiormq import Channel, Connection, TransportFactory
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.base import FutureStore
from aiormq.connection import SSLContextProvider
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
)
from pamqp import commands, decode, frame
from pamqp.commands import Basic
from pamqp.encode import field_table
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from tests.harness import ROOT
from tests.test_frames import Taking
from tests.test_refusals import allow_channels, user_of
from workqueue.amqp.copies import UNENCODABLE
from workqueue.amqp.frames import HEARTBEAT_FRAME, publish_frame
from workqueue.amqp.handshake import GONE, Socket, connect, lost
from workqueue.testing import until, vhost
from workqueue.testing.given import Broker
from workqueue.testing.proxy import Proxy

LIBRARIES = ("aiormq", "pamqp", "aio_pika")


def imported(module: Path) -> set[str]:
    """What a module imports of these libraries."""
    found = set[str]()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{one.name}" for one in node.names}
    return {name for name in found if name.partition(".")[0] in LIBRARIES}


def test_all_that_the_runtime_imports_of_these_libraries_is_tested_here() -> None:
    here = imported(Path(__file__)) | imported(Path(__file__).parent / "test_properties.py") | {"aiormq"}
    there = set[str]().union(*(imported(module) for module in (ROOT / "workqueue" / "amqp").glob("*.py")))
    assert there <= here
    others = (ROOT / "workqueue").rglob("*.py")
    assert not any(imported(one) for one in others if not {"amqp", "testing"} & set(one.relative_to(ROOT).parts))


# Arguments


@pytest.mark.parametrize(
    ("value", "error"), [(2**64, TypeError), (object(), TypeError), ({1, 2}, TypeError), ("\ud800", ValueError)]
)
def test_an_argument_that_has_no_form_in_amqp_can_not_be_encoded(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        field_table({"argument": value})
    with pytest.raises(error):
        field_table({"argument": {"below": [value]}})


# Connections


class Factory(TransportFactory):
    """Notes what is written."""

    writes: list[bytes]
    asked: dict[str, Any]

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.writes, self.asked = [], kwargs
        reader, writer = await asyncio.open_connection(url.host, url.port)
        write = writer.write

        def note(data: Any) -> None:
            self.writes.append(bytes(data))
            write(data)

        writer.write = note  # type: ignore[method-assign]
        return reader, writer


async def test_a_connection_writes_whole_frames_to_what_its_factory_gives_so_that_others_may_go_between(
    node: Broker,
) -> None:
    factory = Factory()
    url = URL(vhost(node)).extend_query(heartbeat=7)
    connection = Connection(url, client_properties={"connection_name": "named"}, transport_factory=factory)
    await connection.connect()
    channel = await connection.channel()
    await channel.queue_declare("there", arguments={"x-max-length": 5})
    await channel.basic_consume("there", ignore, consumer_tag="t")
    await connection.close()
    assert factory.asked.keys() == {"ssl_context_provider"}
    header, *writes = factory.writes
    assert header == b"AMQP\x00\x00\x09\x01"
    frames = []
    for data in writes:
        while data:
            used, _, one = frame.unmarshal(data)  # raises for part of a frame
            frames.append(one)
            data = data[used:]
    (start,) = [one for one in frames if isinstance(one, commands.Connection.StartOk)]
    assert start.client_properties["connection_name"] == "named"
    told: Any = start.client_properties["capabilities"]
    assert told["connection.blocked"]
    assert told["consumer_cancel_notify"]
    (tuned,) = [one for one in frames if isinstance(one, commands.Connection.TuneOk)]
    assert (tuned.heartbeat, tuned.frame_max) == (7, connection.connection_tune.frame_max)
    assert connection.url.user == URL(vhost(node)).user


async def test_the_provider_of_tls_gives_a_context_that_checks_the_peer() -> None:
    given = list[ssl.SSLContext]()

    class Tls(TransportFactory):
        async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            provider: SSLContextProvider = kwargs["ssl_context_provider"]
            given.append(await provider.get_context())
            raise OSError("that is all")

    with pytest.raises(OSError, match="that is all"):
        await Connection("amqps://there/", transport_factory=Tls()).connect()
    assert given[0].verify_mode is ssl.CERT_REQUIRED


@asynccontextmanager
async def connected(uri: str) -> AsyncIterator[tuple[Connection, Socket]]:
    connection, socket = await connect(URL(uri), "tested", 5.0)
    try:
        yield connection, socket
    finally:
        socket.abort()


async def test_a_socket_that_is_aborted_ends_what_is_awaited_and_all_tasks_of_the_connection(node: Broker) -> None:
    async with connected(vhost(node)) as (connection, socket):
        channel = await connection.channel()
        asking = asyncio.ensure_future(channel.queue_declare("there"))
        await asyncio.sleep(0)
        socket.abort()
        with pytest.raises(GONE):
            await asking
        await until(lambda: channel.is_closed, "the channel is closed")
        with pytest.raises(GONE):
            await channel.queue_declare("there")
        with pytest.raises(GONE):
            await connection.channel()
    await until(lambda: len(asyncio.all_tasks()) == 1, "aiormq has put itself away", 10)


async def test_closing_a_connection_ends_its_channels_with_an_exception_that_is_no_cancellation(node: Broker) -> None:
    async with connected(vhost(node)) as (connection, _):
        closing = (await connection.channel()).closing
        await connection.close(ConnectionError("it was closed"))
        async with asyncio.timeout(5):
            await asyncio.wait([closing])
        assert not closing.cancelled()
        assert isinstance(closing.exception(), Exception)


async def test_a_peer_that_hangs_up_in_the_handshake_raises_what_is_known_of_lost_connections() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(GONE):
            await Connection(f"amqp://guest:guest@127.0.0.1:{port}/").connect()


async def test_a_heartbeat_that_is_put_into_the_stream_counts_as_a_sign_of_life(
    node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "HEARTBEAT_GRACE_MULTIPLIER", 0.75)  # of one second, and one more
    uri = vhost(node)
    async with Proxy(node.port) as proxy:
        uri = f"{uri.replace(f':{node.port}/', f':{proxy.port}/')}?heartbeat=1"
        async with connected(uri) as (connection, socket):
            (flow,) = proxy.flows
            flow.to_client.open.clear()
            for _ in range(16):
                socket.tap.feed_data(HEARTBEAT_FRAME)
                await asyncio.sleep(0.25)
            assert not connection.is_closed
            await until(lambda: connection.is_closed, "without them it gives up", 10)


# Channels


async def ignore(message: DeliveredMessage) -> None:
    pass


async def test_what_is_taken_off_the_stream_is_not_missed_and_confirms_are_counted_from_one(node: Broker) -> None:
    async with connected(vhost(node)) as (connection, socket):
        channel = await connection.channel()
        assert isinstance(channel, Channel)
        await channel.queue_declare("there")
        receiver, got = Taking(), list[DeliveredMessage]()

        async def take(message: DeliveredMessage) -> None:
            got.append(message)

        await channel.basic_qos(prefetch_count=10)
        await channel.basic_consume("there", take, consumer_tag="tag")
        socket.tap.attach(receiver, channel.number)
        assert socket.transport is not None
        for number in range(3):
            header = ContentHeader(0, 0, Basic.Properties(message_id=str(number)))
            socket.transport.write(publish_frame("there", True, channel.number) + frame.marshal(header, channel.number))
        await until(lambda: len(receiver.deliveries) == 3 and len(receiver.confirms) >= 1, "they are delivered")
        told = await channel.queue_declare("there", passive=True)
        assert (told.message_count, told.consumer_count) == (0, 1)
        await until(lambda: receiver.confirms[-1][0] == 3, "they are confirmed")
        await channel.basic_cancel("tag")
        await channel.basic_consume("there", take, consumer_tag="tag")
        assert got == []


async def test_each_look_at_closing_leaves_a_future_which_ends_with_the_channel_and_is_closed_leaves_none(
    node: Broker,
) -> None:
    async with connected(vhost(node)) as (connection, _):
        channel = await connection.channel()
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel.closing.add_done_callback(told.set_result)
        assert channel.closing is not channel.closing
        assert not channel.is_closed
        with pytest.raises(ChannelNotFoundEntity):
            await channel.queue_declare("nowhere", passive=True)
        async with asyncio.timeout(5):
            assert isinstance((await told).exception(), ChannelNotFoundEntity)
        assert channel.is_closed


async def test_a_consumer_that_the_broker_cancels_is_told_to_a_plain_function(node: Broker) -> None:
    async with connected(vhost(node)) as (connection, _):
        channel, other = await connection.channel(), await connection.channel()
        await channel.queue_declare("there")
        told = list[object]()
        for _ in range(2):
            channel.on_consumer_cancel_callbacks.add(told.append)  # the same one twice is one
        await channel.basic_consume("there", ignore)
        await other.queue_delete("there")
        await until(lambda: len(told) == 1, "it is told")
        assert not channel.is_closed


async def missing(node: Broker, uri: str, channel: AbstractChannel) -> None:
    await channel.queue_declare("nowhere", passive=True)


async def different(node: Broker, uri: str, channel: AbstractChannel) -> None:
    await channel.queue_declare("there", durable=True, arguments={"x-max-length": 5})
    await channel.queue_declare("there", durable=True, arguments={"x-max-length": 6})


async def locked(node: Broker, uri: str, channel: AbstractChannel) -> None:
    async with connected_beside(uri) as other:
        await (await other.channel()).queue_declare("theirs", exclusive=True)
        await channel.queue_declare("theirs", exclusive=True)


async def forbidden(node: Broker, uri: str, channel: AbstractChannel) -> None:
    async with connected_beside(user_of(node, uri, "^$", ".*", ".*")) as other:
        await (await other.channel(publisher_confirms=False)).queue_declare("there")


@asynccontextmanager
async def connected_beside(uri: str) -> AsyncIterator[AbstractConnection]:
    connection = Connection(uri)
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("ask", "error", "word"),
    [
        (missing, ChannelNotFoundEntity, "NOT_FOUND"),
        (different, ChannelPreconditionFailed, "x-max-length"),
        (locked, ChannelLockedResource, "RESOURCE_LOCKED"),
        (forbidden, ChannelAccessRefused, "ACCESS_REFUSED"),
    ],
)
async def test_a_refusal_is_told_by_its_class_in_the_brokers_words_and_costs_one_channel(
    node: Broker, ask: Any, error: type[ChannelClosed], word: str
) -> None:
    uri = vhost(node)
    async with connected(uri) as (connection, _):
        with pytest.raises(ChannelClosed, match=word) as refusal:
            await ask(node, uri, await connection.channel(publisher_confirms=False))
        assert type(refusal.value) is error
        assert isinstance(refusal.value, AMQPError)
        again = await connection.channel(publisher_confirms=False)
        await again.queue_declare("another", exclusive=True)
        await again.close()


async def test_a_channel_beyond_the_users_limit_costs_the_connection_and_is_told_so(node: Broker) -> None:
    uri = user_of(node, vhost(node), ".*", ".*", ".*")
    allow_channels(node, uri, 1)
    async with connected_beside(uri) as connection:
        await connection.channel()
        with pytest.raises(ConnectionNotAllowed, match="maximum allowed user limit"):
            await connection.channel()
        assert connection.is_closed


# pamqp


def test_properties_are_iterated_as_pairs_and_made_of_them_again() -> None:
    properties = Basic.Properties(message_id="m", headers={"x": [1]}, timestamp=datetime(2026, 11, 25, tzinfo=UTC))
    pairs: Any = iter(properties)
    values: dict[str, Any] = dict(pairs)
    assert {"message_id", "message_type", "headers", "priority", "app_id"} <= values.keys()
    assert Basic.Properties(**values) == properties
    assert frame.marshal(ContentHeader(0, 7, properties), 3) == frame.marshal(
        ContentHeader(0, 7, Basic.Properties(**values)), 3
    )


UNWRITABLE: list[Any] = [object(), "\ud800", 2**70, {"\ud800": 1}]


@pytest.mark.parametrize("value", UNWRITABLE, ids=lambda value: f"{value!a:.20}")
def test_what_cannot_be_written_raises_what_is_known(value: Any) -> None:
    with pytest.raises(UNENCODABLE):
        Basic.Properties(headers={"x": value}).marshal()


def test_a_table_is_read_with_its_length() -> None:
    headers: Any = {"x": 1, "y": ["z"]}
    content = frame.marshal(ContentHeader(0, 0, Basic.Properties(headers=headers)), 1)
    table = content[7 + 14 : -1]  # after the start of the frame, of the header
    assert decode.field_table(table + b"more") == (len(table), headers)


def test_a_heartbeat_is_eight_bytes() -> None:
    assert frame.marshal(Heartbeat(), 0) == b"\x08\x00\x00\x00\x00\x00\x00\xce"


async def test_what_waits_on_a_channel_that_goes_without_a_reason_raises_a_bare_exception() -> None:
    waiting = FutureStore(asyncio.get_running_loop())
    call = waiting.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    await waiting.reject_all(None)
    with pytest.raises(Exception, match=r"^$") as caught:
        await call
    assert type(caught.value) is Exception
    with pytest.raises(ConnectionError, match="the channel was lost"), lost():
        raise caught.value


async def test_what_waits_on_a_connection_that_is_closed_without_a_reason_looks_as_if_it_were_cancelled(
    node: Broker,
) -> None:
    """As one is that aiormq takes for dead: after the process stood still, for one."""
    async with Proxy(node.port) as proxy:
        uri = vhost(node).replace(f":{node.port}/", f":{proxy.port}/")
        async with connected(f"{uri}?heartbeat=1") as (connection, _):
            channel = await connection.channel()
            proxy.stall()

            async def look() -> None:
                with lost():
                    await channel.queue_declare("there", passive=True)

            waiting = [
                asyncio.ensure_future(channel.queue_declare("there", passive=True)),
                asyncio.ensure_future(look()),
            ]
            await asyncio.sleep(0.2)
            closing = asyncio.ensure_future(channel.close())
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(end) for end in ends] == [asyncio.CancelledError, ConnectionError]
            closing.cancel()


async def test_a_cancellation_that_somebody_asked_for_passes() -> None:
    async def wait() -> None:
        with lost():
            await asyncio.sleep(60)

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wait()


# aio-pika


async def test_a_queue_is_looked_at_by_a_passive_declaration(node: Broker) -> None:
    async with await aio_pika.connect(vhost(node), timeout=5.0) as connection:
        channel = await connection.channel()
        await channel.declare_queue("there")
        told = (await channel.declare_queue("there", passive=True, timeout=5.0)).declaration_result
        assert (told.message_count, told.consumer_count) == (0, 0)
        with pytest.raises(GONE):
            await channel.declare_queue("nowhere", passive=True, timeout=5.0)
