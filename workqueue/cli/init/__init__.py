"""`workqueue init FOLDER`: the example as a project of one's own, which depends on this package.

It depends on the very package that laid it down: a wheel is copied into the project, a repository pinned to its commit,
a folder named. While the distribution's name is not registered, a bare name could install somebody else's package.
"""

import argparse
import hashlib
import json
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from zipfile import is_zipfile

from workqueue.compiler import example

NAME = "asyncapi-workqueue"
EXTRAS = "cli,dev,generate,metrics,postgres,tracing"
FILES = ("spec", "generated", "main-producer.py", "main-worker.py", "test_workqueue.py", "Makefile", ".gitignore")
OWN = Path(__file__).parent / "project"  # what a project has and the example's checkout has otherwise
VENDOR = "vendor"


class CannotInit(Exception):
    """The project can't be laid down; nothing was written. Its text is one line."""


@dataclass(frozen=True)
class Source:
    """What the project depends on: a line for requirements.txt, and the wheel to lay beside it, if it is one."""

    requirement: str
    wheel: Path | None = None


def source(given: str | None) -> Source:
    """Where this package came from, or what --from names. Raises CannotInit."""
    if given is not None:
        return _named(given)
    if example.IS_CHECKOUT:  # run in place, whatever else is installed
        return _folder(example.FOLDER)
    installed = distribution(NAME)
    origin = _origin(installed)
    if "vcs_info" in origin:
        commit = origin["vcs_info"]["commit_id"]
        return Source(f"{NAME}[{EXTRAS}] @ {origin['vcs_info']['vcs']}+{origin['url']}@{commit}")
    if "dir_info" in origin:
        return _folder(_path(origin["url"]))
    if "archive_info" in origin:
        return _wheel(origin)
    raise CannotInit(
        f"{NAME} {installed.version} was installed by its name alone, which is not registered; name what the project "
        "is to depend on with --from: a wheel, a folder, or git+https://..."
    )


def _origin(installed: Distribution) -> dict[str, Any]:
    """The record that pip keeps of a direct reference (PEP 610); empty without one."""
    text = installed.read_text("direct_url.json")
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _named(given: str) -> Source:
    if "://" in given and not re.search(r"\s", given):
        return Source(f"{NAME}[{EXTRAS}] @ {given}")
    path = Path(given).resolve()
    if is_zipfile(path) and re.fullmatch(r"asyncapi_workqueue-[^-]+(-[^-]+){3,4}\.whl", path.name):
        return _vendored(path)
    if given and (path / "pyproject.toml").is_file():
        return _folder(path)
    raise CannotInit(f"--from {given}: is no wheel of {NAME}, no folder with its pyproject.toml, and no URL")


def _folder(path: Path) -> Source:
    return Source(f"{NAME}[{EXTRAS}] @ {path.as_uri()}")


def _vendored(wheel: Path) -> Source:
    return Source(f"./{VENDOR}/{wheel.name}[{EXTRAS}]", wheel)


def _wheel(origin: dict[str, Any]) -> Source:
    url = origin["url"]
    hashes = origin["archive_info"].get("hashes", {})
    if not url.startswith("file:"):
        pinned = f"#sha256={hashes['sha256']}" if "sha256" in hashes else ""
        return Source(f"{NAME}[{EXTRAS}] @ {url}{pinned}")
    path = _path(url)
    if not path.is_file():
        raise CannotInit(f"the wheel that this was installed from, {path}, is gone; name another with --from")
    if "sha256" in hashes and hashlib.sha256(path.read_bytes()).hexdigest() != hashes["sha256"]:
        raise CannotInit(f"{path} is not the wheel any more that this was installed from; name one with --from")
    return _vendored(path)


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def lay_down(folder: Path, origin: Source) -> None:
    """Write the project into `folder`, which may be there if it is empty. Raises CannotInit."""
    if folder.is_dir() and any(folder.iterdir()):
        raise CannotInit(f"{folder} is not empty; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise CannotInit(f"{folder} is no folder; name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".init-", dir=folder.parent) as aside:
        made = Path(aside) / "project"
        _write(made, folder.resolve().name, origin)
        made.rename(folder)  # whole, or not at all; onto an empty folder it may be moved


def _write(folder: Path, called: str, origin: Source) -> None:
    folder.mkdir()
    title = called.encode("utf-8", "replace").decode()
    for name in FILES:
        there = example.FOLDER / name
        if there.is_dir():
            shutil.copytree(there, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(there, folder / name)
    for file in OWN.iterdir():
        text = file.read_text(encoding="utf-8").replace("{name}", title)
        (folder / file.name).write_text(text, encoding="utf-8")
    shutil.copyfile(example.FOLDER / "requirements.txt", folder / "constraints.txt")
    if origin.wheel is not None:
        (folder / VENDOR).mkdir()
        shutil.copyfile(origin.wheel, folder / VENDOR / origin.wheel.name)
    lines = ["# What this project needs, in the versions that were tested together.", "-c constraints.txt"]
    if origin.wheel is not None:
        # By a path, since by its name pip would take whatever an index has of that name; and pip knows no other way.
        lines.append(
            f"# pip looks for ./{VENDOR} in the current folder: install from this one (in a Dockerfile: WORKDIR)."
        )
    lines.append(origin.requirement)
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "generated" / "__init__.py").touch()  # as new as spec/: nothing is to be compiled


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("workqueue init", description="Lay down the example as a project of your own.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one, or an empty one")
    parser.add_argument("--from", dest="origin", metavar="SOURCE", help="what it depends on: a wheel, a folder, a URL")
    given = parser.parse_args(arguments)
    try:
        origin = source(given.origin)
        lay_down(given.folder, origin)
    except CannotInit as error:
        print(f"workqueue init: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"workqueue init: {error.filename or given.folder}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{given.folder} depends on {origin.requirement}")
    print(f"next: cd {shlex.quote(str(given.folder))} && make demo; make check; see its README.md")
    return 0
