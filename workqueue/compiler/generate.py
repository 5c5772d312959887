"""Compiles the contract: the documents of spec/ to the packages of generated/.

For each application document (one of `spec/` with operations) the asyncapi-python generator writes the
package `generated/<app>`. It knows of no `x-` key, no trait and not of every reference, so it is given the resolved
document, and beside its modules the compiler puts the same document as `contract.json`, which the runtime reads.
"""

import contextlib
import copy
import io
import json
import keyword
import re
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from workqueue import contract
from workqueue.compiler import clients, endpoints, handlers, lint, lint_schemas, naming, roundtrip
from workqueue.compiler.generator import CodeGenerator
from workqueue.compiler.resolve import Resolved, resolve
from workqueue.errors import ContractInvalid

OPTIONS = Path(__file__).parent / "codegen"  # where the generator of the models finds its options
PYDANTICS = ("model_dump", "model_validate")
SUFFIX = re.compile(r"\.asyncapi\.(yaml|yml|json)$")


class SpecError(Exception):
    """The contract can't be compiled, or not be kept; `problems` has a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(dict.fromkeys(problems))


def applications(root: Path) -> dict[str, Resolved]:
    """The checked documents of spec/ that have operations, by the name of their package. Raises SpecError."""
    found, problems = {}, []
    for path in sorted(path for path in (root / "spec").rglob("*") if SUFFIX.search(path.name)):
        resolved = resolve(path, root)
        if resolved.problems or "operations" in resolved.document:
            problems += resolved.problems or lint.problems(resolved)
            name = SUFFIX.sub("", path.name)
            if not _importable(name):
                why = f"{name!r} can't be a package's name; use letters, digits and _, and no word of Python's own"
                problems.append(f"{path.relative_to(root)}: {why}")
            elif name in found:
                problems.append(f"{path.relative_to(root)}: there is another {name}.asyncapi document; rename one")
            found[name] = resolved
    if not found and not problems:
        problems = ["spec/: no *.asyncapi.yaml or .json document with operations, so there is nothing to generate"]
    if problems:
        raise SpecError(problems)
    return found


def _importable(name: str) -> bool:
    """Python looks for a name in one of its spellings, and keeps those in underscores."""
    kept = keyword.iskeyword(name) or name.startswith("__")
    return name.isidentifier() and not kept and unicodedata.normalize("NFKC", name) == name


def build(root: Path, target: Path) -> None:
    """Write every application's package below `target`, which must not exist. Raises SpecError."""
    found = applications(root)
    target.mkdir()
    (target / "__init__.py").write_text('"""Built from spec/ by `make generate`; never edited."""\n')
    problems: list[str] = []
    for name, resolved in found.items():
        try:
            _compile(resolved, target / name)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)


def _compile(resolved: Resolved, package: Path) -> None:
    """Write an application's package, and prove that it is what the contract says. Raises SpecError."""
    _generate(resolved, package)
    text = json.dumps(resolved.document, indent=1, ensure_ascii=False)
    (package / "contract.json").write_text(text + "\n", encoding="utf-8")
    loaded, made = _imported(resolved, package)
    models = made.messages.json
    if problems := [*naming.problems(resolved, models), *endpoints.problems(resolved, made.router)]:
        raise SpecError(problems)
    if problems := roundtrip.problems(loaded, models):
        raise SpecError([f"{resolved.place()}: {problem}" for problem in problems])
    for module in (handlers, clients):
        if typed := module.source(loaded, models):
            (package / module.MODULE).write_text(typed, encoding="utf-8")


