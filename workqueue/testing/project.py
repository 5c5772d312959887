"""A copy of a project whose contract says something else: shorter delays, for one."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Edit = Callable[[str], str]


def copy_project(source: Path, folder: Path, edit: Edit = str, *, home: str = ".") -> Path:
    """Copy a project into `folder`, which must not exist, with each document of the spec/ in its folder `home` as
    `edit` returns it; compile that to the generated/ beside it. Returns the folder.

    Files are copied and folders are linked to, hidden ones left out: a project may have gigabytes of its own.
    """
    _mirror(source, folder, {"spec", "generated"} if home == "." else {home})
    if home != ".":
        _mirror(source / home, folder / home, {"spec", "generated"})
    for document in _files(source / home / "spec"):
        copy = folder / home / "spec" / document.relative_to(source / home / "spec")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(edit(document.read_text()) if _is_document(document) else document.read_text())
    subprocess.run([sys.executable, "-m", "workqueue", "generate", home], cwd=folder, check=True)
    return folder


def _mirror(source: Path, folder: Path, but: set[str]) -> None:
    folder.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name in but or entry.name.startswith((".", "__pycache__")):
            continue
        if entry.is_dir():
            (folder / entry.name).symlink_to(entry.resolve())
        elif entry.is_file():
            (folder / entry.name).write_bytes(entry.read_bytes())


def _files(spec: Path) -> Iterator[Path]:
    return (path for path in sorted(spec.rglob("*")) if path.is_file())


def _is_document(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml", ".json") and path.name != "workqueue.schema.json"


def by_key(change: Callable[[str, Any], Any]) -> Edit:
    """An edit of a document that replaces each value below each key by what `change` makes of key and value."""

    def changed(node: Any) -> Any:
        if isinstance(node, list):
            return [changed(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: changed(change(key, value)) for key, value in node.items()}

    def edit(text: str) -> str:
        if text.lstrip().startswith("{"):
            return json.dumps(changed(json.loads(text)), ensure_ascii=False)
        # Without aliases: what two queues share by an anchor is written out for each.
        return yaml.safe_dump(changed(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)

    return edit


def hurried(spec: Path, *, lease_s: int, limit_s: int | None = None) -> Edit:
    """An edit of the documents in `spec` for whoever can't wait: the same delay queues with delays of 100, 150, 200
    ... milliseconds, the shortest first; this lease; and this time limit for every kind, if it is given."""
    delays_ms: set[int] = set()

    def note(key: str, value: Any) -> Any:
        if key == "x-message-ttl":
            delays_ms.add(value)
        return value

    for document in filter(_is_document, _files(spec)):
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
