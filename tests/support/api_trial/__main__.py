"""`python -m support.api_trial`, which `scripts/dev.py api` becomes."""

import sys

from support.api_trial.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
