"""A ledger that moves: all that is in it copied to another one, and no task done by both.

| step                                             | killed after it                                           |
|--------------------------------------------------|-----------------------------------------------------------|
| the target is closed: it is being filled         | the source is as it was; again goes on, reopen undoes it  |
| the source is closed, if nobody has a claim      | again goes on, reopen undoes it                           |
| its tasks are copied, its audit and its pauses   | again goes on, and keeps what is there; reopen undoes it  |
| the target is opened                             | it is done; reopen undoes it until a task is claimed there |
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from workqueue.errors import LedgerClosed, LedgerUnreachable, UsageInvalid, WorkQueueError
from workqueue.ledger import SCHEMA_VERSION, open_ledger
from workqueue.ledger.board import GONE_S
from workqueue.ledger.door import Door, Mark
from workqueue.ledger.whole import ClaimsHeld, Whole, exists, open_whole
from workqueue.ops.audit import as_text, operator
from workqueue.settings import Settings, hide_password

END_S = 2.0  # that the connections of one that has just ended may be seen for
LOOK_S = 0.2
NOTES = 200  # in a transaction


class LedgerInUse(WorkQueueError):
    """Somebody works with the ledger that is to be closed."""

    def __init__(self, place: str, who: str) -> None:
        super().__init__(f"{place} is in use, and nothing was done: {who}")
        self.place, self.who = place, who


class NotToBeCopied(WorkQueueError):
    """The ledgers are not those that could be copied, or opened again, now."""

    exit_code = 2


class CutShort(WorkQueueError):
    """A copy did not come to its end, and the source is closed by now."""

    exit_code = 3

    def __init__(self, place: str, cause: str) -> None:
        way_out = "run the same command again, or undo it by workqueue ledger reopen"
        super().__init__(f"{cause}. {place} is closed, and not all of it is copied: {way_out}")
        self.place, self.cause = place, cause


@dataclass
class Copied:
    """What became of the tasks of `source`: those that `target` did not know were copied; of those that it knew it kept
    its own, or where that had only been sent, or waited and this was done, it was replaced.

    `again`: the source was closed by an earlier copy to the same target. `notes` and `pauses` are what there was."""

    source: str
    target: str
    again: bool
    copied: int = 0
    kept: int = 0
    replaced: int = 0
    notes: int = 0
    pauses: int = 0


async def copy(
    source_url: str, target_url: str, *, why: str, force: bool, tell: Callable[[int, int], object]
) -> Copied:
    """Close the one, copy all that is in it to the other, and open that. Killed anywhere, and called again, it ends
    right. `force`: close it also under those who have it open, as long as none has told of itself or has a claim.

    Raises LedgerInUse, NotToBeCopied, CutShort; LedgerUnreachable, SettingInvalid, UsageInvalid.
    """
    source_url, target_url = url_of(source_url), url_of(target_url)
    async with _whole(source_url, make=False) as source:
        await _check_there(source, target_url)
        async with _whole(target_url, make=True) as target:
            done = await _closed(source, target, force)
            try:
                await _tasks(source, target, done, tell)
                await _beside(source, target, done)
                told = {"from": done.source, "copied": done.copied, "kept": done.kept, "replaced": done.replaced}
                await target.board.note(operator(), "ledger copy", as_text(why), json.dumps(told))
                await target.filled()
            except LedgerUnreachable as error:
                raise CutShort(source.place, f"{error.url}: {error.cause}") from error
            return done


async def _closed(source: Whole, target: Whole, force: bool) -> Copied:
    """Close both: the target until it is whole, the source for good."""
    door = await source.door()
    _check_source(source, target, door)
    done = Copied(source.place, target.place, again=door.moved_to is not None)
    theirs = await target.door()
    if theirs.moved_to is not None:
        raise NotToBeCopied(f"{target.place} {theirs.why}; copy to a new one")
    if theirs.filled_from is not None and theirs.filled_from.identity != source.identity:
        raise NotToBeCopied(f"{target.place} {theirs.why} from there, or begin with a new one")
    if not done.again:
        await _nobody_works(source, force)
        at = await target.now()
        await target.fill(Mark(source.identity, at, source.place))
        try:
            await source.close_to(Mark(target.identity, at, target.place))
        except ClaimsHeld as error:
            if theirs.filled_from is None:
                await target.filled()
            raise LedgerInUse(source.place, f"claims are held by {error}; try again when they have ended") from None
    elif theirs.filled_from is None:
        await target.fill(Mark(source.identity, await target.now(), source.place))
    return done


def _check_source(source: Whole, target: Whole, door: Door) -> None:
    if source.identity == target.identity:
        raise NotToBeCopied(f"{source.place} and {target.place} are the same ledger")
    if door.moved_to is not None and door.moved_to.identity != target.identity:
        raise _elsewhere(source, target.place, door.moved_to)
    if door.moved_to is None and door.why is not None:
        raise NotToBeCopied(f"{source.place} {door.why} first")
    if door.minor > SCHEMA_VERSION[1]:
        raise NotToBeCopied(f"{source.place} has a schema of a later version: copy it with that")


async def _check_there(source: Whole, target_url: str) -> None:
    """Where an earlier copy has begun, its target is there: one that was made anew, empty and open, would have all
    tasks done again."""
    to = (await source.door()).moved_to
    if to is not None and not await exists(target_url):
        raise _elsewhere(source, hide_password(target_url), to)


def _elsewhere(source: Whole, place: str, to: Mark) -> NotToBeCopied:
    there = f"not to {place}" if place != to.place else "that is not there any more"
    way_out = f"if it is lost, workqueue ledger reopen --lost opens {source.place} again"
    return NotToBeCopied(f"{source.place} was moved to {to.place} on {to.day}, and {there}; {way_out}")


async def _tasks(source: Whole, target: Whole, done: Copied, tell: Callable[[int, int], object]) -> None:
    of, through, last = await source.count(), 0, b""
    while rows := await source.rows(last):
        copied, replaced = await target.put(rows)
        done.copied, done.replaced = done.copied + copied, done.replaced + replaced
        done.kept += len(rows) - copied - replaced
        through, last = through + len(rows), rows[-1].id
        tell(through, of)


async def _beside(source: Whole, target: Whole, done: Copied) -> None:
    notes, pauses = await source.notes(), await source.board.pauses()
    for start in range(0, len(notes), NOTES):
        await target.put_beside(notes[start : start + NOTES], [])
    await target.put_beside([], pauses)
    done.notes, done.pauses = len(notes), len(pauses)


async def reopen(source_url: str, target_url: str, *, why: str, force: bool) -> tuple[str, str]:
    """Undo a copy, whether or not it came to its end, before a task was claimed by the target: that is closed for good
    and the source opened again. Where both are.

    Raises LedgerInUse, NotToBeCopied; LedgerUnreachable, SettingInvalid, UsageInvalid.
    """
    source_url, target_url = url_of(source_url), url_of(target_url)
    async with _whole(source_url, make=False) as source:
        await _check_there(source, target_url)
        async with _whole(target_url, make=False) as target:
            return await _undone(source, target, why, force)


async def _undone(source: Whole, target: Whole, why: str, force: bool) -> tuple[str, str]:
    ours, theirs = (await source.door()).moved_to, await target.door()
    if ours is None:
        if theirs.filled_from is None or theirs.filled_from.identity != source.identity:
            raise NotToBeCopied(f"{source.place} was not moved: it is open")
        await target.filled()  # nothing was copied
        return source.place, target.place
    if ours.identity != target.identity:
        raise _elsewhere(source, target.place, ours)
    if theirs.moved_to is None:
        await _nobody_works(target, force)
        try:
            await target.close_to(Mark(source.identity, await source.now(), source.place))
        except ClaimsHeld as error:
            raise LedgerInUse(target.place, f"claims are held by {error}") from None
    elif theirs.moved_to.identity != source.identity:
        raise NotToBeCopied(f"{target.place} {theirs.why}")
    if await target.used(ours.at):
        await target.open_again()
        raise NotToBeCopied(f"{target.place} was worked with: tasks were claimed or ended there since {ours.day}")
    await source.board.note(operator(), "ledger reopen", as_text(why), json.dumps({"not": target.place}))
    await source.open_again()
    return source.place, target.place


async def reopen_lost(source_url: str, target_url: str, *, why: str) -> tuple[str, str]:
    """Undo a copy whose target exists no more. What was done by way of it since is not known, and done again.

    Raises as `reopen`, and NotToBeCopied where the target is there."""
    source_url, target_url = url_of(source_url), url_of(target_url)
    place = hide_password(target_url)
    async with _whole(source_url, make=False) as source:
        ours = (await source.door()).moved_to
        if ours is None:
            raise NotToBeCopied(f"{source.place} was not moved: it is open")
        if ours.place != place:
            raise _elsewhere(source, place, ours)
        if await _identity(target_url) == ours.identity:
            raise NotToBeCopied(f"{place} is not lost, it is there: leave out --lost")
        await source.board.note(operator(), "ledger reopen", as_text(why), json.dumps({"lost": place}))
        await source.open_again()
        return source.place, place


async def _identity(url: str) -> int | None:
    """Of the ledger that is there; None: there is none, or nobody answers."""
    with suppress(LedgerUnreachable):
        if await exists(url):
            async with _whole(url, make=False) as there:
                return there.identity
    return None


def url_of(text: str) -> str:
    """A URL as LEDGER_URL has it, its path absolute. Raises SettingInvalid, UsageInvalid."""
    url = Settings.load({"LEDGER_URL": text}).ledger_url if text else "none"
    if url == "none":
        raise UsageInvalid(f"{text or 'nothing'!r} is no ledger: name two, such as sqlite:PATH postgresql://...")
    return url


@asynccontextmanager
async def _whole(url: str, *, make: bool) -> AsyncIterator[Whole]:
    """The ledger at this URL, its tables those of this version, open or closed."""
    if not make and not await exists(url):
        raise UsageInvalid(f"there is no ledger at {hide_password(url)}")
    with suppress(LedgerClosed):  # it has them
        await (await open_ledger(Settings(ledger_url=url))).close()
    whole = await open_whole(url)
    try:
        yield whole
    finally:
        await whole.close()


async def _nobody_works(whole: Whole, force: bool) -> None:
    """Raises LedgerInUse. It is a courtesy: whoever has a closed ledger open can claim nothing in it."""
    until_s = time.monotonic() + END_S
    while True:
        seen = [f"{one.name}{_host(one.told)}, seen {one.seen_s:.1f} s ago" for one in await whole.board.seen(GONE_S)]
        others = [] if force else await whole.others()
        if seen:
            raise LedgerInUse(whole.place, f"{', '.join(seen)}; stop them, and wait for {GONE_S:g} s if one was killed")
        if not others:
            return
        if time.monotonic() > until_s:
            way_out = "stop workers, applications and commands that use it, or say --force"
            raise LedgerInUse(whole.place, f"{', '.join(others)} has it open; {way_out}")
        await asyncio.sleep(LOOK_S)


def _host(told: str) -> str:
    try:
        said = json.loads(told)
        return f" ({said['host']}:{said['pid']})"
    except (ValueError, KeyError, TypeError):
        return ""
