"""One frozen record of settings, from the environment or from Python; checked when it is made."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from workqueue.errors import SettingInvalid

DEFAULT_AMQP_URI = "amqp://guest:guest@localhost:5672/"
DEFAULT_LEDGER = Path(".workqueue", "ledger.db")
"""Below the project's folder."""

LONGEST_S = 86_400
LONGEST_KEPT_S = 366 * 86_400

WORDS = {"log": ("info", "debug"), "log_format": ("text", "json"), "tracing": ("off", "on")}
"""What such a setting may be."""
SECRET = ("pass", "secret", "token", "pwd", "key", "auth", "cred")
"""What the name of a URL's parameter says if its value is not to be shown."""
HOST = r"(?:\[[\w:.%]*\]?|[\w.%-]*)(?::\d{0,5})?"
HOSTS = re.compile(rf"{HOST}(?:,{HOST})*")
PART = r"(?:[^@/?#\s%]|%[0-9A-Fa-f]{2})*"  # of a URL, percent-encoded as it must be
POSTGRES = re.compile(rf"postgresql://(?:{PART}@)?{HOSTS.pattern}(?:/{PART})?(?:\?(?:[^@#\s%]|%[0-9A-Fa-f]{{2}})*)?")


@dataclass(frozen=True, repr=False)
class Settings:
    """Everything that differs between two installations. Seconds as float; each default with its reason.

    A text is read as in the environment; the relative path of a ledger is resolved here, once, so that no os.chdir
    moves it. Raises SettingInvalid.
    """

    amqp_uri: tuple[str, ...] = (DEFAULT_AMQP_URI,)
    """Tried in turn, from another one on for each connection, so that not all are lost with one node."""
    ledger_url: str = ""
    """`sqlite:PATH` for one machine, `postgresql://...` for several; `none`: a redelivered task may run twice. When
    empty, the project's own file."""
    heartbeat_s: float = 10.0
    """A peer that is silent for one and a half of these is gone, so after 15 s."""
    reconnect_s: float = 300.0
    """How long a process that has been connected looks for a broker before it ends: longer than a broker's upgrade."""
    check_s: float = 5.0
    """How often a worker that gets nothing asks the broker whether it is still a consumer."""
    drain_s: float = 25.0
    """How long SIGTERM waits for the running task: below the 30 s after which Kubernetes kills."""
    send_s: float = 120.0
    """How long a task may take to be confirmed, reconnections and a blocked broker included: longer than a cluster of
    RabbitMQ 3 may take to go on without a node that is silent, 75 s with its default net_ticktime."""
    keep_s: float = 7 * 86_400.0
    """How long the ledger remembers a finished task, and so recognises it when it is sent again: a week's holiday."""
    window: int = 200
    """How many tasks may be sent and not yet confirmed: past this a quorum queue gets no faster."""

    log: Literal["info", "debug"] = "info"
    """`debug`: a line for every task that begins too, not just for one that runs for long."""
    log_format: Literal["text", "json"] = "text"
    """`json`: each line of a worker's log is an object, for programs."""
    http: str = ""
    """`HOST:PORT` on which a worker answers `/metrics`, `/livez` and `/readyz`; nothing unless it is set."""
    tracing: Literal["off", "on"] = "off"
    """`on`: spans of OpenTelemetry, from a task's send to its end."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _read(field.name, getattr(self, field.name)))

    @property
    def tells_begin(self) -> bool:
        """Whether a worker tells of each attempt that begins: in its log, or since a span begins with it."""
        return self.log == "debug" or self.tracing == "on"

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        shown["amqp_uri"] = tuple(hide_password(uri) for uri in self.amqp_uri)
        shown["ledger_url"] = hide_password(self.ledger_url)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def is_ledger(self, path: str) -> bool:
        """Whether a file is the SQLite ledger, or one of those that SQLite and the locks have beside it. A worker that
        opened and closed one of its own would lose its locks on it."""
        scheme, _, ledger = self.ledger_url.partition(":")
        rest = path.removeprefix(ledger)
        beside = ("", "-wal", "-shm", "-journal", ".holders")
        return scheme == "sqlite" and path.startswith(ledger) and (rest in beside or rest.startswith(".holders/"))

    def of_project(self, folder: Path) -> "Settings":
        """With the ledger of the project in this folder, unless another one is given."""
        return self if self.ledger_url else replace(self, ledger_url=f"sqlite:{folder.resolve() / DEFAULT_LEDGER}")

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, *, project: Path | None = None) -> "Settings":
        """Read AMQP_URI, LEDGER_URL and WORKQUEUE_<FIELD>. Raises SettingInvalid.

        The default ledger belongs to `project`, whatever the current folder is.
        """
        texts = {field.name: environment.get(_variable(field.name)) for field in fields(cls)}
        given: dict[str, Any] = {name: text for name, text in texts.items() if text}
        try:
            settings = cls(**given)
        except SettingInvalid as error:
            raise SettingInvalid(_variable(error.name), error.value, error.way_out) from None
        return settings if project is None else settings.of_project(project)


def misspelt(environment: Mapping[str, str] = os.environ, own: Collection[str] = ()) -> Iterator[str]:
    """A line for each WORKQUEUE_ variable that is no setting, nor the script's `own`, with the nearest that is."""
    known = {_variable(field.name) for field in fields(Settings)} | set(own)
    for name in sorted(environment):
        if name.startswith("WORKQUEUE_") and name not in known:
            near = get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            yield f"{name} is no setting, and is ignored; the nearest is {near[0]}"


