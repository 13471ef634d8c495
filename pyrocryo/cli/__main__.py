"""``python -m pyrocryo.cli``."""

import sys

from pyrocryo.cli import main

if __name__ == "__main__":
    sys.exit(main())
