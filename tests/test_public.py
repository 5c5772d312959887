"""The package's public names: all are there, and none is loaded before it is used."""

import subprocess
import sys

import workqueue


def test_every_public_name_is_there() -> None:
    assert sorted(workqueue.HOMES) == sorted(workqueue.__all__)
    for name in workqueue.__all__:
        assert getattr(workqueue, name).__name__ == name
    assert not hasattr(workqueue, "nothing")


def test_to_import_the_package_loads_nothing_else() -> None:
    said = (
        "import sys, workqueue; print([name for name in sys.modules if name.startswith(('workqueue.', 'aio', 'pyd'))])"
    )
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
