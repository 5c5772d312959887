"""Whether a model can change a value that its schema accepts.

`make generate` has proved that models keep what is usual; what is left are values that the Python type of a field can't
hold as they are. Where the schema accepts none of those, no message has to be compared with what became of it.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import jsonschema_rs

from workqueue import kinds

PROBES: Mapping[str, tuple[Any, ...]] = {
    "number": (2**53 + 1, -(2**53) - 1, 1e400),
    "date": ("2026-01-01T00:00:00Z", "2026-01-01t00:00:00z"),
    "date-time": ("2026-01-01T00:00:00.1234567Z", "2026-01-01T00:00:00.1234567+00:00", "2026-01-01"),
    "uuid": (f"urn:uuid:{UUID(int=0)}", f"{{{UUID(int=0)}}}", "0" * 32),
}
"""By type and format of a field: what a float, a date, a datetime or a UUID would write in another way."""


def may_change(schema: Mapping[str, Any]) -> bool:
    """Whether a field of the schema, which brings its definitions along, accepts what its model would change."""
    schemas = schema["components"]["schemas"]
    for _, part in kinds.walk(schema["allOf"][0], schemas, "", set()):
        probes = [probe for name in _sorts(part) for probe in PROBES[name]]
        if probes:
            whole = {"allOf": [part], "components": {"schemas": schemas}}
            validator = jsonschema_rs.Draft7Validator(whole, validate_formats=True)
            if any(validator.is_valid(probe) for probe in probes):
                return True
    return False


def _sorts(part: Mapping[str, Any]) -> set[str]:
    types, given = part.get("type"), str(part.get("format", ""))
    sorts = {"uuid"} if given.startswith("uuid") else {given} & PROBES.keys()
    return sorts | ({"number"} if types == "number" or (isinstance(types, list) and "number" in types) else set())
