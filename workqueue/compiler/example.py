"""Where the example lies, and with it the published schema of the contract's own keys: at the root of a checkout, or
inside the package where that is installed."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

FOLDER = _PACKAGE / "example" if (_PACKAGE / "example").is_dir() else _PACKAGE.parent
