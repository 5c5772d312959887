"""What runs on a project's contract: its scripts, and the operations that these serve."""

import json
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
        """By name, the receive operations of the first application in this project that has some. Raises
        ContractInvalid if none has."""
        documents = sorted((project / self.generated).glob("*/contract.json"))
        loaded = [contract.read(json.loads(document.read_bytes())) for document in documents]
        received = next((one.receives for one in loaded if one.receives), None)
        if received is None:
            raise ContractInvalid(f"{project / self.generated} has no receive operation; run `make generate`")
        return {receive.operation: _operation(receive, loaded) for receive in received.values()}


def _operation(receive: contract.Receive, loaded: list[contract.Contract]) -> Operation:
    for one in loaded:
        if send := one.sends.get(receive.queue.name):
            return Operation(receive, send, ("--to", send.operation) if len(one.sends) > 1 else ())
    return Operation(receive, None)


MAIN = Scripts("generated", "main-worker.py", ("main-producer.py",))
"""Those of a project like the example."""
