"""One frozen record of settings, from the environment and the flags that beat it, validated once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from workqueue.errors import SettingInvalid

DEFAULT_AMQP_URI = "amqp://guest:guest@localhost:5672/"
DEFAULT_LEDGER_URL = "sqlite:.workqueue/ledger.db"

LONGEST_S = 86_400
LONGEST_KEPT_S = 366 * 86_400


@dataclass(frozen=True, repr=False)
class Settings:
    """Everything that differs between two installations. Seconds as float; each default with its reason."""

    amqp_uri: tuple[str, ...] = (DEFAULT_AMQP_URI,)
    """Tried in turn at every (re)connection."""
    ledger_url: str = DEFAULT_LEDGER_URL
    """`sqlite:PATH` for one machine, `postgresql://...` for several; `none`: a redelivered task may run twice."""
    root: Path = Path()
    """The folder that checksum tasks may read below; the current one by default."""
    heartbeat_s: float = 10.0
    """A peer that is silent for three of these is gone. Half of aio-pika's default loses half the time."""
    reconnect_s: float = 300.0
    """How long a process that has been connected looks for a broker before it ends: longer than a broker's upgrade."""
    check_s: float = 5.0
    """How often a worker that gets nothing asks the broker whether it is still a consumer."""
    drain_s: float = 25.0
    """How long SIGTERM waits for the running task: below the 30 s after which Kubernetes kills."""
    send_s: float = 60.0
    """How long a task may take to be confirmed, reconnections and a blocked broker included."""
    keep_s: float = 7 * 86_400.0
    """How long the ledger remembers a finished task, and so recognises it when it is sent again: a week's holiday."""
    window: int = 200
    """How many tasks may be sent and not yet confirmed: past this a quorum queue gets no faster."""

    log: Literal["info", "debug"] = "info"
    """`debug`: a line for every task that begins too, not just for one that runs for long."""

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        shown["amqp_uri"] = tuple(hide_password(uri) for uri in self.amqp_uri)
        shown["ledger_url"] = hide_password(self.ledger_url)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, **flags: Any) -> "Settings":
        """Read AMQP_URI, LEDGER_URL and WORKQUEUE_<FIELD>; a flag that is not None wins. Raises SettingInvalid."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            own = field.name in ("amqp_uri", "ledger_url")
            variable = field.name.upper() if own else f"WORKQUEUE_{field.name.upper()}"
            flag = flags.pop(field.name, None)
            name, text = (f"--{field.name}", str(flag)) if flag is not None else (variable, environment.get(variable))
            if text:
                values[field.name] = _parse(field.name, name, text)
        if flags:
            raise TypeError(f"no such setting: {', '.join(flags)}")
        values.setdefault("root", Path().resolve())
        return cls(**values)


def _parse(field: str, name: str, text: str) -> Any:
    match field:
        case "amqp_uri":
            uris = tuple(_amqp_uri(name, uri.strip()) for uri in text.split(",") if uri.strip())
            if not uris:
                raise SettingInvalid(name, text, "name a broker, such as amqp://user:password@host:port/vhost")
            return uris
        case "ledger_url":
            if text == "none" or text.startswith("postgresql://") or (text.startswith("sqlite:") and text != "sqlite:"):
                return text
            way_out = "use sqlite:PATH, postgresql://user:password@host/database, or none"
            raise SettingInvalid(name, hide_password(text), way_out)
        case "root":
            if not os.path.isdir(text):  # pathlib's raises what a name too long does
                raise SettingInvalid(name, text, "name a folder that exists")
            return Path(text).resolve()
        case "log":
            if text not in ("info", "debug"):
                raise SettingInvalid(name, text, "use info or debug")
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
            longest_s = LONGEST_KEPT_S if field == "keep_s" else LONGEST_S
            if not 0.1 <= seconds <= longest_s:
                raise SettingInvalid(name, text, f"use a number of seconds from 0.1 to {longest_s}")
            return seconds


def _amqp_uri(name: str, uri: str) -> str:
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        usable = usable and "@" not in parts.path + parts.query + parts.fragment  # a password with / ? # unencoded
    except ValueError:
        usable = False
    if not usable:
        raise SettingInvalid(name, hide_password(uri), "use amqp://user:password@host:port/vhost, or amqps:")
    return uri


def hide_password(url: str) -> str:
    """The URL with *** for its password; one that can't be parsed is hidden whole if it could hold one."""
    try:
        parts = urlsplit(url)
        secret = parts.password
    except ValueError:
        return "***" if "@" in url else url
    if "@" in parts.path + parts.query + parts.fragment:  # a password that was not encoded ends elsewhere
        return f"{parts.scheme}://***@{url.rpartition('@')[2]}"
    if secret is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))
