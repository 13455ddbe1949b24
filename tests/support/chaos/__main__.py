"""Run the chaos command; `scripts/dev.py chaos` starts it."""

import sys

from support.chaos.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
