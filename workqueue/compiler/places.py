"""Where something is: in a document as its author wrote it, and in the one that comes out of all of them."""

from pathlib import Path

Place = tuple[Path, tuple[str, ...]]
"""A document, and where in it."""
At = tuple[str, ...]
"""Where in the document that comes out."""


class Places(dict[At, Place]):
    """Where the parts of the document that comes out were written. One that is not here is within the next above it
    that is."""

    def written(self, at: At) -> Place:
        known = next(at[:length] for length in range(len(at), -1, -1) if at[:length] in self)
        file, inside = self[known]
        return file, (*inside, *at[len(known) :])


def reference(place: Place, root: Path) -> str:
    """As a `$ref` from the root has it: `spec/common.asyncapi.yaml#/channels/tasks`."""
    file, inside = place
    return f"{shown(file, root)}#/{'/'.join(part.replace('~', '~0').replace('/', '~1') for part in inside)}"


def shown(file: Path, root: Path) -> str:
    return str(file.relative_to(root) if file.is_relative_to(root) else file)
