"""Generated routers for AsyncAPI operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Any
from typing_extensions import Unpack

from asyncapi_python.kernel.application import BaseApplication
from asyncapi_python.kernel.endpoint import Publisher, Subscriber, RpcClient, RpcServer
from asyncapi_python.kernel.wire import AbstractWireFactory
from asyncapi_python.kernel.codec import CodecFactory
import asyncapi_python.kernel.document as spec
from .messages import json


class SendErrandRouter(Publisher[json.Task]):
    """Send an errand"""

    class Inputs(Publisher.Inputs):
        """Base inputs (no channel parameters)."""

        pass

    def __init__(
        self,
        wire_factory: AbstractWireFactory[Any, Any],
        codec_factory: CodecFactory[Any, Any],
    ):
        operation = spec.Operation(
            action="send",
            title="Send an errand",
            summary=None,
            description="A task counts as sent once the broker has routed it to the queue, stored it and confirmed it.",
            channel=spec.Channel(
                address="errands",
                title="Errands to be done",
                summary=None,
                description="Every worker consumes from this queue, so each task goes to exactly one of them.",
                servers=[],
                messages={
                    "Task": spec.Message(
                        content_type="application/json",
                        headers={"$ref": "#/components/schemas/TaskHeaders"},
                        payload={"$ref": "#/components/schemas/Task"},
                        summary="One piece of work, done by exactly one worker.",
                        name="Task",
                        title="A task",
                        description=None,
                        deprecated=None,
                        correlation_id=spec.CorrelationId(
                            description="The task's id is also its message id, so a message is known before its body is read.",
                            location="$message.payload#/id",
                        ),
                        tags=[],
                        externalDocs=None,
                        bindings=spec.MessageBindings(
                            http=None,
                            amqp1=None,
                            mqtt=None,
                            nats=None,
                            stomp=None,
                            redis=None,
                            solace=None,
                            ws=None,
                            amqp={"messageType": "task", "bindingVersion": "0.3.0"},
                            kafka=None,
                            anypointmq=None,
                            jms=None,
                            sns=None,
                            sqs=None,
                            ibmmq=None,
                            googlepubsub=None,
                            pulsar=None,
                        ),
                        traits=[],
                        key="",
                    )
                },
                parameters={},
                tags=[],
                external_docs=None,
                bindings=spec.ChannelBindings(
                    http=None,
                    amqp1=None,
                    mqtt=None,
                    nats=None,
                    stomp=None,
                    redis=None,
                    solace=None,
                    ws=None,
                    amqp=spec.AmqpChannelBinding(
                        type="queue",
                        queue=spec.AmqpQueue(
                            name="errands",
                            durable=True,
                            exclusive=False,
                            auto_delete=None,
                            vhost=None,
                            arguments={
                                "x-queue-type": "quorum",
                                "x-dead-letter-exchange": "",
                                "x-dead-letter-routing-key": "errands-buried",
                                "x-dead-letter-strategy": "at-least-once",
                                "x-overflow": "reject-publish",
                                "x-delivery-limit": 1000000,
                                "x-quorum-initial-group-size": 3,
                            },
                        ),
                        exchange=None,
                        binding_version="0.3.0",
                        extensions={},
                    ),
                    kafka=None,
                    anypointmq=None,
                    jms=None,
                    sns=None,
                    sqs=None,
                    ibmmq=None,
                    googlepubsub=None,
                    pulsar=None,
                ),
                key="/ping/pubsub",
            ),
            messages=[
                spec.Message(
                    content_type="application/json",
                    headers={"$ref": "#/components/schemas/TaskHeaders"},
                    payload={"$ref": "#/components/schemas/Task"},
                    summary="One piece of work, done by exactly one worker.",
                    name="Task",
                    title="A task",
                    description=None,
                    deprecated=None,
                    correlation_id=spec.CorrelationId(
                        description="The task's id is also its message id, so a message is known before its body is read.",
                        location="$message.payload#/id",
                    ),
                    tags=[],
                    externalDocs=None,
                    bindings=spec.MessageBindings(
                        http=None,
                        amqp1=None,
                        mqtt=None,
                        nats=None,
                        stomp=None,
                        redis=None,
                        solace=None,
                        ws=None,
                        amqp={"messageType": "task", "bindingVersion": "0.3.0"},
                        kafka=None,
                        anypointmq=None,
                        jms=None,
                        sns=None,
                        sqs=None,
                        ibmmq=None,
                        googlepubsub=None,
                        pulsar=None,
                    ),
                    traits=[],
                    key="",
                )
            ],
            reply=None,
            traits=[],
            security=[],
            tags=[],
            external_docs=None,
            bindings=spec.OperationBindings(
                http=None,
                amqp1=None,
                mqtt=None,
                nats=None,
                stomp=None,
                redis=None,
                solace=None,
                ws=None,
                amqp=spec.AmqpOperationBinding(
                    expiration=None,
                    user_id=None,
                    cc=None,
                    priority=None,
                    delivery_mode=2,
                    mandatory=True,
                    bcc=None,
                    timestamp=True,
                    ack=None,
                    binding_version="0.3.0",
                    extensions={},
                ),
                kafka=None,
                anypointmq=None,
                jms=None,
                sns=None,
                sqs=None,
                ibmmq=None,
                googlepubsub=None,
                pulsar=None,
            ),
            key="send_errand",
        )

        super().__init__(
            operation=operation, wire_factory=wire_factory, codec_factory=codec_factory
        )


class SendChoreRouter(Publisher[json.Task]):
    """Send a chore"""

    class Inputs(Publisher.Inputs):
        """Base inputs (no channel parameters)."""

        pass

    def __init__(
        self,
        wire_factory: AbstractWireFactory[Any, Any],
        codec_factory: CodecFactory[Any, Any],
    ):
        operation = spec.Operation(
            action="send",
            title="Send a chore",
            summary=None,
            description=None,
            channel=spec.Channel(
                address="chores",
                title="Chores to be done",
                summary=None,
                description="As errands, for whoever does chores.",
                servers=[],
                messages={
                    "Task": spec.Message(
                        content_type="application/json",
                        headers={"$ref": "#/components/schemas/TaskHeaders"},
                        payload={"$ref": "#/components/schemas/Task"},
                        summary="One piece of work, done by exactly one worker.",
                        name="Task",
                        title="A task",
                        description=None,
                        deprecated=None,
                        correlation_id=spec.CorrelationId(
                            description="The task's id is also its message id, so a message is known before its body is read.",
                            location="$message.payload#/id",
                        ),
                        tags=[],
                        externalDocs=None,
                        bindings=spec.MessageBindings(
                            http=None,
                            amqp1=None,
                            mqtt=None,
                            nats=None,
                            stomp=None,
                            redis=None,
                            solace=None,
                            ws=None,
                            amqp={"messageType": "task", "bindingVersion": "0.3.0"},
                            kafka=None,
                            anypointmq=None,
                            jms=None,
                            sns=None,
                            sqs=None,
                            ibmmq=None,
                            googlepubsub=None,
                            pulsar=None,
                        ),
                        traits=[],
                        key="",
                    )
                },
                parameters={},
                tags=[],
                external_docs=None,
                bindings=spec.ChannelBindings(
                    http=None,
                    amqp1=None,
                    mqtt=None,
                    nats=None,
                    stomp=None,
                    redis=None,
                    solace=None,
                    ws=None,
                    amqp=spec.AmqpChannelBinding(
                        type="queue",
                        queue=spec.AmqpQueue(
                            name="chores",
                            durable=True,
                            exclusive=False,
                            auto_delete=None,
                            vhost=None,
                            arguments={
                                "x-queue-type": "quorum",
                                "x-dead-letter-exchange": "",
                                "x-dead-letter-routing-key": "chores-buried",
                                "x-dead-letter-strategy": "at-least-once",
                                "x-overflow": "reject-publish",
                                "x-delivery-limit": 1000000,
                                "x-quorum-initial-group-size": 3,
                            },
                        ),
                        exchange=None,
                        binding_version="0.3.0",
                        extensions={},
                    ),
                    kafka=None,
                    anypointmq=None,
                    jms=None,
                    sns=None,
                    sqs=None,
                    ibmmq=None,
                    googlepubsub=None,
                    pulsar=None,
                ),
                key="/ping/pubsub",
            ),
            messages=[
                spec.Message(
                    content_type="application/json",
                    headers={"$ref": "#/components/schemas/TaskHeaders"},
                    payload={"$ref": "#/components/schemas/Task"},
                    summary="One piece of work, done by exactly one worker.",
                    name="Task",
                    title="A task",
                    description=None,
                    deprecated=None,
                    correlation_id=spec.CorrelationId(
                        description="The task's id is also its message id, so a message is known before its body is read.",
                        location="$message.payload#/id",
                    ),
                    tags=[],
                    externalDocs=None,
                    bindings=spec.MessageBindings(
                        http=None,
                        amqp1=None,
                        mqtt=None,
                        nats=None,
                        stomp=None,
                        redis=None,
                        solace=None,
                        ws=None,
                        amqp={"messageType": "task", "bindingVersion": "0.3.0"},
                        kafka=None,
                        anypointmq=None,
                        jms=None,
                        sns=None,
                        sqs=None,
                        ibmmq=None,
                        googlepubsub=None,
                        pulsar=None,
                    ),
                    traits=[],
                    key="",
                )
            ],
            reply=None,
            traits=[],
            security=[],
            tags=[],
            external_docs=None,
            bindings=spec.OperationBindings(
                http=None,
                amqp1=None,
                mqtt=None,
                nats=None,
                stomp=None,
                redis=None,
                solace=None,
                ws=None,
                amqp=spec.AmqpOperationBinding(
                    expiration=None,
                    user_id=None,
                    cc=None,
                    priority=None,
                    delivery_mode=2,
                    mandatory=True,
                    bcc=None,
                    timestamp=True,
                    ack=None,
                    binding_version="0.3.0",
                    extensions={},
                ),
                kafka=None,
                anypointmq=None,
                jms=None,
                sns=None,
                sqs=None,
                ibmmq=None,
                googlepubsub=None,
                pulsar=None,
            ),
            key="send_chore",
        )

        super().__init__(
            operation=operation, wire_factory=wire_factory, codec_factory=codec_factory
        )


class ProducerRouter:
    """Router aggregating all producer (send) operations."""

    def __init__(
        self,
        wire_factory: AbstractWireFactory[Any, Any],
        codec_factory: CodecFactory[Any, Any],
    ):
        """Initialize producer router with all send operations."""
        self.send_errand = SendErrandRouter(wire_factory, codec_factory)
        self.send_chore = SendChoreRouter(wire_factory, codec_factory)


class ConsumerRouter:
    """Router aggregating all consumer (receive) operations."""

    def __init__(
        self,
        wire_factory: AbstractWireFactory[Any, Any],
        codec_factory: CodecFactory[Any, Any],
    ):
        """Initialize consumer router with all receive operations."""
