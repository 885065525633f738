"""`python -m magicapture` is the command `magicapture`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
