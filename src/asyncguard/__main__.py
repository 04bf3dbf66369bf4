"""`python -m asyncguard`, the same as `asyncguard`."""

import sys

from asyncguard.cli import main

if __name__ == "__main__":
    sys.exit(main())
