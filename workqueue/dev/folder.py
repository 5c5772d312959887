"""The folder of a broker: what it remembers, for its owner only, and for one process at a time."""

import fcntl
import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from workqueue.dev.ports import AMQP_PORTS, EPMD_PORTS, free_port


@dataclass(frozen=True)
class Record:
    """What a folder remembers of its broker.

    The password is derived from `cookie`, so nodes that share it share their user, as those of a cluster must.
    """

    name: str
    port: int
    epmd_port: int
    cookie: str
    engine: str = ""  # "docker" or "podman" if it is a container
    user = "wq"

    @property
    def password(self) -> str:
        return hashlib.sha256(self.cookie.encode()).hexdigest()[:32]

    @property
    def uri(self) -> str:
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/"

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The folder's record, or None if it never had a broker."""
        with suppress(FileNotFoundError):
            return cls(**json.loads((folder / "broker.json").read_text()))
        return None

    @classmethod
    def load_or_make(
        cls, folder: Path, cookie: str | None = None, epmd_port: int | None = None, engine: str = ""
    ) -> Self:
        """The folder's record; a new one, of these settings, if it has none."""
        with locked(folder):
            if record := cls.load(folder):
                return record
            name, port = f"wq-{secrets.token_hex(4)}@localhost", free_port(AMQP_PORTS)
            record = cls(name, port, epmd_port or free_port(EPMD_PORTS), cookie or secrets.token_hex(20), engine)
            write_private(folder / "broker.json", json.dumps(asdict(record), indent=1))
            return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time starts or ends what is in a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read."""
    new = path.with_name(path.name + ".new")
    new.touch(0o600)
    new.write_text(text)
    new.replace(path)
