"""The contract's codecs: `ModelCodec` and `ResultCodec`, and how the generated applications come to use them."""

from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from asyncapi_python.contrib.codec import CodecRegistry
from asyncapi_python.kernel.codec import CodecFactory
from asyncapi_python.kernel.document import Message as KernelMessage
from pydantic import BaseModel

from workqueue import contract
from workqueue.codec.models import Body, ModelCodec, ResultCodec, Undecodable
from workqueue.codec.schema import ERROR_LIMIT, Schema, printable
from workqueue.codec.values import digest, named

__all__ = [
    "ERROR_LIMIT",
    "Body",
    "ContractCodecs",
    "ModelCodec",
    "ResultCodec",
    "Schema",
    "Undecodable",
    "digest",
    "for_model",
    "install",
    "named",
    "printable",
]

M = TypeVar("M", bound=BaseModel)


class ContractCodecs(CodecFactory[Any, bytes]):
    """Makes the codecs of a generated package from its models and its contract.json."""

    def create(self, message: KernelMessage) -> ModelCodec[Any]:
        return _codec(self._module, str(message.name))


@cache
def _codec(module: ModuleType, name: str) -> ModelCodec[Any]:
    """One for all applications of the package: each consumer has an application, and to compile a schema takes a
    millisecond and 70 KiB."""
    loaded = contract.load(module.__name__)
    operations: list[contract.Send | contract.Receive] = [*loaded.sends.values(), *loaded.receives.values()]
    messages = {operation.message.name: operation.message for operation in operations}
    return ModelCodec(getattr(module.messages.json, name), messages[name])


def for_model(model: type[M]) -> ModelCodec[M]:
    """The codec of a message that a generated package sends, by its model. Raises ContractInvalid."""
    sends = contract.load(model.__module__.removesuffix(".messages.json")).sends.values()
    message = next(send.message for send in sends if send.message.name == model.__name__)
    return ModelCodec(model, message)


def install() -> None:
    """Make the generated applications use these codecs for the contract's content type."""
    CodecRegistry.register("application/json", ContractCodecs)
