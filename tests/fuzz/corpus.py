"""The kept inputs: one hexadecimal line each, tests/fuzz/corpus/<target>.hex, shortest first."""

import hashlib
import shutil
from pathlib import Path

from fuzz.toolchain import BUILD, HARNESSES
from support.native_build import run

KEPT = HARNESSES / "corpus"


def kept(name: str) -> list[bytes]:
    """Return a target's kept inputs."""
    path = KEPT / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []


def empty(directory: Path) -> Path:
    """Make a directory, or empty it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def unpack(name: str, directory: Path) -> Path:
    """Write a target's kept inputs to a directory of their own, as libFuzzer wants them."""
    empty(directory)
    for entry in kept(name):
        (directory / hashlib.sha256(entry).hexdigest()[:16]).write_bytes(entry)
    return directory


def keep(name: str, program: Path, found: Path) -> int:
    """Keep the fewest inputs, of those found and kept, that cover as much; return how many."""
    merged = empty(BUILD / "merged" / name)
    before = unpack(name, BUILD / "kept" / name)
    run(str(program), "-merge=1", "-verbosity=0", str(merged), str(before), str(found))
    entries = sorted((path.read_bytes() for path in merged.iterdir()), key=lambda e: (len(e), e))
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.hex").write_text("".join(f"{entry.hex()}\n" for entry in entries if entry))
    return len(entries)
