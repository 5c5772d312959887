"""The endpoint of each operation in the generated modules: named after its id, and found by it, as a worker does."""

import keyword
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from workqueue.application import operation_of, path_of
from workqueue.compiler.documents import mapping
from workqueue.compiler.findings import Findings
from workqueue.compiler.resolve import Resolved


def check(found: Findings) -> None:
    """Every id is a name, and that of one operation only."""
    classes, paths = {"Producer": "", "Consumer": ""}, dict[tuple[str, ...], str]()
    for name, operation in mapping(found.document.get("operations")).items():
        at, path, action = ("operations", name), path_of(name), str(mapping(operation).get("action"))
        usable = all(part.isidentifier() and part.isascii() and not keyword.iskeyword(part) for part in path)
        if not usable or name.split() != [name]:
            found.say(at, f"{name!r} can't be the name of a method; use letters, digits and _, such as process_task")
            continue
        words = "".join(part.title().replace("-", "").replace("_", "") for part in name.replace("/", ".").split("."))
        other = classes.setdefault(words, name)
        if other in ("", name):
            other = paths.setdefault((action, *path), name)
        if words in ("Producer", "Consumer"):
            found.say(at, f"the generated modules have a {words}Router of their own; take another id")
        elif other != name:
            found.say(at, f"{name!r} and {other!r} would have the same name in Python; rename one")
    for path, name in paths.items():
        for length in range(2, len(path)):
            if above := paths.get(path[:length]):
                found.say(("operations", name), f"{name!r} would be a part of {above!r}, an operation too; rename one")


def problems(resolved: Resolved, router: ModuleType) -> Iterator[str]:
    """A line for each operation that a worker would not find in the generated router, or take for another."""
    sides = {"send": router.ProducerRouter, "receive": router.ConsumerRouter}
    for name, operation in resolved.document["operations"].items():
        try:
            endpoint = operation_of(sides[operation["action"]](None, _Codecs()), name)
            made = getattr(endpoint, "_operation", None)
            found = (made.key, made.action) if made is not None else None
        except (AttributeError, TypeError, RecursionError):
            found = None
        if found != (name, operation["action"]):
            yield f"{resolved.place('operations', name)}: the generator makes no endpoint of this id; rename it"


class _Codecs:
    """In the place of a codec factory: nothing is encoded here."""

    def create(self, message: Any) -> None:
        pass