def _generate(resolved: Resolved, package: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "asyncapi.yaml"
        document.write_text(
            yaml.dump(_for_generator(resolved.document), Dumper=yaml.CSafeDumper, sort_keys=False), encoding="utf-8"
        )
        generator, said = CodeGenerator(), io.StringIO()
        # A type check of what was made, whose verdict nobody reads, and which takes most of the time.
        generator.template_renderer.run_mypy = lambda output_dir: None
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            # What it prints is progress; what it warns of are limits that a pydantic type can't carry, which the codec
            # takes from the schema itself.
            warnings.filterwarnings("ignore", message="Pydantic does not take", category=UserWarning)
            warnings.filterwarnings("ignore", message="format of .* not understood", category=UserWarning)
            try:
                with contextlib.chdir(_options(resolved.document, Path(folder))):
                    generator.generate(document, package.absolute())
            except (
                Exception,
                SystemExit,
            ) as error:  # the generator has no error type of its own, and may end the process
                why = " ".join(f"{error} {said.getvalue()[-300:]}".split()).replace(str(folder), "")
                raise SpecError([f"{resolved.place()}: the generator refuses it: {why}"]) from error


def _options(document: dict[str, Any], folder: Path) -> Path:
    """Where the generator of the models finds its options: `folder`, if there is something to add.

    A field whose name begins as those of pydantic's own methods do would make each import of the models warn."""
    schemas = document["components"]["schemas"].values()
    properties = {name for schema in schemas for _, part in lint_schemas.within((), schema)
                  for name in part.get("properties", ())}  # fmt: skip
    pythons = {name: re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\W", "_", name).lower() for name in sorted(properties)}
    aliases = {name: f"field_{python}" for name, python in pythons.items() if python.startswith(PYDANTICS)}
    if not aliases:
        return OPTIONS
    added = f"aliases = {json.dumps(json.dumps(aliases))}\n"
    (folder / "pyproject.toml").write_text((OPTIONS / "pyproject.toml").read_text() + added)
    return folder


def _for_generator(document: dict[str, Any]) -> dict[str, Any]:
    """The document so that the generator makes of it what the contract says.

    It names a message's class by the message's key on the channel, and looks for the model under the message's name,
    while the model has the name of its schema's title: here all three are one. It writes titles and descriptions into
    docstrings, and the version between quotes, as they are. And a pattern that pydantic's regular expressions can't do
    would make a module that can't be imported; the codec checks it by the schema.
    """
    made = copy.deepcopy(document)
    schemas = made["components"]["schemas"]
    for operation in made["operations"].values():
        channel = made["channels"][operation["channel"]["$ref"].rpartition("/")[2]]
        (message,) = channel["messages"].values()
        schemas[message["name"]]["title"] = message["name"]
        channel["messages"] = {re.sub(r"(?<=.)(?=[A-Z])", "_", message["name"]): message}
        _printable(operation)
    _printable(made["info"])
    made["info"]["version"] = json.dumps(made["info"]["version"], ensure_ascii=False)[1:-1]
    for schema in schemas.values():
        for _, part in lint_schemas.within((), schema):
            if isinstance(part, dict) and not lint_schemas.modelled(part.get("pattern", "")):
                del part["pattern"]
    return made


def _printable(node: dict[str, Any]) -> None:
    for key in ("title", "summary", "description"):
        if isinstance(node.get(key), str):
            node[key] = (
                node[key]
                .replace("\\", "\\\\")
                .replace('"', "'" if '"""' in node[key] or node[key].endswith('"') else '"')
            )


def _imported(resolved: Resolved, package: Path) -> tuple[contract.Contract, ModuleType]:
    """The contract as the runtime reads it, and its generated package. Raises SpecError."""
    try:
        return contract.read(resolved.document), load(package)
    except ContractInvalid as error:
        raise SpecError([f"{resolved.place()}: {error}"]) from error
    except Exception as error:  # whatever importing generated code raises
        why = " ".join(str(error).split())
        raise SpecError([f"{resolved.place()}: its modules can't be imported: {why}"]) from error


def load(package: Path) -> ModuleType:
    """Import a generated package from where it lies, under a name of its own. Raises what importing it raises."""
    name = f"_generated_{package.name}"
    spec = spec_from_file_location(name, package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None
    assert spec.loader is not None
    with _clean(name):
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def _clean(name: str) -> Iterator[None]:
    """Import without a trace: no bytecode beside the modules, none of them left in the process."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]
