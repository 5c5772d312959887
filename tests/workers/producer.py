"""The producer of the tests' own contract: sends what it is given as lines of JSON."""

import sys

from tests.generated.producer import Application
from workqueue.producer import run_producer

if __name__ == "__main__":
    sys.exit(run_producer(Application, about=__doc__))
