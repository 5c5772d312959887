"""Which queues: the compiled contracts of a project's folder, and the settings that say where broker and ledger are."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workqueue import contract
from workqueue.contract import Contract, Receive, Send
from workqueue.errors import WorkQueueError
from workqueue.settings import Settings

if TYPE_CHECKING:
    from workqueue.codec import ModelCodec


class ProjectMissing(WorkQueueError):
    """The folder has no compiled contract."""

    exit_code = 2

    def __init__(self, folder: str) -> None:
        super().__init__(
            f"{folder} has no generated/*/contract.json: run this in the project's folder, or name it with --project; "
            "`make generate` compiles spec/"
        )


@dataclass(frozen=True)
class Project:
    """A folder with `generated/`: what its applications send and receive, and where."""

    folder: Path
    contracts: Mapping[str, Contract]
    """By the name of the generated package."""
    settings: Settings

    @cached_property
    def receives(self) -> Mapping[str, Receive]:
        """The receive operations of all applications, by the name of their queue."""
        return {name: one for each in self.contracts.values() for name, one in each.receives.items()}

    @cached_property
    def sends(self) -> Mapping[str, Send]:
        return {name: one for each in self.contracts.values() for name, one in each.sends.items()}

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """By the names of the queues that are received from: of the contract that this folder has now."""
        return {name: each.digest for each in self.contracts.values() for name in each.receives}

    @property
    def has_ledger(self) -> bool:
        return self.settings.ledger_url != "none"

    def contract_of(self, receive: Receive) -> Contract:
        return self.contracts[self._package_of(receive)]

    def codec(self, receive: Receive) -> "ModelCodec[Any]":
        """What a worker of this contract reads the operation's messages by."""
        from workqueue.codec import ModelCodec  # a command that reads no bodies starts in two thirds of the time

        module = import_module(self._package_of(receive))
        return ModelCodec(getattr(module.messages.json, receive.message.name), receive.message)

    def _package_of(self, receive: Receive) -> str:
        return next(name for name, each in self.contracts.items() if receive.queue.name in each.receives)


def find(folder: Path, environment: Mapping[str, str] = os.environ) -> Project:
    """The project of this folder. Raises ProjectMissing, ContractInvalid, SettingInvalid."""
    folder = folder.resolve()
    packages = [f"generated.{found.parent.name}" for found in sorted(folder.glob("generated/*/contract.json"))]
    if not packages:
        raise ProjectMissing(str(folder))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    contracts = {package: contract.load(package) for package in packages}
    return Project(folder, contracts, Settings.load(environment, project=folder))
