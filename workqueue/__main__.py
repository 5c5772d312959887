import sys

from workqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
