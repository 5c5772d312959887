"""Whole numbers that are written as fractions, `1.0` or `1e3`: JSON Schema takes them for integers, Python and AMQP do
not. They are made integers once, where the document is made whole; a `number` stays as it was written."""

from typing import Any

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "x-max-bytes")
VALUES = ("const", "default", "enum")


def integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def of_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema's counts, and what it says its value is where that is an integer."""
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    keys = (*COUNTS, *VALUES) if "integer" in types and "number" not in types else COUNTS
    return {key: _integral(value) if key in keys else value for key, value in schema.items()}


def _integral(value: Any) -> Any:
    return [integral(one) for one in value] if isinstance(value, list) else integral(value)
