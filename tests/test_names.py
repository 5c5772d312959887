"""A name in the contract is one property, in Python too."""

from pathlib import Path
from typing import Any

import pytest

from tests.test_values import TEXT, compiled, kind, union
from workqueue.compiler import generate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("one", "other"), [("x-thing", "x_thing"), ("class", "class_")])
def test_a_property_with_the_python_name_of_another_is_refused_with_schema_and_both(
    tmp_path: Path, one: str, other: str
) -> None:
    def add(schemas: dict[str, Any]) -> None:
        schemas["Odd"] = kind("odd", inner={"type": "object", "properties": {one: TEXT, other: TEXT}})
        union(schemas).append({"$ref": "#/components/schemas/Odd"})

    with pytest.raises(generate.SpecError) as refused:
        compiled(tmp_path / "project", add)
    (line,) = refused.value.problems
    assert line.startswith("spec/common.asyncapi.yaml#/components/schemas/Odd/properties/inner: the properties ")
    assert f"{one} and {other}" in line or f"{other} and {one}" in line


def test_the_same_names_in_different_objects_are_no_problem(tmp_path: Path) -> None:
    def add(schemas: dict[str, Any]) -> None:
        union(schemas).append(kind("odd", **{"x-thing": TEXT}))
        union(schemas).append(kind("even", x_thing=TEXT))

    compiled(tmp_path / "project", add)
