"""The ledger that all share who work on a queue: opened, and made only where nobody has another one."""

from collections.abc import Iterable

from workqueue.amqp.lane import Declaration
from workqueue.amqp.look import look
from workqueue.amqp.marker import Marker
from workqueue.errors import LedgerDiffers
from workqueue.ledger import Ledger, open_ledger
from workqueue.ledger.none import AbsentLedger, SilentLedger
from workqueue.ledger.whole import exists
from workqueue.settings import Settings


def same_ledger(ledger: Ledger, queues: Iterable[str], name: str) -> list[Declaration]:
    """Checks that the workers of these queues have this ledger, for a connection that is opened. None for one that is
    out of reach: which it is can't be told."""
    if isinstance(ledger, SilentLedger):
        return []
    return [Marker(queue, ledger, name, hold=False, make=False).check for queue in queues]


async def shared_ledger(settings: Settings, queues: Iterable[str], name: str) -> Ledger:
    """The ledger of LEDGER_URL, for who works on these queues. One that is not there may have been moved away: who is
    refused for it must not leave a new one in its place.

    Raises as `open_ledger`, and where it is not there as `look`, and LedgerDiffers."""
    url = settings.ledger_url
    if not await exists(url):
        try:
            await look(settings, (), name, *same_ledger(AbsentLedger(url), queues, name))
        except LedgerDiffers:
            if not await exists(url):  # else the others have made it just now
                raise
    return await open_ledger(settings)
