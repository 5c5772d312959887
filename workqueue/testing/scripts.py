"""What runs on a project's contract: its scripts, and the operations that these serve."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from workqueue import contract
from workqueue.errors import ContractInvalid


@dataclass(frozen=True)
class Operation:
    """A receive operation, and what sends to its queue: `send` is None if nothing in the project does, `to` are the
    flags with which the producer sends there, where it could send to others too."""

    receive: contract.Receive
    send: contract.Send | None
    to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scripts:
    """What runs on a contract: its compiled modules, the worker's script, and Python's arguments for the producer."""

    generated: str
    worker: str
    producer: tuple[str, ...]

    def operations(self, project: Path) -> dict[str, Operation]:
        """By name, the receive operations of the first application in this project that has some, and what the
        producer's script sends to them. Raises ContractInvalid if none has."""
        documents = sorted((project / self.generated).glob("*/contract.json"))
        loaded = {document.parent.name: contract.read(json.loads(document.read_bytes())) for document in documents}
        received = next((one.receives for one in loaded.values() if one.receives), None)
        if received is None:
            raise ContractInvalid(f"{project / self.generated} has no receive operation; run `make generate`")
        named = self._named(project)
        senders = [one for name, one in loaded.items() if name in named] or list(loaded.values())
        return {receive.operation: _operation(receive, senders) for receive in received.values()}

    def _named(self, project: Path) -> set[str]:
        """The applications that the producer's script imports; none where it does so in another way."""
        *flags, script = self.producer
        path = project / (f"{script.replace('.', '/')}.py" if "-m" in flags else script)
        if not path.exists():
            return set()
        module = re.escape(self.generated.replace("/", "."))
        return set(re.findall(rf"^\s*(?:from|import) {module}\.(\w+)", path.read_text(), re.M))


def _operation(receive: contract.Receive, senders: list[contract.Contract]) -> Operation:
    for one in senders:
        if send := one.sends.get(receive.queue.name):
            return Operation(receive, send, ("--to", send.operation) if len(one.sends) > 1 else ())
    return Operation(receive, None)


MAIN = Scripts("generated", "main-worker.py", ("main-producer.py",))
"""Those of a project like the example."""
