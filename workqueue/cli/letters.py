"""What `workqueue dead` shows of letters, and how its flags say which are meant."""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Group, RenderableType
from rich.text import Text

from workqueue.cli.output import say
from workqueue.cli.tables import row, table
from workqueue.errors import UsageInvalid, escaped
from workqueue.ops.desk import Selection
from workqueue.ops.letters import Filter, Letter, Opened, plain_id
from workqueue.ops.letters import Group as Alike
from workqueue.ops.searching import Search

SAMPLES = 3
UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def preview(selection: Selection) -> None:
    """On standard error: what is done is on standard output."""
    say(f"{len(selection.letters)} of {selection.matched} letters to {selection.action}")
    for letter in selection.letters[:SAMPLES]:
        say(f"  {letter.kind}  {letter.id or letter.key}  {letter.reason}: {letter.error}")
    if len(selection.letters) > SAMPLES:
        say(f"  ... and {len(selection.letters) - SAMPLES} more")
    if selection.absent:
        more = f" and {len(selection.absent) - SAMPLES} more" if len(selection.absent) > SAMPLES else ""
        say(f"no letter that is meant has the id {', '.join(selection.absent[:SAMPLES])}{more}")
    for why, count in Counter(why for _, why in selection.refused).most_common():
        say(f"{count} are left alone: {why}")


def grouped(found: Sequence[Alike]) -> RenderableType:
    made = table("letters:", "sendable:", "kind", "reason", "oldest", "newest", "queue", "error")
    for group in found:
        row(
            made, group.count, group.pass_contract, group.kind, group.reason, group.oldest, group.newest, group.queue,
            group.error,
        )  # fmt: skip
    return made


def listed(found: Sequence[Letter]) -> RenderableType:
    made = table("id", "kind", "reason", "died", "attempts:", "worker", "sendable", "error")
    for letter in found:
        sendable = "yes" if letter.problem is None else "no"
        row(
            made, letter.id or letter.key, letter.kind, letter.reason, letter.died_at, letter.attempts, letter.worker,
            sendable, letter.error,
        )  # fmt: skip
    return made


def opened(found: Opened) -> RenderableType:
    letter = found.letter
    lines = [
        ("letter", f"{letter.id or '(no id)'}  {letter.kind}  key {letter.key}"),
        ("of", f"{letter.queue}, contract {letter.contract or '?'}, {letter.bytes} bytes"),
        ("died", f"{letter.died_at or '?'}  {letter.reason}: {letter.error}"),
        ("sendable", "yes" if letter.problem is None else f"no: {letter.problem}"),
    ]
    if letter.returns:
        lines.append(("returns", f"{letter.returns} times"))
    for number, one in enumerate(found.attempts, 1):
        lines.append((f"attempt {number}", f"{one.get('at')}  {one.get('worker')}  {one.get('error')}"))
    lines += [("traceback" if not at else "", line) for at, line in enumerate(found.traceback.splitlines())]
    told = {"x-attempts", "x-traceback", "x-reason", "x-error", "x-died-at"}
    lines += [("header", f"{name}: {value}") for name, value in sorted(found.headers.items()) if name not in told]
    lines += [("body" if not at else "", line) for at, line in enumerate(_body(found.body))]
    return Group(*(Text(f"{name:9}  {escaped(line)}") for name, line in lines), Text(""))


def _body(text: str) -> list[str]:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False).splitlines()
    except (ValueError, RecursionError):
        return text.splitlines() or ["(empty)"]


def filter_of(
    queue: list[str] | None, reason: list[str] | None, kind: list[str] | None, error: str | None, worker: str | None,
    contract: str | None, since: str | None, until: str | None, id: list[str] | None,
) -> Filter:  # fmt: skip
    """Raises UsageInvalid."""
    try:
        pattern = None if error is None else Search(re.compile(error))
    except (re.error, OverflowError, RecursionError) as problem:
        raise UsageInvalid(f"--error {error!r} is no regular expression: {problem}") from problem
    return Filter(
        frozenset(queue or ()), frozenset(reason or ()), frozenset(kind or ()), pattern, worker, contract,
        _when("--since", since), _when("--until", until), frozenset(_ids(id)),
    )  # fmt: skip


def _ids(given: list[str] | None) -> list[str]:
    found: list[str] = []
    for id in given or ():
        found += sys.stdin.read().split() if id == "-" else [id]
    if given and not found:
        raise UsageInvalid("--id -: standard input has no id")
    return [plain_id(id) for id in found]


def _when(flag: str, text: str | None) -> datetime | None:
    """A time, of UTC where it names no zone, or so long ago."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text):
        try:
            return datetime.now(UTC) - timedelta(seconds=float(match[1]) * UNITS[match[2]])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageInvalid(
            f"{flag} {text!r}: give a time, such as 2026-11-26T03:00, or how long ago: 90s, 2h, 3d"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
