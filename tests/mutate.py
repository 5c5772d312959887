"""Faults put into the code on purpose, one at a time, to see whether a test notices.

    python -m tests.mutate --seed N --count N [--tests FILE ...] MODULE ...

From all places in MODULEs where a small change is possible (a comparison turned round, a condition negated, a number
one larger, a statement left out, ...) it draws some, makes each in a copy of the project, and runs the tests there
until one fails. The same seed draws the same changes of the same code. It prints a line for each; exit code 0 if all
were noticed, 1 if some survived: each of those is a missing test, or a change that changes nothing.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import ROOT

TIME_S = 600.0  # a change that makes the tests hang has been noticed
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip
SAID = {"log", "_report", "report", "print"}  # what only tells something; its words are not on trial


@dataclass(frozen=True)
class Change:
    """One small change: where, what was there, and what is there instead."""

    module: Path
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}  {self.before}  ->  {self.after}"


def changes(module: Path) -> Iterator[Change]:
    """Every change that this tool knows how to make in a module."""
    text = (ROOT / module).read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in [one for one in ast.walk(tree) if _is_on_trial(one, tree)]:
        for after in variants(node):
            yield _replaced(module, text, node, after)


def _is_on_trial(node: ast.AST, tree: ast.Module) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False  # a docstring
    return not (isinstance(node, ast.Expr) and _root(node.value) in SAID)


def _root(node: ast.AST) -> str:
    """The name that a call begins with: `log` of `log.warning(...)`."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute) and node.attr in SAID:
            return node.attr
        inner = getattr(node, "func", None) or getattr(node, "value", None)
        if not isinstance(inner, ast.AST):
            return ""
        node = inner
    return node.id


def variants(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in place of a node; None: nothing."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            yield ast.Compare(node.left, [COMPARED[type(op)]()], node.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        case ast.BinOp() if type(node.op) in COMPUTED and not _is_text(node):
            yield ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() as number):
            yield ast.Constant(number + 1)
        case ast.If() | ast.While() if not isinstance(node.test, ast.Constant):
            negated = copy.copy(node)
            negated.test = ast.UnaryOp(ast.Not(), node.test)
            yield negated
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Delete():
            yield None
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
        case ast.Raise(exc=ast.expr()):
            yield None


def _is_text(node: ast.BinOp) -> bool:
    sides = [side for side in (node.left, node.right) if isinstance(side, ast.Constant | ast.JoinedStr)]
    return any(isinstance(side, ast.JoinedStr) or isinstance(side.value, str | bytes) for side in sides)


def _replaced(module: Path, text: str, node: ast.AST, after: ast.AST | None) -> Change:
    lines = text.splitlines(keepends=True)
    if isinstance(node, ast.If | ast.While) and isinstance(after, ast.If | ast.While):
        node, after = node.test, after.test
    assert isinstance(node, ast.expr | ast.stmt)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    first, last = lines[node.lineno - 1].encode(), lines[node.end_lineno - 1].encode()
    new = "pass" if after is None else ast.unparse(ast.fix_missing_locations(after))
    new = new if isinstance(node, ast.stmt) else f"({new})"
    changed = first[: node.col_offset] + new.encode() + last[node.end_col_offset :]
    source = "".join([*lines[: node.lineno - 1], changed.decode(), *lines[node.end_lineno :]])
    before = (ast.get_source_segment(text, node) or "").split("\n")[0]
    return Change(module, node.lineno, before, new.split("\n")[0], source)


def is_noticed(project: Path, change: Change, tests: list[str]) -> bool:
    """Run the tests in the copy with this change, until one fails or hangs."""
    path = project / change.module
    kept = path.read_text(encoding="utf-8")
    path.write_text(change.source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60", *tests]
    try:
        with tempfile.TemporaryFile() as out:
            ended = subprocess.run(command, cwd=project, stdout=out, stderr=out, timeout=TIME_S, check=False)
        return ended.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(kept, encoding="utf-8")


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("modules", nargs="+", type=Path, metavar="MODULE")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--count", type=int, default=20)
    flags.add_argument("--tests", nargs="+", default=["tests", "test_workqueue.py"])
    given = flags.parse_args()
    found = [change for module in given.modules for change in changes(module)]
    drawn = random.Random(given.seed).sample(found, min(given.count, len(found)))
    print(f"{len(found)} changes are possible, {len(drawn)} drawn with seed {given.seed}", flush=True)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="workqueue-mutate-") as folder:
        project = Path(folder) / "project"
        hidden = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(ROOT, project, ignore=hidden)
        os.symlink(ROOT / ".venv", project / ".venv")
        for change in drawn:
            noticed = is_noticed(project, change, given.tests)
            survived += not noticed
            print(f"{'noticed ' if noticed else 'SURVIVED'}  {change}", flush=True)
    print(f"{len(drawn) - survived} of {len(drawn)} were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
