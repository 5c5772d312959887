"""The schemas in use, each under a name of its own: `components/schemas` of the document that comes out."""

import re
from typing import Any

from workqueue.compiler.documents import mapping
from workqueue.compiler.places import At, Place, Places, reference
from workqueue.compiler.references import References


class Schemas:
    """Those that are referred to, and those that messages have in place: each becomes a model, a class of this name."""

    def __init__(self, references: References, places: Places) -> None:
        self._references, self._places = references, places
        self._names: dict[Place, str] = {}
        self.by_name: dict[str, Any] = {}

    def name_of(self, place: Place) -> str | None:
        """Of the schema that is written there; None if it is not in use yet."""
        return self._names.get(place)

    def add(self, place: Place, here: Place) -> str:
        """The name of a schema that is referred to `here`: that of its key, or of its file."""
        name = class_name(place[1][-1] if place[1] else re.sub(r"(\.schema)?\.\w+$", "", place[0].name))
        owner = next((other for other, taken in self._names.items() if taken == name), None)
        if owner is not None:
            both = " and ".join(sorted(reference(one, self._references.root) for one in (owner, place)))
            self._references.problem(here, f"two schemas are named {name}, {both}; rename one")
        self._name(place, name)
        return name

    def _name(self, place: Place, name: str) -> None:
        if not name.isascii():  # AsyncAPI has no other names, and a reference to one is none
            text = f"{name!r} can't be the name of a schema; use the letters A to Z, digits, _, - and ."
            self._references.problem(place, text)
        self._names[place], self._places["components", "schemas", name] = name, place

    def take_from_messages(self, document: dict[str, Any]) -> None:
        """A message's content type defaults to the document's. One that is sent or received has a model for its
        payload, whose name becomes the message's, and one for its result; both are then found under components."""
        operations = mapping(document.get("operations")).values()
        used = {str(mapping(mapping(operation).get("channel")).get("$ref")) for operation in operations}
        channels = mapping(document.get("channels")).items()
        for key, channel in sorted(channels, key=lambda item: f"#/channels/{item[0]}" not in used):
            for name, message in mapping(mapping(channel).get("messages")).items():
                if not isinstance(message, dict):
                    continue
                if "defaultContentType" in document:
                    message.setdefault("contentType", document["defaultContentType"])
                at, new = ("channels", key, "messages", name), f"#/channels/{key}" in used
                model = class_name(str(message.get("name") or name))
                if named := self._take(message, "payload", model, at, new=new):
                    self._take(message, "x-result", f"{named}Result", at, new=new)
                    message["name"] = named

    def _take(self, message: dict[str, Any], key: str, name: str, at: At, *, new: bool) -> str | None:
        """The name of this schema of the message. One that is written in place gets this name, if it is `new`, and
        its reference takes its place, on every channel that has the message."""
        schema, place = message.get(key), self._places.written((*at, key))
        if not isinstance(schema, dict) or "$ref" in schema:
            return str(schema["$ref"]).rpartition("/")[2] if isinstance(schema, dict) else None
        if place not in self._names:
            if not new:
                return None
            if name in self.by_name:
                self._references.problem(place, f"its model would be named {name}, as a schema is; rename one")
            self._name(place, name)
            self.by_name[name] = schema
        message[key] = {"$ref": f"#/components/schemas/{self._names[place]}"}
        return self._names[place]


def class_name(text: str) -> str:
    """`task.created` -> `TaskCreated`; what can be a class's name stays as it is, but for a capital in front."""
    words = [word for word in re.split(r"\W+", text) if word]
    name = "".join(word[0].upper() + word[1:] for word in words)
    return f"Model{name}" if not name or name[0].isdigit() else name
