"""A copy of the project whose contract says something else, for tests and the bench."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_project(folder: Path, edit: Callable[[str], str]) -> Path:
    """Copy what runs into `folder`, which must not exist, with each document of `spec/` as `edit` returns it; compile
    it. Returns the folder."""
    folder.mkdir(parents=True)
    for name in ("spec", "workqueue", "tools", "main-worker.py", "main-producer.py", "pyproject.toml"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    for document in (folder / "spec").iterdir():
        document.write_text(edit(document.read_text()))
    subprocess.run([sys.executable, "tools/generate.py"], cwd=folder, check=True)
    return folder
