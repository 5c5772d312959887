"""A copy of the project whose contract says something else, for tests and the bench."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KEYS = "spec/workqueue.schema.json"  # the rules for the contract's own keys, which the compiler reads
SCRIPTS = ("main-worker.py", "main-producer.py")


def copy_project(
    folder: Path,
    edit: Callable[[str], str] = str,
    *,
    home: str = ".",
    scripts: tuple[str, ...] = SCRIPTS,
) -> Path:
    """Copy what runs into `folder`, which must not exist, with each document of the spec/ in `home` as `edit` returns
    it; compile it to the generated/ beside it. Returns the folder."""
    folder.mkdir(parents=True)
    for name in ("workqueue", "pyproject.toml", KEYS, f"{home}/spec", *scripts):
        source, copy = ROOT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(source, copy)
    for document in (folder / home / "spec").glob("*.yaml"):
        document.write_text(edit(document.read_text()))
    subprocess.run([sys.executable, "-m", "workqueue", "generate", home], cwd=folder, check=True)
    return folder


def by_key(change: Callable[[str, Any], Any]) -> Callable[[str], str]:
    """An edit of a document that replaces each value below each key by what `change` makes of key and value."""

    def changed(node: Any) -> Any:
        if isinstance(node, list):
            return [changed(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: changed(change(key, value)) for key, value in node.items()}

    # Without aliases: what two queues share by an anchor is written out for each.
    return lambda text: yaml.safe_dump(changed(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)


def hurried(folder: Path, *, lease_s: int, limit_s: int | None = None) -> Callable[[str], str]:
    """An edit of the documents in `folder` for whoever can't wait: the same delay queues with delays of 100, 150, 200
    ... milliseconds, the shortest first; this lease; and this time limit for every kind, if it is given."""
    delays_ms: set[int] = set()

    def note(key: str, value: Any) -> Any:
        if key == "x-message-ttl":
            delays_ms.add(value)
        return value

    for document in folder.glob("*.yaml"):
        by_key(note)(document.read_text())
    short_ms = {delay_ms: 100 + 50 * rank for rank, delay_ms in enumerate(sorted(delays_ms))}

    def change(key: str, value: Any) -> Any:
        match key:
            case "x-message-ttl":
                return short_ms[value]
            case "x-lease-s":
                return lease_s
            case "x-time-limit-s" if limit_s is not None:
                return limit_s
        return value

    return by_key(change)
