"""The whole pattern at work: a private broker, three workers, and a task for each file of Python's own library.

    workqueue demo

Ends with the table of who did what and with checksums that `sha256sum -c` accepts, in .demo/. Nothing that it
started is left running, however it ends. Exit codes: those of main-producer.py; 1 also for a wrong checksum, 2 also
where the contract has other kinds than the example.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workqueue.dev.broker import start_private, stop_private, told_to_end
from workqueue.dev.programs import BrokerError
from workqueue.extras import needed

FOLDER = Path(".demo")
LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}  # not its own files, or changing while it is used
READY_S = 30.0
STOP_S = 40.0


def main(arguments: list[str]) -> int:
    argparse.ArgumentParser("workqueue demo", description=__doc__).parse_args(arguments)
    with needed("workqueue demo"):
        import rich  # noqa: F401  # for its producer's --wait, thousands of tasks later
    compiled = Path("generated/producer/contract.json")
    if not compiled.is_file() or not Path("main-worker.py").is_file():
        print("demo: this is no project's folder; go to one, or make one: workqueue init FOLDER", file=sys.stderr)
        return 2
    if "Checksum" not in json.loads(compiled.read_bytes())["components"]["schemas"]:
        print(
            "demo: it has files checksummed, and the contract in spec/ has no kind Checksum; to see your own kinds at "
            "work: make worker1, and make producer ARGS='--jsonl FILE --wait'",
            file=sys.stderr,
        )
        return 2
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    print(f"1. a private RabbitMQ in {FOLDER.name}/broker", flush=True)
    try:
        with told_to_end(), broker() as uri, workers(uri) as environment:
            tasks = FOLDER / "tasks.jsonl"
            count = write_tasks(tasks)
            print(f"3. {count} tasks, one for each file of {LIBRARY}", flush=True)
            producer = [sys.executable, "main-producer.py", "--jsonl", str(tasks), "--wait"]
            producer += ["--results", str(FOLDER / "results.jsonl")]
            code = subprocess.run(producer, env=environment, check=False).returncode
            if code == 0:
                code = check()
    except BrokerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started was stopped", file=sys.stderr)
        return 130
    print(f"5. everything is stopped again; what it did is in {FOLDER.name}/")
    return code


@contextmanager
def broker() -> Iterator[str]:
    try:
        yield start_private(FOLDER / "broker")
    finally:
        stop_private(FOLDER / "broker")


@contextmanager
def workers(uri: str) -> Iterator[dict[str, str]]:
    """Three workers that are ready; each ends with SIGTERM, and drains."""
    environment = {**os.environ, "AMQP_URI": uri, "WORKQUEUE_ROOT": str(LIBRARY)}
    environment["LEDGER_URL"] = f"sqlite:{FOLDER / 'ledger.db'}"
    running = []
    try:
        for name in ("worker1", "worker2", "worker3"):
            with (FOLDER / f"{name}.log").open("w") as log:
                command = [sys.executable, "main-worker.py", name]
                # A session of its own: Ctrl-C is for this process, which then stops the workers in order.
                started = subprocess.Popen(command, env=environment, stderr=log, start_new_session=True)
                running.append(started)
        for name in ("worker1", "worker2", "worker3"):
            await_ready(FOLDER / f"{name}.log")
        print(f"2. three workers are ready; their logs are {FOLDER.name}/worker*.log", flush=True)
        yield environment
    finally:
        for worker in running:
            worker.terminate()
        for worker in running:
            try:
                worker.wait(STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()


def await_ready(log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while "  ready  " not in log.read_text():
        if time.monotonic() > deadline:
            raise BrokerError(f"{log.stem} is not ready after {READY_S:g} s: {log.read_text() or 'it says nothing'}")
        time.sleep(0.05)


def write_tasks(file: Path) -> int:
    """A payload for each regular file of the library, one on a line; how many there are."""
    count = 0
    with file.open("w", encoding="utf-8") as lines:
        for path in sorted(LIBRARY.rglob("*")):
            if path.is_file() and not path.is_symlink() and not NOT_THE_LIBRARY.intersection(path.parts):
                lines.write(json.dumps({"kind": "checksum", "path": str(path)}) + "\n")
                count += 1
    return count


def check() -> int:
    """Have sha256sum compare every result with the file. 0 if all agree."""
    sums = FOLDER / "SHA256SUMS"
    with (FOLDER / "results.jsonl").open(encoding="utf-8") as results, sums.open("w", encoding="utf-8") as out:
        for line in results:
            result = json.loads(line)["result"]
            out.write(f"{result['digest']}  {result['path']}\n")
    tool = ["sha256sum"] if shutil.which("sha256sum") else ["shasum", "-a", "256"]
    code = subprocess.run([*tool, "--check", "--quiet", str(sums)], check=False).returncode
    print(f"4. sha256sum --check {FOLDER.name}/SHA256SUMS: {'all correct' if code == 0 else 'WRONG'}", flush=True)
    return 1 if code else 0
