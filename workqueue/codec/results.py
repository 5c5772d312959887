"""Results, from the ledger's JSON to the generated model: the other way than `ResultCodec`."""

from collections.abc import Iterator, Mapping
from types import ModuleType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import from_json

from workqueue import kinds
from workqueue.codec.models import dump, read
from workqueue.codec.schema import Schema
from workqueue.codec.values import change
from workqueue.contract import Message, Send


class ResultReader:
    """Reads the results of one operation's tasks, which are of these `kinds`, into the models of their schema."""

    def __init__(self, send: Send, models: ModuleType) -> None:
        self.kinds, schema = send.kinds, send.message.result_schema
        self._schema = None if schema is None else Schema(schema)
        self._models = [model for made in result_models(send.message, models) for model in made]

    def read(self, text: str) -> Any:
        """The model that holds the result as it is; the plain value where the contract states no schema of results, or
        one without models. Raises ValueError, one line, for a result that breaks this contract."""
        value = from_json(text)
        if self._schema is None:
            return value
        if (problem := self._schema.problem(value)) is not None:
            raise ValueError(problem)
        held: list[BaseModel] = []
        for model in self._models:
            try:
                made = read(model, value)
            except ValidationError:
                continue
            if change(value, from_json(dump(made))) is None:
                held.append(made)
        # An open model holds another one's properties too, as extra ones.
        return min(held, key=extras, default=value)


def extras(value: Any) -> int:
    """How many properties of a model, and of those in it, it does not know."""
    match value:
        case BaseModel():
            return len(value.model_extra or ()) + sum(extras(below) for _, below in value)
        case list():
            return sum(map(extras, value))
        case dict():
            return sum(map(extras, value.values()))
        case _:
            return 0


def result_models(message: Message, models: ModuleType) -> list[list[Any]]:
    """The models that a result of this message's tasks may be of, for each alternative of its schema.

    A payload may have the same properties and constants as its result: its model is left out."""
    if message.result_schema is None:
        return []
    schemas: Mapping[str, Any] = message.schema["components"]["schemas"]
    payloads = set(models_in(getattr(models, message.name).model_fields["payload"].annotation))
    found = [
        models_of(path, models, schemas) for path in kinds.alternatives(message.result_schema["allOf"][0], schemas)
    ]
    return [[model for model in made if model not in payloads] or made for made in found]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of a field's type: itself, or the members of a union."""
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from models_in(member)
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def models_of(path: tuple[Mapping[str, Any], ...], models: ModuleType, schemas: Mapping[str, Any]) -> list[Any]:
    """The generated models of an alternative: those with its properties and its constants."""
    properties = {name for part in path for name in part.get("properties", {})}
    constants = kinds.merged(path, schemas)
    found = []
    for model in vars(models).values():
        if not isinstance(model, type) or not issubclass(model, BaseModel) or issubclass(model, RootModel):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if fields.keys() == properties and properties:
            told = {name: getattr(fields[name].annotation, "__args__", ()) for name in constants}
            if all(set(map(kinds.text, values)) == set(map(kinds.text, told[n])) for n, values in constants.items()):
                found.append(model)
    return found
