"""Faults of every kind against a real work queue, and an account of what became of every task.

    make chaos [SEED=N] [TASKS=N] [SECONDS=S] [LEDGER=sqlite|postgres|none] [CONCURRENCY=N] [ARGS='--faults KIND,...']
    make chaos PAYLOADS=mine.jsonl [HANDLER=my-worker.py] [HURRY=1]
    make chaos OLD=REVISION

It starts a broker, a ledger, three workers and a producer for each send operation, with a proxy between them and the
broker, and lets tasks flow to all operations at once while a schedule of faults runs; the same seed gives the same
schedule and the same tasks. What is counted is what handlers wrote and what lies among the dead letters, never what
the ledger says.

With PAYLOADS, a line of JSON each, it runs this project's contract as it is, with main-producer.py and with
main-worker.py or HANDLER; a dead letter is then no broken promise, as the handler may have failed. Each payload goes
to the first operation whose message it fits. HURRY makes the delays and the lease of a copy of the contract short.
Without PAYLOADS it runs a hurried copy, with the example's kinds on every operation that takes them.
With OLD every other worker and producer is of that revision of this repository, each with its own contract, hurried.

Exit codes: 0 every promise was kept; 1 one was not, and all there is about it is in the folder that is named; 2 wrong
usage; 3 the broker or the ledger did not start; 130 interrupted.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from workqueue.dev.broker import ensure_installed
from workqueue.dev.postgres import PostgresError
from workqueue.dev.programs import BrokerError
from workqueue.errors import ContractInvalid, InputInvalid
from workqueue.testing.account import Account
from workqueue.testing.chaos.payloads import addressed, read
from workqueue.testing.chaos.plan import ALL, HOSTS, KINDS, usable
from workqueue.testing.chaos.run import Chaos
from workqueue.testing.chaos.settings import Payload, RunSettings
from workqueue.testing.project import copy_project, hurried
from workqueue.testing.scripts import MAIN, Scripts

HURRIED_LEASE_S = 10


@dataclass(frozen=True)
class Own:
    """A project to run when no payloads are named: its scripts, and the ways in which its kind `odd` makes a handler
    end."""

    project: Path
    scripts: Scripts
    odd_ways: tuple[str, ...]


def parse(arguments: list[str], own: Own | None = None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the schedule and the tasks")
    flags.add_argument("--tasks", type=int, default=3000)
    flags.add_argument("--seconds", type=float, default=60.0, help="how long faults come")
    flags.add_argument("--ledger", choices=["sqlite", "postgres", "none"], default="sqlite")
    flags.add_argument("--concurrency", type=int, default=1, help="a worker has from 1 to so many tasks at a time")
    flags.add_argument("--payloads", metavar="FILE", help="payloads or tasks of this project's contract")
    flags.add_argument("--handler", metavar="SCRIPT", help="a worker's script (default main-worker.py)")
    flags.add_argument("--hurry", action="store_true", help="with --payloads: short delays and a short lease")
    flags.add_argument("--old", metavar="REVISION", help="mix workers and producers of this git revision in")
    flags.add_argument("--faults", metavar="KIND,...", default=",".join(KINDS), help=", ".join(ALL))
    flags.add_argument("--keep", action="store_true", help="the folder, with all logs, even if all is well")
    given = flags.parse_args(arguments)
    given.faults = [kind.strip() for kind in given.faults.split(",")]
    if unknown := set(given.faults) - set(ALL):
        flags.error(f"there is no such fault: {', '.join(unknown)}; see --help")
    if given.old and given.payloads:
        flags.error("--old runs the example, which has payloads of its own")
    if (given.old or not (own or given.payloads)) and not has_examples_kinds(Path("generated")):
        flags.error("spec/ has other kinds than the example; name payloads of them with --payloads")
    if given.old:
        given.faults = [kind for kind in given.faults if kind in HOSTS]  # what the older one promises too
    if not usable(given.faults, own=bool(own and not (given.payloads or given.old)), ledger=given.ledger):
        flags.error("none of these faults is possible with such tasks and such a ledger")
    if given.tasks < 1 or given.concurrency < 1 or given.seconds <= 0:
        flags.error("--tasks, --concurrency and --seconds are numbers above 0")
    if not given.payloads and (given.handler or given.hurry):
        flags.error("--handler and --hurry are about this project's own contract; name tasks of it with --payloads")
    if given.handler and not Path(given.handler).is_file():
        flags.error(f"--handler {given.handler}: there is no such file")
    return given


def has_examples_kinds(generated: Path) -> bool:
    try:
        document = json.loads((generated / "worker" / "contract.json").read_bytes())
    except OSError:
        return False
    return {"Checksum", "Simulate"} <= set(document["components"]["schemas"])


def prepare(given: argparse.Namespace, folder: Path, own: Own | None) -> tuple[Path, Scripts]:
    """The project that is run and its scripts: this one, in place or as a hurried copy, or `own`."""
    here = Path.cwd()
    if given.payloads and not given.hurry:
        scripts = replace(MAIN, worker=str(Path(given.handler or MAIN.worker).resolve()))
        longest = max(one.receive.rungs[-1].delay_s for one in scripts.operations(here).values())
        print(f"chaos: delays of up to {longest:g} s, as the contract says; with HURRY=1 they are short")
        return here, scripts
    if own is not None:
        return own.project, own.scripts
    scripts = replace(MAIN, worker=str(Path(given.handler).resolve())) if given.handler else MAIN
    return copy_project(here, folder / "project", hurried(here / "spec", lease_s=HURRIED_LEASE_S)), scripts


def check_out(revision: str, folder: Path) -> Path:
    """That revision of the project in `folder`, with its contract hurried as ours is."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", revision], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    hurry = hurried(folder / "spec", lease_s=HURRIED_LEASE_S)
    for document in (folder / "generated").glob("*/contract.json"):  # no module beside it has a delay in it
        document.write_text(json.dumps(yaml.safe_load(hurry(document.read_text()))))
    return folder


