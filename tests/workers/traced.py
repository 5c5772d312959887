"""A worker whose handlers make a span of their own; while the file BROKEN exists they fail twice, and then give up."""

import asyncio
import os
import sys
from pathlib import Path

from opentelemetry import trace

from tests.generated.worker import Application
from tests.generated.worker.messages.json import Digest, DigestResult, Nap, NapResult, Task
from workqueue import GiveUp, TaskContext, run_worker


def do(task: Task, context: TaskContext[None]) -> NapResult | DigestResult:
    with trace.get_tracer("of the handler").start_as_current_span("inside", record_exception=False) as span:
        span.set_attribute("attempt", context.attempt)
    said = task.payload.text if isinstance(task.payload, Digest) else "it"
    if Path(os.environ["BROKEN"]).exists():
        what = f"can't do {said[:40]!r}... with amqp://me:hunter22@host/vhost, password=hunter22"
        raise GiveUp(what) if context.attempt == 3 else ValueError(what)
    if isinstance(task.payload, Digest):
        return DigestResult(kind="digest", text=said, algorithm="sha256", digest="0" * 64, size=len(said))
    return NapResult(kind="nap", attempt=context.attempt)


async def errand(task: Task, context: TaskContext[None]) -> NapResult | DigestResult:
    if isinstance(task.payload, Nap):
        await asyncio.sleep(task.payload.seconds)
    return do(task, context)


if __name__ == "__main__":
    sys.exit(run_worker(Application, {"do_errand": errand, "do_chore": do}, about=__doc__))
