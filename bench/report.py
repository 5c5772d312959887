from pathlib import Path
from typing import Any


def write(data: dict[str, Any], folder: Path) -> None: ...
