"""`workqueue records`: the JSON Schemas of what the commands for operators write with `-o json`."""

import json
from typing import Any

from pydantic import TypeAdapter

from workqueue.cli.operate import app, call
from workqueue.cli.output import put
from workqueue.ops.audit import Action
from workqueue.ops.cancelling import Cancelled
from workqueue.ops.copying import Copied
from workqueue.ops.doctor import Finding
from workqueue.ops.forgetting import Forgotten
from workqueue.ops.letters import Group, Letter, Opened
from workqueue.ops.pausing import Paused
from workqueue.ops.plan import Plan
from workqueue.ops.status import Status
from workqueue.ops.story import Story
from workqueue.ops.tasks import Task
from workqueue.ops.workers import Worker

RECORDS: dict[str, Any] = {
    "status": Status,
    "workers": list[Worker],
    "task": Story,
    "tasks": list[Task],
    "dead groups": list[Group],
    "dead list": list[Letter],
    "dead show": list[Opened],
    "cancel": list[Cancelled],
    "pause": Paused,
    "resume": Paused,
    "forget": list[Forgotten],
    "audit": list[Action],
    "ledger copy": Copied,
    "doctor": list[Finding],
    "plan": Plan,
}
"""By command. With `-o jsonl` each record of a list is a line."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"

commands = app()


@commands.command()
def show() -> int:
    """The JSON Schema of each command's answer, under the command's name in `properties`.

    A later version may add to a record; it takes nothing away within a major one.
    """
    put(json.dumps(schemas(), indent=2) + "\n")
    return 0


def schemas() -> dict[str, Any]:
    """One schema, of an object that would hold the answer of each command under its name."""
    adapters = [(name, "serialization", TypeAdapter(record)) for name, record in RECORDS.items()]
    found, rest = TypeAdapter.json_schemas(adapters)  # type: ignore[arg-type]
    return {"$schema": DIALECT, "properties": {name: found[name, "serialization"] for name in RECORDS}, **rest}


def main(arguments: list[str]) -> int:
    return call(commands, "workqueue records", arguments)
