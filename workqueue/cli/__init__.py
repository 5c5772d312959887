"""`workqueue COMMAND`, which is `python -m workqueue COMMAND`: what is done to a project, and not by it.

A command's module is imported when it is called, so that each needs only the extras of its own.
"""

import argparse
import io
import sys
from importlib import import_module

from workqueue.errors import ExtraMissing
from workqueue.extras import needed
from workqueue.process.stdout import whole

COMMANDS = {
    "init": ("workqueue.cli.init", "lay down the example as a project of your own"),
    "generate": ("workqueue.compiler.command", "compile spec/ into generated/, or check that it is compiled"),
    "broker": ("workqueue.dev.broker", "find a RabbitMQ, or run a private one in .broker"),
    "cluster": ("workqueue.dev.cluster", "run three private RabbitMQ nodes as one cluster in .cluster"),
    "chaos": ("workqueue.testing.chaos.command", "tasks under every fault, and an account of each of them"),
    "status": ("workqueue.cli.status", "what waits in each queue, who works, and when it will be done"),
    "workers": ("workqueue.cli.status:main_workers", "the workers, and what each has in hand"),
    "task": ("workqueue.cli.task", "one task's whole way: attempts, errors, state, result"),
    "tasks": ("workqueue.cli.tasks", "the tasks that wait, run, or are done, dead or cancelled"),
    "dead": ("workqueue.cli.dead", "dead letters: group, list, show, send back, throw away"),
    "cancel": ("workqueue.cli.calling:main_cancel", "call tasks off, whether they wait or run"),
    "pause": ("workqueue.cli.calling:main_pause", "let no worker take a task from a queue"),
    "resume": ("workqueue.cli.calling:main_resume", "let them again"),
    "purge": ("workqueue.cli.calling:main_purge", "throw away all that waits in a queue"),
    "forget": ("workqueue.cli.forget", "erase tasks, with all that is kept of them"),
    "send": ("workqueue.cli.send", "one task by hand, checked by the contract"),
    "audit": ("workqueue.cli.audit", "what operators did, when and why"),
    "records": ("workqueue.cli.records", "the JSON Schemas of what -o json writes"),
    "ledger": ("workqueue.cli.ledger", "move all that is in a ledger to another one"),
    "plan": ("workqueue.cli.plan", "the contract against the live broker: what is missing, or differs"),
    "doctor": ("workqueue.cli.doctor", "what is wrong with this installation, and the way out"),
    "demo": ("workqueue.dev.demo", "the example at work: a private broker, three workers, thousands of tasks"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return its exit code: 2 for wrong usage, or where it needs an extra that is not installed."""
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="workqueue", description="A RabbitMQ work queue whose contract is the program.",
        epilog=f"commands:\n{table}\n\nworkqueue COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    sys.stdout = whole(sys.stdout)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may be one that can't be shown
    try:
        with needed(f"workqueue {given.command}"):
            name, _, function = COMMANDS[given.command][0].partition(":")
            module = import_module(name)
        code: int = getattr(module, function or "main")(given.arguments)
    except ExtraMissing as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code
