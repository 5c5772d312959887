"""Compile the contract of a project, or check that it is compiled.

    workqueue generate            delete generated/ and build it anew
    workqueue generate --check    exit 1 and name the files when generated/ is not what spec/ makes
    workqueue generate FOLDER     the same for the spec/ and generated/ of another folder than the current one

Exit code 2 and a line for each problem when the contract can't be compiled, or could be and not be kept; then nothing
is changed.
"""

import argparse
import contextlib
import errno
import filecmp
import sys
import tempfile
from itertools import count
from pathlib import Path

from workqueue.errors import escaped
from workqueue.extras import needed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="workqueue generate", description="Compile spec/ into generated/.")
    parser.add_argument("--check", action="store_true", help="only say whether generated/ is what spec/ makes")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="whose spec/ and generated/ (default: .)")
    given = parser.parse_args(arguments)
    try:
        return _compile(given.folder, given.check)
    except OSError as error:  # of the disk: a folder that is not ours to write, no room left
        print(f"generate: {escaped(f'{error.filename or given.folder}: {error.strerror or error}')}", file=sys.stderr)
        return 2


def _compile(given: Path, check: bool) -> int:
    with needed("workqueue generate"):
        from workqueue.compiler import generate
    home = given.resolve()
    generated = home / "generated"
    if not (home / "spec").is_dir():
        print(
            f"generate: {given / 'spec'}: there is no such folder; name the one that holds spec/",
            file=sys.stderr,
        )
        return 2
    if generated.exists() and not generated.is_dir():
        print(f"generate: {generated}: is no folder; move it away", file=sys.stderr)
        return 2
    # Beside its target, so that it can be moved there in one step.
    with tempfile.TemporaryDirectory(prefix=".generate-", dir=None if check else home) as folder:
        fresh = Path(folder) / "generated"
        try:
            generate.build(home, fresh)
        except generate.SpecError as error:
            for problem in error.problems:
                print(f"generate: {escaped(problem)}", file=sys.stderr)
            return 2
        if not check:
            replace(generated, fresh)
            return 0
        stale = differences(filecmp.dircmp(fresh, generated, ignore=[])) if generated.is_dir() else [""]
        for name in stale:
            print(f"generated/{name} is not what spec/ makes; run `make generate`", file=sys.stderr)
        return 1 if stale else 0


def differences(one: filecmp.dircmp[str], prefix: str = "") -> list[str]:
    """Every path that is in one tree only or differs in content, sorted."""
    names = [name for name in one.left_only + one.right_only + one.funny_files if name != "__pycache__"]
    _, changed, unreadable = filecmp.cmpfiles(one.left, one.right, one.common_files, shallow=False)
    found = [prefix + name for name in names + changed + unreadable]
    for name, below in one.subdirs.items():
        if name != "__pycache__":
            found += differences(below, f"{prefix}{name}/")
    return sorted(found)


def replace(target: Path, fresh: Path) -> None:
    """Put the folder `fresh` in the place of `target`, whole, even while another process does the same."""
    for number in count():
        with contextlib.suppress(FileNotFoundError):
            target.rename(fresh.with_name(f"old{number}"))
        try:
            fresh.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
