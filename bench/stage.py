"""Where contenders meet: a private broker with a vhost for each, and the processes of whoever is on.

Whatever happens, all that was started here is ended: each process leads a group of its own, which is killed at the end.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aio_pika
import psycopg
from aio_pika.exceptions import AMQPError

from bench.contenders import Contender
from bench.protocol import RECORD
from workqueue.dev.broker import install
from workqueue.dev.node import Node, uninterrupted
from workqueue.dev.postgres import Postgres
from workqueue.dev.programs import BrokerError
from workqueue.testing.project import copy_project

ROOT = Path(__file__).resolve().parent.parent

START_S = 60.0  # from the start of workers to their first task; generous, like all of these
SEND_S = 60.0
SLOWEST_RATE = 40.0  # tasks per second: whoever does less has failed
STOP_S = 15.0
SETTLE_S = 0.3  # for the last acks, which come after the last records
POLL_S = 0.02

# Arguments that only quorum queues take; classic ones would refuse them, or ignore them.
QUORUM_ONLY = re.compile(r" +(x-dead-letter-strategy|x-delivery-limit): .*\n")


class Failed(Exception):
    """A contender did not do as the scenario asks; the text ends with the last lines of its log."""


@dataclass(frozen=True)
class Task:
    """A line of a worker's record: what was asked for, and when the handler ran (monotonic clock)."""

    seconds: float
    start: float
    end: float


@dataclass(frozen=True)
class Sent:
    """What a sender said: tasks per second from the first send to the last confirm, times of paced sends, memory."""

    rate: float
    at: list[float]
    peak_mib: float


