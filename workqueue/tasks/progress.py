"""How far a task is, as its handler says: shown to operators, and its checkpoint kept for the next attempt."""

import asyncio
import json
from functools import cached_property
from numbers import Real
from typing import Any
from uuid import UUID

from workqueue.ledger import Ledger

TEXT_LIMIT = 120  # characters; what is longer is cut
CHECKPOINT_BYTES = 65_536  # of JSON: it may be written to the task's row every two seconds
ROUNDING = 1e-9  # a sum of a thousand thousandths may be a little more than 1
SHOWN_LIMIT = 200  # characters of a checkpoint that an error quotes
LEFT_OUT: Any = object()
ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class Progress:
    """Of one attempt. `told` is for any thread; what saves, for the event loop's alone."""

    # What a handler that says nothing has no need of costs it nothing.
    fraction: float | None = None
    text = ""
    is_locked = False
    """Whether a transaction of the handler's own has the task's row: to save would wait for it, and let others wait."""
    _given: str | None = None
    _saved: str | None = None
    _saving: asyncio.Lock | None = None

    def __init__(self, left: str | None = None) -> None:
        self._left = left

    @cached_property
    def left(self) -> Any:
        """What an attempt before has left for this one."""
        return None if self._left is None else json.loads(self._left)

    def told(self, fraction: float | None, text: str | None, checkpoint: Any) -> None:
        """What is left out stays. Raises TypeError and ValueError, and changes nothing then."""
        fraction = self.fraction if fraction is None else _fraction(fraction)
        if not isinstance(text, str | None):
            raise TypeError(f"the text of a progress must be a str, and is of type {type(text).__name__}")
        if checkpoint is not LEFT_OUT:
            self._given = _encoded(checkpoint)
        self.fraction, self.text = fraction, self.text if text is None else text[:TEXT_LIMIT]

    def shown(self) -> dict[str, Any]:
        """For operators; nothing, where the handler said nothing."""
        if self.fraction is None and not self.text:
            return {}
        return {"progress": self.fraction, "text": self.text}

    @property
    def unsaved(self) -> str | None:
        """The latest checkpoint, JSON; None: there is none, or it is saved."""
        return None if self._given is self._saved else self._given

    async def save(self, ledger: Ledger, task_id: UUID, fence: int) -> None:
        """Save the latest checkpoint; nothing is done where that is saved, or the claim is lost. Raises LedgerBusy."""
        if self.unsaved is None or self.is_locked:
            return
        if self._saving is None:
            self._saving = asyncio.Lock()
        async with self._saving:  # one that waits for a busy ledger must not be written over a later one
            if (given := self.unsaved) is not None:
                await ledger.save(task_id, fence, given)
                self._saved = given


def _fraction(given: float) -> float:
    if not isinstance(given, Real):
        raise TypeError(f"the fraction of a progress must be a number, and is of type {type(given).__name__}")
    if not -ROUNDING <= given <= 1 + ROUNDING:
        raise ValueError(f"the fraction of a progress must be from 0 to 1, and is {given}")
    return min(max(float(given), 0.0), 1.0)


def _encoded(checkpoint: Any) -> str:
    """Its JSON, which gives back what is equal to it."""
    try:
        encoded = ENCODER.encode(checkpoint)
        if len(encoded) > CHECKPOINT_BYTES:
            raise ValueError(f"it is {len(encoded):,} bytes of JSON, more than {CHECKPOINT_BYTES:,}")
        if json.loads(encoded) != checkpoint:
            raise TypeError(f"as JSON it would come back as {encoded[:SHOWN_LIMIT]}")
    except TypeError as error:
        raise TypeError(f"no checkpoint: {error}") from None
    except ValueError as error:
        raise ValueError(f"no checkpoint: {error}") from None
    except RecursionError:
        raise ValueError("no checkpoint: it is nested too deeply") from None
    return encoded