def split_uris(text: str) -> list[str]:
    """The URIs of a comma-separated list. A comma counts only where a scheme, or nothing, follows: it may be a part of
    a password."""
    parts = re.split(r"\s*,\s*(?=[a-zA-Z][\w+.-]*://|,|$)", text.strip().strip(","))
    return [part.strip() for part in parts if part.strip()]


def hide_password(url: str) -> str:
    """The URL without what is, or could be, a secret. For any text at all; what is unclear is not shown."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        plain = url.startswith("sqlite:") or re.fullmatch(r"(amqps?:)?[\w./-]*", url)
        return url if plain else "***"
    if "@" in rest.partition("?")[2]:  # a user's secret that was not encoded, or a parameter's: nobody can tell
        return f"{scheme}://***"
    user, at, rest = rest.rpartition("@")
    user, colon, _ = user.partition(":")
    user = (user if re.fullmatch(r"[\w.%+-]*", user) else "***") + (":***" if colon else "")
    address, mark, query = rest.partition("?")
    host, slash, path = address.partition("/")
    if not HOSTS.fullmatch(host) or "#" in path:
        return f"{scheme}://{user}{at}***"
    return f"{scheme}://{user}{at}{host}{slash}{path}{mark}{_shown(query)}"


def _shown(query: str) -> str:
    """The parameters up to the first that may be a secret: its value may hold an & that was not encoded."""
    shown: list[str] = []
    for parameter in query.split("&"):
        name, equals, _ = parameter.partition("=")
        if query and (not equals or "#" in parameter or any(word in unquote(name).lower() for word in SECRET)):
            return "&".join([*shown, f"{name}=***" if equals and "#" not in name else "***"])
        shown.append(parameter)
    return "&".join(shown)


def _variable(field: str) -> str:
    return field.upper() if field in ("amqp_uri", "ledger_url") else f"WORKQUEUE_{field.upper()}"


def _read(name: str, given: Any) -> Any:
    """The value of this setting, given as itself or as a text. Raises SettingInvalid."""
    text = str(given)
    match name:
        case "amqp_uri":
            uris = split_uris(given) if isinstance(given, str) else given
            if not isinstance(uris, list | tuple) or not uris:
                raise SettingInvalid(
                    name, hide_password(text), "name a broker, such as amqp://user:password@host:port/vhost"
                )
            return tuple(_amqp_uri(name, str(uri)) for uri in uris)
        case "ledger_url":
            return _ledger_url(name, text)
        case "log" | "log_format" | "tracing":
            known = WORDS[name]
            if text not in known:
                raise SettingInvalid(name, text, f"use {' or '.join(known)}")
            return text
        case "http":
            address = re.fullmatch(r"(?:[\w.-]+|\[[\w:.%]+\]):(\d{1,5})", text)
            if text and (address is None or int(address[1]) > 65_535):
                raise SettingInvalid(name, text, "use HOST:PORT, such as 127.0.0.1:9100 or [::1]:9100")
            return text
        case "window":
            if not text.isdecimal() or not 1 <= int(text) <= 10_000:
                raise SettingInvalid(name, text, "use a whole number from 1 to 10000")
            return int(text)
        case _:
            try:
                seconds = float(text)
            except ValueError:
                seconds = -1.0
            longest_s = LONGEST_KEPT_S if name == "keep_s" else LONGEST_S
            if not 0.1 <= seconds <= longest_s:
                raise SettingInvalid(name, text, f"use a number of seconds from 0.1 to {longest_s}")
            return seconds


def _ledger_url(name: str, text: str) -> str:
    if text in ("", "none") or (POSTGRES.fullmatch(text) and _decodes(text)):
        return text
    if text.startswith("sqlite:") and text != "sqlite:" and "\0" not in text:
        return f"sqlite:{Path(text.removeprefix('sqlite:')).resolve()}"
    way_out = "use sqlite:PATH, postgresql://user:password@host/database, or none"
    if text.startswith("postgresql:"):  # its own parser would quote the password in the error
        way_out = (
            "percent-encode what is special in user and password (%40 for @, %2F for /, %25 for %, %20 for a space)"
        )
    raise SettingInvalid(name, hide_password(text), way_out)


def _decodes(url: str) -> bool:
    """Whether its percent-encoding is text that PostgreSQL's library takes: UTF-8 without a NUL."""
    try:
        return "\0" not in unquote(url, errors="strict")
    except UnicodeDecodeError:
        return False


def _amqp_uri(name: str, uri: str) -> str:
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        usable = usable and "," not in str(parts.hostname)
        usable = usable and "@" not in parts.path + parts.query + parts.fragment  # a password with / ? # unencoded
    except ValueError:
        usable = False
    if not usable:
        raise SettingInvalid(name, hide_password(uri), "use amqp://user:password@host:port/vhost, or amqps:")
    return uri
