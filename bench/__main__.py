"""Measure, and report:  python -m bench [flags], or  python -m bench report  to make the report of the data anew."""

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import report
from bench.contenders import CONTENDERS, Contender
from bench.scenarios import AT_CONCURRENCY, ON_CLASSIC_TOO, QUICK, SCENARIOS, Scale
from bench.stage import Failed, Stage
from workqueue.dev.broker import ensure_installed
from workqueue.dev.node import Node
from workqueue.dev.programs import BrokerError


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench", description="Measure this project beside its peers.")
    parser.add_argument("command", nargs="?", choices=["run", "report"], default="run")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of everything but scale (default 5)")
    parser.add_argument("--only", default=",".join(SCENARIOS), metavar="A,B", help="scenarios (default %(default)s)")
    parser.add_argument("--contenders", metavar="A,B", help="beginnings of their names (default all)")
    parser.add_argument("--tasks", type=int, metavar="N", help="the size of the backlogs of the first two scenarios")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it works")
    parser.add_argument("--seed", type=int, help="of the order in which contenders are on")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    given = parser.parse_args()
    if unknown := set(given.only.split(",")) - SCENARIOS.keys():
        parser.error(f"no such scenario: {', '.join(unknown)}")
    if given.command == "report":
        report.write(json.loads((given.out / "results.json").read_text()), given.out)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        ensure_installed()
        data = measure(given)
    except BrokerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bench: interrupted; all that it started was ended", file=sys.stderr)
        return 130
    report.write(data, given.out)
    return 1 if any("failed" in one for one in data["measurements"]) else 0


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All rounds. The data are saved after each, so that an interruption costs one round only."""
    scale = QUICK if given.quick else Scale()
    if given.tasks:
        scale = replace(scale, publish_consume=given.tasks, consume_3=given.tasks)
    rounds = 1 if given.quick else given.rounds
    seed = random.randrange(10**6) if given.seed is None else given.seed
    order = random.Random(seed)
    measurements: list[dict[str, Any]] = []
    print(f"seed {seed}, {rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Stage(Path(folder)) as stage:
        contenders = [one for one in chosen(given.contenders) if one.name not in stage.missing]
        for name, why in stage.missing.items():
            print(f"left out: {name}: {why}", flush=True)
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seed": seed, "scale": vars(scale)}
        facts |= {"machine": machine(), "versions": versions(stage.node, contenders), "left_out": stage.missing}
        data: dict[str, Any] = {"run": facts, "measurements": measurements}
        for number in range(1, rounds + 1):
            for scenario in given.only.split(","):
                for queue in ("quorum", "classic") if scenario in ON_CLASSIC_TOO else ("quorum",):
                    for contender in entrants(scenario, contenders, number, order):
                        about = {"round": number, "scenario": scenario, "queue": queue, "contender": contender.name}
                        print(f"{number}/{rounds}  {scenario}  {queue}  {contender.name}", flush=True)
                        measurements += run(stage, about, contender, scale)
            facts["rounds"] = number
            (given.out / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    return data


def run(stage: Stage, about: dict[str, Any], contender: Contender, scale: Scale) -> list[dict[str, Any]]:
    """The measurements of one scenario; a failure is one too."""
    measured: list[dict[str, Any]] = []
    try:
        for metric, value in SCENARIOS[about["scenario"]](stage.site(contender, about["queue"]), scale):
            measured.append({**about, "metric": metric, "value": value})
            print(f"    {metric} {value:.5g}", flush=True)
    except Exception as error:  # noqa: BLE001  # whatever it is: the others' measurements are worth having
        measured.append({**about, "failed": str(error) if isinstance(error, Failed) else repr(error)})
        print(f"    failed: {measured[-1]['failed']}", flush=True)
    return measured


def chosen(names: str | None) -> list[Contender]:
    if names is None:
        return list(CONTENDERS)
    return [one for one in CONTENDERS if any(one.name.startswith(name) for name in names.split(","))]


def entrants(scenario: str, contenders: Sequence[Contender], number: int, order: random.Random) -> list[Contender]:
    """Who takes part, in random order. The large backlogs are for ours only, once."""
    if scenario == "scale":
        return [one for one in contenders if one.name == "ours" and number == 1]
    if scenario == "distance":
        entered = [one for one in contenders if one.name == "ours" or one.ledger_ms is not None]
    elif scenario == "concurrency":
        entered = [one for one in contenders if one.name in AT_CONCURRENCY]
    else:
        entered = [one for one in contenders if one.ledger_ms is None]
    return order.sample(entered, len(entered))


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "kernel": platform.release(),
    }


def versions(node: Node, contenders: Sequence[Contender]) -> dict[str, str]:
    packages = sorted({package for contender in contenders for package in contender.packages} | {"uvloop", "pydantic"})
    return {
        "RabbitMQ": node.ctl("version").strip(),
        "Erlang": node.ctl("eval", "io:fwrite(erlang:system_info(otp_release)).").split("ok")[0].strip(),
        "Python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
