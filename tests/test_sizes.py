"""The package stays small in its parts: a module, a function, a constructor that grew too large has two subjects."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.harness import ROOT

MODULE_LINES = 300
FUNCTION_LINES = 50
PARAMETERS = 6  # of a constructor, `self` not counted; fields of a record are no parameters: they are named at the call


def too_large(module: Path) -> Iterator[str]:
    text, name = module.read_text(encoding="utf-8"), module.relative_to(ROOT).as_posix()
    if len(text.splitlines()) > MODULE_LINES:
        yield name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_too_large(node):
            yield f"{name} {node.name}"


def is_too_large(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    given = function.args
    parameters = len([*given.posonlyargs, *given.args, *given.kwonlyargs]) - 1
    return lines > FUNCTION_LINES or (function.name == "__init__" and parameters > PARAMETERS)


def test_no_module_function_or_constructor_is_too_large_to_be_read_at_once() -> None:
    modules = sorted((ROOT / "workqueue").rglob("*.py"))
    assert len(modules) > 100
    assert [name for module in modules for name in too_large(module)] == []
