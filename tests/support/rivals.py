"""Programs that others wrote for the same purpose, and how what scamper found is read."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INSTALL = "scripts/rivals installs it"


def find(*names: str) -> Path | None:
    """Return the path of a program by any of its names, or None: it is not installed."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]
    for name in names:
        if (found := shutil.which(name, path=os.pathsep.join(places))) is not None:
            return Path(found)
    return None


def read_warts(reader: Path, traced: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the traces of a file that scamper wrote; reader: the path of sc_warts2json."""
    done = subprocess.run([reader, traced], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "trace":
            yield record


def responders(trace: Mapping[str, Any]) -> dict[int, str]:
    """Return who answered at each TTL, of several the last."""
    return {hop["probe_ttl"]: hop["addr"] for hop in trace.get("hops", ())}
