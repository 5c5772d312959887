"""Workers and producers on hosts of their own, each kept alive by a thread that is on its host."""

import asyncio
import json
import random
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import Site, simulate
from tests.hosts import AMQP_PORT, SUBNET, Host
from workqueue.testing.evidence import Life
from workqueue.testing.prefork import Forked

SHORT_S = (0.01, 0.05)
AHEAD = 150  # tasks that a producer was given and that are not done: more would only take long to work off
ESTABLISHED = "01"


@dataclass
class Kept:
    """A process that is there all the time. While it is `down`, as its host is, no new one starts."""

    name: str
    host: Host
    site: Site
    amqp_uri: str
    closing: bool = False
    down: bool = False
    process: subprocess.Popen[bytes] | Forked | asyncio.subprocess.Process | None = None

    def start(self) -> None:
        threading.Thread(target=self._on_host, name=self.name, daemon=True).start()

    def _on_host(self) -> None:
        with self.host.inside():
            self.keep()

    def keep(self) -> None:
        raise NotImplementedError

    def brokers(self) -> list[str]:
        """The addresses of the brokers that the process has connections to; none if it is just starting."""
        assert self.process is not None
        try:
            rows = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        except OSError:
            return []
        found = []
        for _, _, remote, state, *_ in map(str.split, rows):
            address, _, port = remote.partition(":")
            if state == ESTABLISHED and int(port, 16) == AMQP_PORT:
                found.append(f"{SUBNET}.{int(address[:2], 16)}")  # the last byte comes first
        return list(dict.fromkeys(found))


@dataclass
class KeptWorker(Kept):
    script: str = ""
    lives: list[Life] = field(default_factory=list)

    def keep(self) -> None:
        while not self.closing:
            if self.down:
                time.sleep(0.1)
                continue
            worker = asyncio.run(self.site.worker(self.name, ready=False, script=self.script, AMQP_URI=self.amqp_uri))
            life = Life(self.name, worker.process.pid, worker.log, began=time.time())
            self.process = worker.process
            self.lives.append(life)
            while worker.process.poll() is None:
                if life.ready is None and worker.says("ready"):
                    life.ready = time.time()
                time.sleep(0.05)
            life.ended, life.code = time.time(), worker.process.returncode
            if life.code:
                time.sleep(0.5)  # it may be the same with the next one

    @property
    def is_ready(self) -> bool:
        return bool(self.lives) and self.lives[-1].ready is not None and self.lives[-1].ended is None

    def kill(self) -> None:
        life = self.lives[-1]
        assert self.process is not None
        life.killed = time.time()
        self.process.kill()

    def end(self) -> None:
        """End it by SIGTERM."""
        self.closing = True
        life = self.lives[-1]
        assert self.process is not None
        if life.ended is None:
            life.termed = time.time()
            self.process.terminate()


@dataclass
class KeptProducer(Kept):
    """Is given a task every `every_s`, and those in `more` besides, but for while it is `paused`, or far ahead of what
    `is_done`. When it has ended, the next one is given again what is not done. `given` is when each id was first given;
    `done` is set once all were sent and the last producer ended well."""

    every_s: float = 0.1
    seed: str = ""
    is_done: Callable[[str], bool] = lambda id: False
    paused: bool = False
    given: dict[str, float] = field(default_factory=dict)
    more: deque[dict[str, Any]] = field(default_factory=deque)
    problems: list[str] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    _lines: dict[str, bytes] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)

    def keep(self) -> None:
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        tasks = self._tasks()
        while not self.done.is_set():
            process = self.process = await self.site.start_producer("--jsonl", "-", AMQP_URI=self.amqp_uri)
            assert process.stdin is not None
            assert process.stderr is not None
            log = self.site.folder / f"{self.name}-{process.pid}.log"
            self.logs.append(log)
            reading = asyncio.create_task(_copy(process.stderr, log))
            wanted = 0
            with suppress(ConnectionError):
                again = [line for id, line in self._lines.items() if not self.is_done(id)]
                wanted = len(again)
                process.stdin.write(b"".join(again))
                await process.stdin.drain()
                while not self.closing and process.returncode is None:
                    task = next(tasks)
                    if task is None:
                        await asyncio.sleep(0.02)
                        continue
                    line = json.dumps(task).encode() + b"\n"
                    self._lines[task["id"]] = line
                    self._open.add(task["id"])
                    self.given[task["id"]] = time.time()
                    wanted += 1
                    process.stdin.write(line)
                    await process.stdin.drain()
            process.stdin.close()
            await process.wait()
            await reading
            said = log.read_text()
            if process.returncode == 0 and f"sent: {wanted} confirmed, 0 refused, 0 unknown" in said:
                self.done.set()
            else:
                last = (said.splitlines() or [""])[-1]
                self.problems.append(f"{self.name} ended with {process.returncode}, see {log.name}: {last}")
                await asyncio.sleep(0.5)

    def _behind(self) -> int:
        self._open = {id for id in self._open if not self.is_done(id)}
        return len(self._open)

    def _tasks(self) -> Iterator[dict[str, Any] | None]:
        """What is due, again and again; None: nothing is."""
        rng, due = random.Random(self.seed), time.monotonic()
        while True:
            if self.more:
                yield self.more.popleft()
            elif due > time.monotonic():
                yield None
            elif self.paused or self._behind() >= AHEAD:
                due = time.monotonic() + self.every_s
            else:
                due += self.every_s
                yield simulate(1, round(rng.uniform(*SHORT_S), 4))[0]


async def _copy(pipe: asyncio.StreamReader, to: Path) -> None:
    with to.open("wb") as file:
        while data := await pipe.read(65536):
            file.write(data)
            file.flush()
