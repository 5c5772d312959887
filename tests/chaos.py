"""Chaos on the tests' own contract, which has a kind for every odd end of a handler: python -m tests.chaos --help"""

import sys

from tests.generated.worker.messages.json import Odd
from tests.harness import ROOT, TESTS
from workqueue.testing.chaos.command import Own, main

ODD_WAYS: tuple[str, ...] = Odd.model_fields["way"].annotation.__args__  # type: ignore[union-attr]
OWN = Own(ROOT, TESTS, ODD_WAYS)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], OWN))
