"""What is printed in docs/, for tests to run."""

import re
import shutil
from pathlib import Path

import yaml

from tests.harness import ROOT


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def source_with_mails(folder: Path) -> Path:
    """The example with the second operation of docs/operations.md in its spec/, for `copy_project`. Its worker's script
    has no handler for that."""
    shutil.copytree(ROOT / "spec", folder / "spec")
    mails, *added = blocks("operations.md", "yaml")
    (folder / "spec" / "mails.asyncapi.yaml").write_text(mails)
    for name, more in zip(("worker", "producer"), map(yaml.safe_load, added), strict=True):
        path = folder / "spec" / f"{name}.asyncapi.yaml"
        document = yaml.safe_load(path.read_text())
        for part in ("channels", "operations"):
            document[part] |= more[part]
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    (folder / "workqueue").symlink_to(ROOT / "workqueue")
    shutil.copy(ROOT / "main-producer.py", folder)
    return folder
