"""What the generated models must be, said of the schemas that they were made of: each message has one, its fields are
told apart in Python, and what stands for a field that is left out is what a handler would otherwise get."""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticSerializationError

from workqueue.compiler import lint_schemas
from workqueue.compiler.documents import mapping
from workqueue.compiler.findings import shown
from workqueue.compiler.resolve import Resolved


def problems(resolved: Resolved, models: ModuleType) -> Iterator[str]:
    yield from _missing(resolved, models)
    for model in vars(models).values():
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from _ambiguous(resolved, model)
            yield from _defaults(resolved, model)


def _missing(resolved: Resolved, models: ModuleType) -> Iterator[str]:
    for operation in resolved.document["operations"].values():
        channel = operation["channel"]["$ref"].rpartition("/")[2]
        (message,) = resolved.document["channels"][channel]["messages"].values()
        model = getattr(models, message["name"], None)
        names = _names(model) if isinstance(model, type) and issubclass(model, BaseModel) else set()
        if not _fields(resolved, message) <= names:
            place = resolved.place("components", "schemas", message["name"])
            yield f"{place}: the generator makes no model {message['name']} of it; rename it"


def _ambiguous(resolved: Resolved, model: type[BaseModel]) -> Iterator[str]:
    """Two properties of which one is the Python name of the other: a model that is made by name would fill both."""
    keys = {name: field.alias or name for name, field in model.model_fields.items()}
    for name, key in keys.items():
        if name != key and name in keys.values():
            both = [at for at, properties in _stated(resolved) if {name, key} <= properties.keys()]
            either = [at for at, properties in _stated(resolved) if {name, key} & properties.keys()]
            place = resolved.place(*(both or either)[0])
            yield f"{place}: the properties {key} and {name} would both be {name} in Python; rename one of them"


def _defaults(resolved: Resolved, model: type[BaseModel]) -> Iterator[str]:
    """Defaults that reach a handler as the contract writes them, not as the type of their field. Looked for in the
    models, since a value in which a field is left out is made of few."""
    for name, field in model.model_fields.items():
        if field.is_required() or field.validate_default:
            continue
        default, key = field.get_default(call_default_factory=True), field.alias or name
        try:
            kept: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)
            kept.dump_json(default, warnings="error")
        except PydanticSerializationError:
            stating = [(*at, "properties", key) for at, properties in _stated(resolved)
                       if mapping(properties.get(key)).get("default") == default]  # fmt: skip
            place = resolved.place(*stating[0], "default") if stating else f"{resolved.place()}: {model.__name__}.{key}"
            text = "would reach a handler as it is written, not as the type of its field"
            yield f"{place}: {shown(default)} {text}; leave the default out"


def _stated(resolved: Resolved) -> Iterator[tuple[lint_schemas.Path, Mapping[str, Any]]]:
    """The properties of each schema, with its place."""
    schemas = resolved.document["components"]["schemas"]
    for name, schema in schemas.items():
        for at, part in lint_schemas.within(("components", "schemas", name), schema):
            yield at, part.get("properties", {})


def _fields(resolved: Resolved, message: dict[str, Any]) -> set[str]:
    schema = resolved.document["components"]["schemas"].get(
        str(message["payload"].get("$ref", "")).rpartition("/")[2], {}
    )
    return set(schema.get("properties", {}))


def _names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}
