"""Compile `spec/` into `generated/`, the same bytes every time.

    python tools/generate.py            delete generated/ and build it anew
    python tools/generate.py --check    exit 1 and name the files when generated/ is not what spec/ makes

For each application document (`spec/<app>.asyncapi.yaml` with operations) the asyncapi-python generator writes the
package `generated/<app>`. It drops what it does not know (every `x-` key, `autoDelete`, the schemas' own strictness),
so beside its modules this script puts `contract.json`: the whole document with its references resolved, which the
runtime reads. Nothing else is added to or changed in what the generator writes.
"""

import argparse
import contextlib
import filecmp
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml
from asyncapi_python_codegen.generators import CodeGenerator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # started as a script, from any folder

from tools import roundtrip  # noqa: E402

SPEC = ROOT / "spec"
GENERATED = ROOT / "generated"
SCHEMAS = "/components/schemas/"


class SpecError(Exception):
    """The contract can't be compiled; the message says which document and what in it."""


class Resolver:
    """Resolves the references of one document, across files.

    References into `components/schemas` stay references, now to the result's own `components/schemas`, so that a
    schema may refer to itself; all others are replaced by what they point at.
    """

    def __init__(self) -> None:
        self.documents: dict[Path, Any] = {}
        self.schemas: dict[str, tuple[Path, Any]] = {}

    def load(self, path: Path) -> Any:
        if path not in self.documents:
            try:
                self.documents[path] = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError) as error:
                raise SpecError(f"{path.name}: {' '.join(str(error).split())}") from error
        return self.documents[path]

    def resolve(self, node: Any, home: Path, trail: tuple[str, ...] = ()) -> Any:
        if isinstance(node, list):
            return [self.resolve(item, home, trail) for item in node]
        if not isinstance(node, dict):
            return node
        if not isinstance(node.get("$ref"), str):
            return {key: self.resolve(value, home, trail) for key, value in node.items()}
        return self._follow(node["$ref"], home, trail)

    def _follow(self, reference: str, home: Path, trail: tuple[str, ...]) -> Any:
        file, _, pointer = reference.partition("#")
        target = (home.parent / file).resolve() if file else home
        where = f"{target.name}#{pointer}"
        if where in trail:
            raise SpecError(f"{home.name}: the reference {reference} leads back to itself")
        found = self.load(target)
        for part in pointer.strip("/").split("/"):
            try:
                found = found[part.replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError):
                raise SpecError(f"{home.name}: the reference {reference} leads nowhere") from None
        if not pointer.startswith(SCHEMAS):
            return self.resolve(found, target, (*trail, where))
        name = pointer.removeprefix(SCHEMAS)
        owner = self.schemas.get(name)
        if owner is None:
            self.schemas[name] = (target, None)  # known before it is resolved, so that it may refer to itself
            self.schemas[name] = (target, self.resolve(found, target))
        elif owner[0] != target:
            raise SpecError(f"{home.name}: two schemas are named {name}, in {owner[0].name} and {target.name}")
        return {"$ref": "#" + pointer}


def contract(document: Path) -> dict[str, Any]:
    """The document with its references resolved and just the schemas that it uses."""
    resolver = Resolver()
    source = resolver.load(document)
    whole = resolver.resolve({key: value for key, value in source.items() if key != "components"}, document)
    schemas = {name: schema for name, (_, schema) in sorted(resolver.schemas.items())}
    return {**whole, "components": {"schemas": schemas}}


def build(target: Path) -> None:
    """Write every application's package below `target`, which must not exist."""
    target.mkdir()
    (target / "__init__.py").write_text('"""Built from spec/ by `make generate`; never edited."""\n')
    applications = [path for path in sorted(SPEC.glob("*.asyncapi.yaml")) if "operations" in Resolver().load(path)]
    if not applications:
        raise SpecError(f"{SPEC.name}/: no document with operations, so there is nothing to generate")
    for document in applications:
        package = target / document.name.removesuffix(".asyncapi.yaml")
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # What it prints is progress and the verdict of a type check that the project's own replaces; what it
            # warns of are limits that a pydantic type can't carry, which the codec takes from the schema itself.
            warnings.filterwarnings("ignore", message="Pydantic does not take", category=UserWarning)
            warnings.filterwarnings("ignore", message="format of .* not understood", category=UserWarning)
            try:
                CodeGenerator().generate(document, package)
            except Exception as error:  # the generator has no error type of its own
                raise SpecError(f"{document.name}: {error}") from error
        text = json.dumps(contract(document), indent=1, ensure_ascii=False)
        (package / "contract.json").write_text(text + "\n", encoding="utf-8")
        for problem in roundtrip.problems(package):
            raise SpecError(f"{document.name}: {problem}")


def differences(one: filecmp.dircmp[str], prefix: str = "") -> list[str]:
    """Every path that is in one tree only or differs in content, sorted."""
    names = [name for name in one.left_only + one.right_only + one.funny_files if name != "__pycache__"]
    _, changed, unreadable = filecmp.cmpfiles(one.left, one.right, one.common_files, shallow=False)
    found = [prefix + name for name in names + changed + unreadable]
    for name, below in one.subdirs.items():
        if name != "__pycache__":
            found += differences(below, f"{prefix}{name}/")
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile spec/ into generated/.")
    parser.add_argument("--check", action="store_true", help="only say whether generated/ is what spec/ makes")
    check = parser.parse_args().check
    os.chdir(ROOT)  # the generator takes its options from the pyproject.toml of the current folder
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "generated"
        try:
            build(fresh)
        except SpecError as error:
            print(f"generate: {error}", file=sys.stderr)
            return 2
        if not check:
            shutil.rmtree(GENERATED, ignore_errors=True)
            shutil.move(fresh, GENERATED)
            return 0
        stale = differences(filecmp.dircmp(fresh, GENERATED, ignore=[])) if GENERATED.is_dir() else ["everything"]
        for name in stale:
            print(f"generated/{name} is not what spec/ makes; run `make generate`", file=sys.stderr)
        return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
