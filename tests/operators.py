"""The commands for operators, as processes, for a site of the tests' own contract."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from tests.harness import Site
from workqueue.cli.records import schemas


@dataclass(frozen=True)
class Told:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        return json.loads(self.out)


async def start(site: Site, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    own = {"AMQP_URI": site.uri, "LEDGER_URL": site.ledger_url, **environment}
    folder = () if "--project" in arguments else ("--project", str(site.project / "tests"))
    command = (sys.executable, "-m", "workqueue", *arguments, *folder)
    return await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=site.project, env={**os.environ, **own}
    )


async def workqueue(site: Site, *arguments: str, given: str = "", **environment: str) -> Told:
    done = await site.workqueue(*arguments, given=given, **environment)
    told = Told(done.code, done.out, done.err)
    if told.out and arguments[-2:] == ("-o", "json"):
        check(arguments, told.value)
    return told


async def ask(site: Site, *arguments: str) -> Any:
    told = await workqueue(site, *arguments, "-o", "json")
    assert told.code in (0, 1), told.err
    return told.value


def check(arguments: tuple[str, ...], value: Any) -> None:
    """That a record is what `workqueue records` says it is."""
    name, whole = " ".join(arguments[: 1 + (arguments[0] in ("dead", "ledger"))]), schemas()
    Draft202012Validator({**whole["properties"][name], "$defs": closed(whole["$defs"])}).validate(value)


def closed(definitions: dict[str, Any]) -> dict[str, Any]:
    """The same, with nothing in a record that its schema does not name."""
    return {
        name: {**one, "additionalProperties": False} if one.get("type") == "object" else one
        for name, one in definitions.items()
    }