def check(project: Path, scripts: Scripts) -> None:
    """Raises CalledProcessError for a script that does not even start: it would be started again and again."""
    for script in ((scripts.worker,), scripts.producer):
        command = [sys.executable, *script, "--help"]
        where = {**os.environ, "PYTHONPATH": str(project)}  # as the recorder has it
        subprocess.run(command, cwd=project, env=where, stdout=subprocess.DEVNULL, check=True)


def first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(chaos: Chaos) -> Account:
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # once: what is set up must come down
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        return await chaos.run()
    except BaseExceptionGroup as group:  # what went wrong in one of the many things that go on at a time
        raise first_of(group) from group


def set_up(given: argparse.Namespace, folder: Path, own: Own | None, payloads: tuple[Payload, ...]) -> Chaos:
    """A run in this folder, and a line on what it runs. Raises CalledProcessError and ContractInvalid."""
    project, scripts = prepare(given, folder, own)
    check(project, scripts)
    settings = RunSettings(
        folder, project, scripts, given.seed, given.seconds, given.tasks, given.ledger, given.concurrency,
        odd_ways=own.odd_ways if own else (), payloads=payloads, kinds=tuple(given.faults),
        old=check_out(given.old, folder / "old") if given.old else None,
    )  # fmt: skip
    chaos = Chaos(settings, say=lambda line: print(line, flush=True))
    others = [name for name in scripts.operations(project) if name not in chaos.operations]
    print(f"chaos: tasks for {', '.join(chaos.operations)}" + f"; none for {', '.join(others)}" * bool(others))
    return chaos


def main(arguments: list[str], own: Own | None = None) -> int:
    given = parse(arguments, own)
    if given.payloads or given.old:
        own = None
    try:
        payloads = addressed(read(given.payloads), MAIN.operations(Path.cwd())) if given.payloads else ()
    except (InputInvalid, ContractInvalid) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="workqueue-chaos-"))
    print(f"chaos: seed {given.seed}, {given.tasks} tasks in {given.seconds:g} s, {given.ledger}, in {folder}")
    try:
        ensure_installed()
        chaos = set_up(given, folder, own, payloads)
        result = asyncio.run(_run(chaos))
    except (asyncio.CancelledError, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    except (subprocess.CalledProcessError, ContractInvalid) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    except (BrokerError, PostgresError) as error:
        print(f"chaos: {error}; see {folder}", file=sys.stderr)
        return 3
    print(f"seed {given.seed}, {given.ledger}, {chaos.describe()}")
    if result.kept and not given.keep:
        shutil.rmtree(folder)
        return 0
    chaos.keep_evidence()
    if result.kept:
        print(f"chaos: the logs and the record are in {folder}", file=sys.stderr)
        return 0
    print("\n".join((folder / "offending").read_text().splitlines()[:60]))
    print(f"chaos: promises were broken; the logs and the record are in {folder}", file=sys.stderr)
    return 1
