"""The documents of one application, and the references that lead through them."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from workqueue.compiler import documents
from workqueue.compiler.places import Place, reference, shown


@dataclass
class References:
    """Reads each document once. What is wrong is in `problems`, one line each."""

    root: Path
    problems: list[str] = field(default_factory=list)
    _documents: dict[Path, Any] = field(default_factory=dict)
    _unreadable: set[Path] = field(default_factory=set)

    def problem(self, place: Place, text: str) -> None:
        line = f"{reference(place, self.root)}: {text}"
        if line not in self.problems:
            self.problems.append(line)

    def load(self, file: Path) -> Any:
        """None, and a problem, if it can't be read."""
        if file not in self._documents:
            try:
                self._documents[file] = documents.read(file)
            except documents.Unreadable as error:
                self._documents[file] = None
                self._unreadable.add(file)
                self.problems.append(f"{shown(file, self.root)}: {error}")
        return self._documents[file]

    def at(self, place: Place) -> Any:
        """What is written there. The place must be one that `follow` returned."""
        found = self.load(place[0])
        for key in place[1]:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    def follow(self, text: str, here: Place, *, quiet: bool = False) -> Place | None:
        """The place that a reference written `here` leads to in the end. None, and a problem, if that is none."""
        home, seen = here[0], list[Place]()
        while True:
            target, why = self._target(text, home)
            if target is not None and target in seen:
                target, why = None, "leads back to itself"
            if target is None:
                if why and not quiet:
                    self.problem(here, f"the reference {text} {why}")
                return None
            node = self.at(target)
            if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
                return target
            seen.append(target)
            text, home = node["$ref"], target[0]

    def _target(self, text: str, home: Path) -> tuple[Place | None, str]:
        file, _, pointer = text.partition("#")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", file) or file.startswith("//"):
            return None, "leads out of this machine; put a copy into spec/ and refer to that"
        path = home
        if file:
            path = next(
                (p for p in (home.parent / file, home.parent / unquote(file)) if p.is_file()), home.parent / file
            )
            path = path.resolve()
            if not path.is_file():
                return None, "leads nowhere: there is no such file"
        if pointer and not pointer.startswith("/"):
            return None, "is no JSON pointer; write `#/` and the way to what is meant"
        found, inside = self.load(path), []
        if path in self._unreadable:
            return None, ""  # that is said of the file
        for part in pointer.strip("/").split("/") if pointer.strip("/") else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, TypeError, ValueError, IndexError):
                return None, f"leads nowhere: there is no {key!r}"
            inside.append(key)
        return (path, tuple(inside)), ""
