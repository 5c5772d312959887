"""Who is compared, how each is started, and what could not be had from it.

The words of a command may hold {python}, {limit} (the C program), {worker} (a name) and {concurrency}; what is in `env`
may hold {concurrency}. A sender gets its plan as one more word. All get the environment of `stage.Site`; what they have
to log goes to a file, as by their own defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.protocol import QUEUE


@dataclass(frozen=True)
class Contender:
    name: str
    packages: tuple[str, ...]
    """Whose versions the results name."""
    worker: tuple[str, ...]
    sender: tuple[str, ...]
    note: str
    env: Mapping[str, str] = field(default_factory=dict)
    queue: str = QUEUE
    ledger_ms: float | None = None
    """Its ledger is on a PostgreSQL that is so far away, each way. It takes part where that is measured."""


def _module(name: str, *words: str) -> tuple[str, ...]:
    return ("{python}", "-m", f"bench.contenders.{name}", *words)


OURS = _module("ours", "work", "{worker}", "--concurrency", "{concurrency}")
OURS_SENDER = _module("ours", "send")
CELERY = ("{python}", "-m", "celery", "-A", "bench.contenders.celery", "worker", "-n", "{worker}@%h")
CELERY_QUIET = (
    "-c",
    "{concurrency}",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)  # as its guide says, for speed
CELERY_NOTE = "no window: its producer waits for each confirm; prefetch, late acks, mandatory: all to be had"

CONTENDERS = (
    Contender(
        "ours",
        ("aio-pika", "aiormq", "asyncapi-python"),
        OURS,
        OURS_SENDER,
        "with the ledger (SQLite), so it alone records each task's claim, completion and result on disk",
        queue="task-queue",
    ),
    Contender(
        "ours, no ledger",
        ("aio-pika", "aiormq", "asyncapi-python"),
        OURS,
        OURS_SENDER,
        "a redelivered task may run twice, as with all the others",
        {"LEDGER_URL": "none"},
        "task-queue",
    ),
    Contender(
        "ours, plain channel",
        ("aio-pika", "aiormq", "asyncapi-python"),
        _module("plain", "work", "{worker}", "--concurrency", "{concurrency}"),
        _module("plain", "send"),
        "ours on aio-pika's own channel: what is gained by writing and reading frames without it",
        queue="task-queue",
    ),
    Contender(
        "raw aio-pika",
        ("aio-pika", "aiormq"),
        _module("raw", "work"),
        _module("raw", "send"),
        "no reconnection, no validation, no retries",
    ),
    Contender(
        "faststream",
        ("faststream", "aio-pika"),
        _module("faststream", "work"),
        _module("faststream", "send"),
        "all to be had",
    ),
    Contender(
        "taskiq",
        ("taskiq", "taskiq-aio-pika", "aio-pika"),
        (
            *("{python}", "-m", "taskiq", "worker", "bench.contenders.taskiq:broker", "--workers", "1"),
            *("--max-async-tasks", "{concurrency}", "--max-prefetch", "0", "--ack-type", "when_executed"),
        ),
        _module("taskiq", "send"),
        "all to be had",
    ),
    Contender(
        "dramatiq",
        ("dramatiq", "pika"),
        ("{python}", "-m", "dramatiq", "bench.contenders.dramatiq", "--processes", "1", "--threads", "{concurrency}"),
        _module("dramatiq"),
        "no option for quorum queues: their type is the vhost's default; no window: it waits for each confirm",
        {"dramatiq_queue_prefetch": "{concurrency}"},
    ),
    Contender(
        "celery", ("celery", "kombu", "amqp"), (*CELERY, "-P", "prefork", *CELERY_QUIET), _module("celery"), CELERY_NOTE
    ),
    Contender(
        "celery, threads",
        ("celery", "kombu", "amqp"),
        (*CELERY, "-P", "threads", *CELERY_QUIET),
        _module("celery"),
        f"{CELERY_NOTE}; a lost worker is a lost process, there is no child to replace",
    ),
    Contender(
        "limit (C)",
        (),
        ("{limit}", "work"),
        ("{limit}", "send"),
        "librabbitmq; bodies are not decoded: what the broker itself allows on this machine",
    ),
    *(
        Contender(
            f"ours, PostgreSQL {ms:g} ms",
            ("aio-pika", "aiormq", "asyncapi-python", "psycopg"),
            OURS,
            OURS_SENDER,
            f"with the ledger on a PostgreSQL that is {ms:g} ms away, each way",
            queue="task-queue",
            ledger_ms=ms,
        )
        for ms in (0, 1, 5)
    ),
)