class Stage:
    """A broker and the C program in `folder`. `missing` says why a contender can't take part, by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.node = folder, Node(folder / "broker")
        self.limit = folder / "limit"
        self.missing: dict[str, str] = {}
        if problem := build_limit(self.limit):
            self.missing["limit (C)"] = problem
        self._sites: dict[tuple[str, str], Site] = {}
        self._distant = ExitStack()
        self._postgres: Postgres | None = None

    def __enter__(self) -> Self:
        self.node.start()
        return self

    def __exit__(self, *_: object) -> None:
        with uninterrupted():  # many press Ctrl-C twice
            self._distant.close()
            self.node.stop()

    def ledger_url(self, ms: float) -> str:
        """An empty ledger on a PostgreSQL that is so far away, each way. One server for all; 0 is without a proxy."""
        if self._postgres is None:
            self._postgres = self._distant.enter_context(Postgres())
        url, name = self._postgres.url, f"ledger_{ms:g}".replace(".", "_")
        with psycopg.connect(url, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
        url = url.removesuffix("postgres") + name
        if not ms:
            return url
        near = url.rpartition(":")[2].partition("/")[0]
        command = [sys.executable, "-m", "bench.delay", near, str(ms / 1000)]
        proxy = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._distant.callback(end_group, proxy)
        assert proxy.stdout is not None
        return url.replace(f":{near}/", f":{proxy.stdout.readline().strip()}/")

    def site(self, contender: Contender, queue_type: str) -> "Site":
        key = (contender.name, queue_type)
        if key not in self._sites:
            self._sites[key] = Site(self, contender, queue_type)
        return self._sites[key]


class Site:
    """A contender on one type of queue: a vhost, a folder (for ours, a copy of the project), processes."""

    def __init__(self, stage: Stage, contender: Contender, queue_type: str) -> None:
        self.contender, self._limit = contender, stage.limit
        name = re.sub(r"\W+", "-", f"{contender.name} {queue_type}")
        self.folder = stage.folder / name
        if contender.name.startswith("ours"):
            copy_project(ROOT, self.folder, as_classic if queue_type == "classic" else str)
        else:
            self.folder.mkdir()
        self._url = stage.node.add_vhost(name, "--default-queue-type", queue_type)
        self._number = 0
        foreign = ("LEDGER_", "WORKQUEUE_", "dramatiq_", "CELERY_", "TASKIQ_", "FASTSTREAM_", "PYTHON")
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            **{"AMQP_URI": self._url, "BENCH_URL": self._url, "BENCH_QUEUE_TYPE": queue_type},
            **{"PYTHONPATH": str(ROOT), **environment(contender, 1)},
        }
        if contender.ledger_ms is not None:
            self._env["LEDGER_URL"] = stage.ledger_url(contender.ledger_ms)

    def send(self, *batches: tuple[int, float, float]) -> Sent:
        """Send by this plan of (count, seconds, interval_s), with a process that ends when all is confirmed."""
        plan = ",".join(f"{count}:{seconds}:{interval}" for count, seconds, interval in batches)
        count = sum(count for count, _, _ in batches)
        said = self._sender(plan, count)
        return Sent(count / said["seconds"], said["at"], said["peak_mib"])

    def _sender(self, plan: str, count: int) -> dict[str, Any]:
        """What the sender's process said when it had sent so many."""
        log = self.log()
        with log.open("wb") as err:
            sender = self.popen([*self.words(self.contender.sender), plan], err, stdout=subprocess.PIPE)
            try:
                out, _ = sender.communicate(timeout=SEND_S + count / SLOWEST_RATE)
            except subprocess.TimeoutExpired:
                raise Failed(f"the sender is not done: {tail(log)}") from None
            finally:
                end_group(sender)
        if sender.returncode:
            raise Failed(f"the sender ended with {sender.returncode}: {tail(log)}")
        said: dict[str, Any] = json.loads(out.splitlines()[-1])
        if said["sent"] != count:
            raise Failed(f"the sender sent {said['sent']} of {count}")
        return said

    def call(self, count: int, callers: int) -> dict[str, float]:
        """Have so many callers of an application send so many tasks: `seconds`, `p99_ms` of a send, `cpu_us`."""
        said = self._sender(f"{count}@{callers}", count)
        return {name: said[name] for name in ("seconds", "p99_ms", "cpu_us")}

    @contextmanager
    def workers(self, size: int, all_done: bool = True, concurrency: int = 1) -> Iterator["Crew"]:
        """That many worker processes. When they end, nothing may be left in the queue, if `all_done`."""
        crew = Crew(self, concurrency)
        try:
            crew.start(size)
            yield crew
            time.sleep(SETTLE_S)
            crew.stop()
        except BaseException:
            crew.kill()
            with suppress(AMQPError, OSError):  # the first error is the one to tell
                self.purge()
            raise
        left = self.purge()
        if left and all_done:
            print(f"  {self.contender.name}: {left} tasks were left in the queue, and purged", file=sys.stderr)

    def popen(self, command: list[str], err: Any, env: dict[str, str] | None = None, **more: Any) -> Any:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._env | (env or {}),
            stdin=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
            **more,
        )

    def words(self, command: tuple[str, ...], worker: str = "", concurrency: int = 1) -> list[str]:
        known = {"python": sys.executable, "limit": self._limit, "worker": worker, "concurrency": concurrency}
        return [word.format(**known) for word in command]

    @property
    def broker_port(self) -> int:
        return urlsplit(self._url).port or 5672

    def log(self) -> Path:
        self._number += 1
        return self.folder / f"log{self._number}"

    def purge(self) -> int:
        """Empty the queue. Returns how many waited in it."""

        async def purged() -> int:
            async with await aio_pika.connect(self._url) as connection:
                channel = await connection.channel()
                try:
                    queue = await channel.declare_queue(self.contender.queue, passive=True)
                except AMQPError:  # it was not declared yet
                    return 0
                await queue.purge()
                return queue.declaration_result.message_count or 0

        return asyncio.run(purged())


class Worker:
    """A worker process, or several below one."""

    def __init__(self, site: Site, concurrency: int) -> None:
        self.log = site.log()
        self._record = self.log.with_suffix(".record")
        env = {"BENCH_RECORD": str(self._record), **environment(site.contender, concurrency)}
        with self.log.open("wb") as log:
            self.spawned = time.monotonic()
            words = site.words(site.contender.worker, self.log.name, concurrency)
            self.process = site.popen(words, log, env, stdout=log)

    @property
    def done(self) -> int:
        with suppress(FileNotFoundError):
            return self._record.stat().st_size // RECORD.size
        return 0

    def tasks(self) -> list[Task]:
        if not self.done:
            return []
        return [Task(*fields) for fields in RECORD.iter_unpack(self._record.read_bytes())]


