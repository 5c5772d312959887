"""The JSON Schemas of what the commands for operators write. That they write it is seen wherever a test asks one."""

import json

import pytest
from jsonschema import Draft202012Validator

from workqueue.cli import COMMANDS, main, records


def test_the_schemas_are_written_and_are_schemas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["records"]) == 0
    written = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(written)
    assert written == records.schemas()
    assert {name.split()[0] for name in written["properties"]} <= COMMANDS.keys()


def test_a_record_that_lacks_something_or_has_another_type_is_none() -> None:
    whole = records.schemas()
    paused = Draft202012Validator({**whole["properties"]["pause"], "$defs": whole["$defs"]})
    record = {
        "queue": "q",
        "paused": True,
        "changed": True,
        "obey": ["one"],
        "others": [],
        "gone": [],
        "consumers": None,
    }
    assert paused.is_valid(record)
    assert not paused.is_valid({**record, "obey": "one"})
    assert not paused.is_valid({"queue": "q"})
