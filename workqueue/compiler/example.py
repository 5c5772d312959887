"""Where the example lies, and with it the published schema of the contract's own keys: at the root of a checkout, or
inside the package where that is installed."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

IS_CHECKOUT = not (_PACKAGE / "example").is_dir()
FOLDER = _PACKAGE.parent if IS_CHECKOUT else _PACKAGE / "example"
