"""Benches: every budget of docs/performance.md, each with its rival in the same run."""

import sys
from pathlib import Path

# So that `import support` works, as pytest makes it work for the tests.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