class Crew:
    """Workers of one contender, at work."""

    def __init__(self, site: Site, concurrency: int = 1) -> None:
        self._site, self._concurrency = site, concurrency
        self.workers: list[Worker] = []

    def start(self, size: int) -> None:
        for _ in range(size):
            self.workers.append(Worker(self._site, self._concurrency))

    @property
    def done(self) -> int:
        return sum(worker.done for worker in self.workers)

    def tasks(self, after: float = 0.0) -> list[Task]:
        """All that started after that time, in that order. Call it when no worker has a task."""
        tasks = [task for worker in self.workers for task in worker.tasks()]
        return sorted((task for task in tasks if task.start > after), key=lambda task: task.start)

    def wait(self, count: int, least: int = 0, within_s: float | None = None) -> None:
        """Until they have done `count` in all, and each at least `least`."""
        within_s = within_s or START_S + count / SLOWEST_RATE
        deadline = time.monotonic() + within_s
        while self.done < count or any(worker.done < least for worker in self.workers):
            for worker in self.workers:
                if worker.process.poll() is not None:
                    raise Failed(f"a worker ended with {worker.process.returncode}: {tail(worker.log)}")
            if time.monotonic() > deadline:
                idle = min(self.workers, key=lambda worker: worker.done)
                raise Failed(f"{self.done} of {count} tasks in {within_s:.0f} s: {tail(idle.log)}")
            time.sleep(POLL_S)

    def warm(self) -> float:
        """Have each worker do a few tasks of 10 ms. Returns the time when all were done."""
        sent, deadline = 0, time.monotonic() + START_S
        while not sent or not all(worker.done for worker in self.workers):
            if time.monotonic() > deadline:
                raise Failed(f"a worker got no task in {START_S:g} s: {[worker.done for worker in self.workers]}")
            sent += 10 * len(self.workers)
            self._site.send((10 * len(self.workers), 0.01, 0))
            self.wait(sent)
        time.sleep(SETTLE_S)
        return time.monotonic()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """What is sent meanwhile waits, so that the speed of the sender plays no part."""
        for worker in self.workers:
            os.killpg(worker.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in self.workers:
                os.killpg(worker.process.pid, signal.SIGCONT)

    def memory_mib(self) -> float:
        """Their processes' shares of memory (PSS: a page that several share is divided among them), for one worker."""
        pids = {pid for worker in self.workers for pid in tree(worker.process.pid)}
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
        return sum(int(re.findall(r"^Pss: +(\d+) kB", text, re.M)[0]) for text in texts) / 1024 / len(self.workers)

    def rss_mib(self) -> float:
        """Resident memory of all their processes together, pages that several share in each."""
        pids = {pid for worker in self.workers for pid in tree(worker.process.pid)}
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def connections(self) -> int:
        """How many TCP connections their processes have to the broker."""
        found = set()
        for worker in self.workers:
            for pid in tree(worker.process.pid):
                found |= established(pid, self._site.broker_port)
        return len(found)

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_S
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        with uninterrupted():
            for worker in self.workers:
                end_group(worker.process)


def environment(contender: Contender, concurrency: int) -> dict[str, str]:
    own = {name: value.format(concurrency=concurrency) for name, value in contender.env.items()}
    return {"BENCH_CONCURRENCY": str(concurrency), **own}


def end_group(process: Any) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tree(pid: int) -> set[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        found.add(one := waiting.pop())
        waiting += children.get(one, [])
    return found


def established(pid: int, port: int) -> set[str]:
    """The inodes of a process's connections to a port, https://docs.kernel.org/networking/proc_net_tcp.html."""
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    rows = [line.split() for line in lines]
    return {row[9] for row in rows if row[3] == "01" and int(row[2].rpartition(":")[2], 16) == port} & held


def tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-4:])[-600:] or "it logged nothing"


def as_classic(document: str) -> str:
    return QUORUM_ONLY.sub("", document.replace("x-queue-type: quorum", "x-queue-type: classic"))


def build_limit(program: Path) -> str:
    """Compile the C program. Returns why not, if it can't be."""
    source = Path(__file__).parent / "contenders" / "limit.c"
    command = ["cc", "-D_GNU_SOURCE", "-O2", "-o", str(program), str(source), "-lrabbitmq"]
    try:
        if not shutil.which("cc"):
            install("gcc", lambda: shutil.which("cc") is not None)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "amqp.h" in done.stderr and install("librabbitmq-dev", lambda: False):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
    except (BrokerError, OSError) as error:
        return str(error)
    return done.stderr.strip().splitlines()[0] if done.returncode else ""
