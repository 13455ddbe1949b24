"""Play worlds of leases; `scripts/dev.py worlds` starts it."""

import sys

from support.lease_world.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
